"""The kinds of model names, and the weights files that names mean."""

from pathlib import Path

import pytest
import torch

from convnext import create_model
from convnext.errors import UsageError
from convnext.weights.names import find_weights, parse_name
from tests.weights.conftest import put

pytestmark = pytest.mark.usefixtures("places")


@pytest.mark.parametrize(
    ("name", "kind", "model", "tag"),
    [
        ("run", "run", "run", None),
        ("no/where", "run", "no/where", None),
        ("hub", "weights", "hub", None),
        ("mine", "weights", "mine", None),
        ("gone.pth", "weights", "gone.pth", None),
        ("convnext_tiny.safetensors", "weights", "convnext_tiny.safetensors", None),
        ("gone.ONNX", "exported", "gone.ONNX", None),
        ("model.pt2", "exported", "model.pt2", None),
        ("convnext_tiny", "architecture", "convnext_tiny", None),
        ("convnext_tiny,layer_scale=1.5", "architecture", "convnext_tiny,layer_scale=1.5", None),
        ("roadmap_micro/kernel_7", "architecture", "roadmap_micro/kernel_7", None),
        ("convnext_tiny.in22k_in1k", "published", "convnext_tiny", "in22k_in1k"),
        ("torchvision/resnet18", "library", "torchvision/resnet18", None),
        ("timm/resnet18.a1_in1k", "library", "timm/resnet18", "a1_in1k"),
        ("convnext_atto", "weights", "convnext_atto", None),  # a file of that name
    ],
)
def test_kinds(
    name: str, kind: str, model: str, tag: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    put(tmp_path / "run", "recipe.json")
    put(tmp_path / "run", "best.safetensors")
    put(tmp_path / "hub", "model.safetensors")
    for file in ("mine", "model.pt2", "convnext_atto"):
        put(tmp_path, file)
    parsed = parse_name(name)
    assert (parsed.kind, parsed.model, parsed.tag) == (kind, model, tag)


def test_weights_by_tag(places: dict[str, Path]) -> None:
    path = put(places["own"], "convnextv2_atto_1k_224_ema.pt")
    for found, notes in (find_weights("in1k", "convnextv2_atto"), find_weights("convnextv2_atto.in1k")):
        assert found == path
        assert "CC-BY-NC-4.0" in notes[0]
    path = put(places["own"], "convnext_tiny_22k_224.pth")
    assert find_weights("in22k", "convnext_tiny") == (path, ())


def test_weights_by_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(create_model("convnext_atto").state_dict(), "mine")
    run = put(tmp_path / "runs" / "digits", "best.safetensors")
    for name, path in (("mine", Path("mine")), (str(run.parent), run), ("./mine", Path("mine"))):
        assert find_weights(name, "timm/resnet18") == (path, ())


@pytest.mark.parametrize(
    ("name", "model", "message"),
    [
        ("in1", "convnext_tiny", "'in1': did you mean in1k"),
        ("in1k_384", "convnext_tiny", "'in1k_384': did you mean .*in1k"),
        ("in1k", "convnext_atto", "published for convnext_atto"),
        ("in1k", "timm/resnet18", "published for timm/resnet18"),
        ("mine", "roadmap_micro/resnet", "no weights at mine"),
        ("runs/none", "convnext_tiny", "no weights at runs/none"),
        ("none.pth", "convnext_tiny", r"no weights at none\.pth"),
        ("timm/resnet18", "convnext_tiny", "timm/resnet18"),
        ("model.onnx", None, "model.onnx"),
        ("roadmap_micro/resnet", None, "roadmap_micro/resnet"),
    ],
)
def test_no_weights(name: str, model: str | None, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        find_weights(name, model)
