"""What a recipe's word for weights means."""

from pathlib import Path

import pytest
import torch

from convnext import create_model
from convnext.errors import UsageError
from convnext.weights import resolve
from tests.weights.conftest import put

pytestmark = pytest.mark.usefixtures("places")


def test_resolve_tag(places: dict[str, Path]) -> None:
    path = put(places["own"], "convnextv2_atto_1k_224_ema.pt")
    resolved = resolve("in1k", "convnextv2_atto")
    assert resolved.path == path
    assert resolved.notes == (
        "convnextv2_atto's in1k weights are licensed under CC-BY-NC-4.0: for non-commercial use only",
    )
    put(places["own"], "convnext_tiny_22k_224.pth")
    assert resolve("in22k", "convnext_tiny").notes == ()


def test_resolve_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(create_model("convnext_atto").state_dict(), "mine")
    assert resolve("mine", "convnext_atto").path == Path("mine")
    run = put(tmp_path / "runs" / "digits", "best.safetensors")
    assert resolve(str(run.parent), "timm/resnet18").path == run
    assert resolve("./mine", "convnext_atto").path == Path("mine")


@pytest.mark.parametrize(
    ("name", "variant", "message"),
    [
        ("in1", "convnext_tiny", r"unknown weights 'in1': did you mean in1k.*Or give the path"),
        ("in1k_384", "convnext_tiny", r"unknown published weights of convnext_tiny 'in1k_384': did you mean .*in1k"),
        ("in1k", "convnext_atto", "no published weights 'in1k' for convnext_atto: there are some for convnext_base, "),
        ("in1k", "timm/resnet18", "no published weights 'in1k' for timm/resnet18"),
        ("mine", "roadmap_micro/resnet", "no weights at mine, and none are published for roadmap_micro/resnet"),
        ("runs/none", "convnext_tiny", "no weights at runs/none"),
        ("none.pth", "convnext_tiny", r"no weights at none\.pth"),
    ],
)
def test_resolve_unknown(name: str, variant: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        resolve(name, variant)
