"""Folded networks and those of the kernels have the outputs of the networks they were made of."""

import copy
import platform
from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from torch import nn

from convnext.acceleration.cpu import native
from convnext.acceleration.cpu.inference_kernels import FusedNetwork, can_fuse, has_bf16, inference_library
from convnext.acceleration.folding import folded
from convnext.errors import RunError, UsageError
from convnext.models import create_model
from convnext.models.convnext import ConvNeXt, ConvNeXtV2, IsotropicConvNeXt
from convnext.models.design import DesignNetwork
from convnext.models.roadmap import roadmap
from tests.acceleration.cpu.cases import LIBRARIES, take_inference_library

SMALL = {
    "v1": lambda: ConvNeXt(depths=(1, 1, 2, 1), dims=(24, 48, 96, 192), num_classes=10, layer_scale_init_value=0.5),
    "v1 of 40 channels without LayerScale": lambda: ConvNeXt(
        depths=(1, 1, 1, 1), dims=(40, 80, 160, 320), num_classes=10, layer_scale_init_value=None
    ),
    "v1 with a stem of stride 2": lambda: ConvNeXt(
        depths=(1, 1, 1, 1), dims=(32, 64, 128, 256), num_classes=3, stem_stride=2, kernel_size=5
    ),
    "v1 with a stem of stride 1": lambda: ConvNeXt(
        depths=(1, 1, 1, 1), dims=(16, 32, 64, 128), num_classes=3, stem_stride=1, in_chans=1
    ),
    "features": lambda: ConvNeXt(depths=(1, 1, 1, 1), dims=(16, 32, 64, 128), num_classes=0),
    "v2": lambda: ConvNeXtV2(depths=(1, 1, 2, 1), dims=(24, 48, 96, 192), num_classes=10),
    "output stride 8": lambda: ConvNeXt(
        depths=(1, 1, 1, 1), dims=(16, 32, 64, 128), num_classes=3, kernel_size=3, output_stride=8
    ),
    "isotropic": lambda: IsotropicConvNeXt(depth=4, dim=48, num_classes=10, layer_scale_init_value=0.1),
}
ROADMAP = {
    step.key: (lambda design=step.design: DesignNetwork(design, num_classes=10, layer_scale_init_value=0.5))
    for step in roadmap("micro")
}


def trained(build: Callable[[], Any]) -> tuple[Any, torch.Tensor]:
    """A network whose every parameter and running figure is other than at the start, with images for it."""
    model = build().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                cast(torch.Tensor, module.running_mean).normal_(std=0.3)
                cast(torch.Tensor, module.running_var).uniform_(0.5, 2)
    first = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
    return model, torch.randn(3, first.in_channels, 64, 80)


@pytest.mark.parametrize("name", [*SMALL, *ROADMAP])
@torch.inference_mode()
def test_a_folded_network_is_the_network(name: str) -> None:
    model, images = trained((SMALL | ROADMAP)[name])
    before = copy.deepcopy(model.state_dict())
    fold = folded(model)
    expected = model.double()(images.double())
    torch.testing.assert_close(fold(images).double(), expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())
    assert all(torch.equal(value.float(), before[key].float()) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", [*SMALL, *ROADMAP])
def test_what_can_be_folded_is(name: str) -> None:
    model, _ = trained((SMALL | ROADMAP)[name])
    fold = folded(model)
    assert all(getattr(module, "gamma", None) is None for module in fold.modules() if hasattr(module, "dwconv"))
    kinds = [type(module) for module in fold.modules()]
    assert nn.BatchNorm2d not in kinds
    assert nn.BatchNorm1d not in kinds
    affine = [module for module in fold.modules() if isinstance(module, nn.LayerNorm) and module.elementwise_affine]
    # Behind the stem, maps go into a block; without a head, and behind its activation, a norm has nothing to go into.
    # Nor do those before a convolution that pads.
    assert len(affine) <= 1 + (name == "features") + 2 * (name == "output stride 8")


def test_other_networks_are_left_as_they_are() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    assert [type(layer) for layer in folded(model).children()] == [nn.Conv2d, nn.BatchNorm2d]


def fused(model: nn.Module, bf16: bool = False) -> FusedNetwork:
    try:
        inference_library()
    except RunError as error:
        pytest.skip(str(error))
    return FusedNetwork(folded(model), bf16)


@pytest.mark.parametrize("name", [name for name in SMALL if name not in ("v2", "output stride 8")])
@pytest.mark.parametrize("threads", [1, 2])
@torch.inference_mode()
def test_the_kernels_give_what_the_network_gives(name: str, threads: int) -> None:
    model, images = trained(SMALL[name])
    assert can_fuse(model)
    network = fused(model)
    expected = model.double()(images.double())
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for given in (images, images.contiguous(memory_format=torch.channels_last), images.flip(0)[::2]):
            wanted = expected.flip(0)[::2] if len(given) == 2 else expected
            torch.testing.assert_close(
                network(given).double(), wanted, rtol=1e-4, atol=1e-5 * expected.abs().max().item()
            )
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("size", [(32, 32), (33, 65), (40, 136), (224, 32)])
@torch.inference_mode()
def test_the_kernels_take_images_of_any_size_and_number(size: tuple[int, int]) -> None:
    model, _ = trained(SMALL["v1"])
    network = fused(model)
    for count in (0, 1, 11):
        images = torch.randn(count, 3, *size)
        torch.testing.assert_close(network(images), model(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("name", [name for name in SMALL if name not in ("v2", "output stride 8")])
@torch.inference_mode()
def test_the_kernels_in_bf16_are_nearer_than_the_network_in_bf16(
    name: str, library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    take_inference_library(library, monkeypatch)
    if not has_bf16():
        pytest.skip("needs a processor with bf16")
    model, images = trained(SMALL[name])
    network = fused(model, bf16=True)
    expected = model(images)
    theirs = (copy.deepcopy(model).bfloat16()(images.bfloat16()).float() - expected).norm()
    assert (network(images) - expected).norm() <= theirs


@torch.inference_mode()
def test_the_kernels_pass_on_what_is_not_finite() -> None:
    model, images = trained(SMALL["v1"])
    images[1, 0, 5, 5] = torch.nan
    logits = fused(model)(images)
    assert logits[1].isnan().all()
    assert logits[[0, 2]].isfinite().all()


def test_the_kernels_refuse_what_the_network_refuses() -> None:
    model, _ = trained(SMALL["v1"])
    with pytest.raises(UsageError, match="too small"):
        fused(model)(torch.randn(1, 3, 16, 16))


def test_only_convnext_v1_in_fp32_can_be_fused() -> None:
    assert not can_fuse(SMALL["v2"]())
    assert not can_fuse(SMALL["output stride 8"]())
    assert not can_fuse(SMALL["v1"]().double())
    assert not can_fuse(create_model("torchvision/resnet18"))


@pytest.mark.skipif(platform.machine() != "x86_64", reason="names processors of this kind")
@pytest.mark.parametrize("processor", ["x86-64", "haswell", "alderlake", "skylake-avx512", "cooperlake"])
def test_the_kernels_are_c_for_older_processors_too(processor: str) -> None:
    if not native.compilers():
        pytest.skip("no compiler")
    # GCC notes that vectors wider than the processor's are passed in another way.
    options = ["-fsyntax-only", "-fopenmp", "-Wall", "-Wextra", "-Werror", "-Wno-psabi", f"-march={processor}"]
    native.run([*native.compilers()[0], *options, str(native.FOLDER / "inference.c")])


def test_the_kernels_can_be_turned_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONVNEXT_KERNELS", "off")
    with pytest.raises(RunError, match="CONVNEXT_KERNELS is off"):
        inference_library()
