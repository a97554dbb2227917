"""What a GPU adds: the same answers, bf16 by default, and a run that learns."""

import dataclasses
from pathlib import Path

import pytest
import torch

import convnext
from convnext.device import autocast_for
from convnext.training.recipes import digits

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]


@pytest.mark.parametrize("name", ["convnext_atto", "convnextv2_atto", "roadmap_micro/resnet", "roadmap_micro/kernel_7"])
def test_outputs_equal_the_cpus(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    model = convnext.create_model(name, layer_scale_init_value=None).eval()
    images = torch.randn(4, 3, 64, 64)
    with torch.no_grad():
        expected = model(images)
        torch.testing.assert_close(model.cuda()(images.cuda()).cpu(), expected, rtol=1e-4, atol=1e-4)


def test_precision_auto_is_bf16() -> None:
    with autocast_for("auto", torch.device("cuda")):
        assert torch.get_autocast_dtype("cuda") == torch.bfloat16
        assert torch.is_autocast_enabled("cuda")


def test_digits_are_learned(tmp_path: Path) -> None:
    assert convnext.train(dataclasses.replace(digits(), device="cuda"), tmp_path).metrics[-1]["top1"] > 96
