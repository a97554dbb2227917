"""int8 keeps a trained network's answers, takes the networks of every room, and refuses with words."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

import convnext
from convnext.acceleration.cpu.inference_kernels import FusedNetwork, Range, rounded_weight
from convnext.acceleration.folding import folded
from convnext.acceleration.int8 import Int8Block, Int8Linear, agreement, observe, quantize
from convnext.errors import UsageError
from convnext.models.convnext import Block, ConvNeXt, IsotropicConvNeXt
from tests.acceleration.cpu.cases import LIBRARIES, take_inference_library

# torch's int8 products are oneDNN's, which ONEDNN_MAX_CPU_ISA makes ignore the newer instructions.
HAS_VNNI = torch.cpu._is_vnni_supported() and "ONEDNN_MAX_CPU_ISA" not in os.environ
needs_vnni = pytest.mark.skipif(not HAS_VNNI, reason="needs a processor with VNNI")


@pytest.fixture
def _v1() -> None:
    """ConvNeXt V1 in int8, by the kernels or by torch's products."""
    if not HAS_VNNI:
        take_inference_library("here", pytest.MonkeyPatch())


@pytest.fixture
def _kernels_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONVNEXT_KERNELS", "off")


def digits() -> tuple[Tensor, Tensor]:
    """All digits as normalised images (1797, 3, 32, 32), in a fixed order, and their classes."""
    pixels, classes = load_digits(return_X_y=True)
    order = torch.randperm(len(classes), generator=torch.Generator().manual_seed(0))
    images = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8)[order] / 8 - 1
    return F.interpolate(images, size=(32, 32)).expand(-1, 3, -1, -1), torch.tensor(classes)[order]


def small(**options: Any) -> ConvNeXt:
    """A small ConvNeXt V1 whose every block counts."""
    torch.manual_seed(0)
    return ConvNeXt(
        depths=(1, 1, 2, 1), dims=(24, 48, 96, 192), **({"num_classes": 10, "layer_scale_init_value": 0.5} | options)
    ).eval()


def trained(model: nn.Module, steps: int) -> nn.Module:
    """A network trained on the first 1437 digits."""
    torch.manual_seed(0)
    images, labels = digits()
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(steps):
        batch = torch.randint(1437, (32,))
        optimizer.zero_grad()
        F.cross_entropy(model(images[batch]), labels[batch]).backward()
        optimizer.step()
    return model.eval()


def untrained(name: str, **options: Any) -> nn.Module:
    """A network whose every parameter counts: GRN begins at zero."""
    torch.manual_seed(0)
    model = convnext.create_model(name, num_classes=10, **options).eval()
    for key, parameter in model.named_parameters():
        if ".grn." in key:
            nn.init.normal_(parameter, std=0.3)
    return model


@torch.inference_mode()
def logits(model: nn.Module, images: Tensor) -> Tensor:
    return model(images)


@pytest.mark.usefixtures("_v1")
@pytest.mark.parametrize(
    "name",
    [
        "small",
        pytest.param("convnext_atto", marks=pytest.mark.slow),
        pytest.param("convnextv2_atto", marks=[pytest.mark.slow, needs_vnni]),
    ],
)
def test_a_trained_network_keeps_its_answers(name: str) -> None:
    options: dict[str, Any] = {"layer_scale_init_value": 0.1} if name == "convnext_atto" else {}
    model = small() if name == "small" else convnext.create_model(name, num_classes=10, drop_path_rate=0.0, **options)
    model = trained(model, steps=40 if name == "small" else 80)
    images, labels = digits()
    int8 = quantize(model, images[:64])
    exact, ours = logits(model, images[1437:]), int8(images[1437:])
    accuracy = (exact.argmax(1) == labels[1437:]).double().mean()
    assert accuracy > 0.8  # otherwise there is nothing to keep
    assert agreement(exact, ours) >= 0.99
    assert (ours - exact).pow(2).mean() < 0.002 * exact.var()


@pytest.mark.usefixtures("_v1")
@pytest.mark.parametrize("kernels", ["on", pytest.param("off", marks=needs_vnni)])
def test_optimize_tries_it_on_request(kernels: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CONVNEXT_KERNELS", kernels)
    model, images = small(), digits()[0][:32]
    fast = convnext.accelerate(model, images[:2], precision="int8", calibration=images, seconds=30, force=True)
    (row,) = (row for row in fast.report.tried if row.precision == "int8")
    assert not row.dropped
    assert row.images_per_second
    assert row.agreement == agreement(logits(model, images), quantize(model, images)(images))


@needs_vnni
@pytest.mark.usefixtures("_kernels_off")
@pytest.mark.parametrize(
    ("name", "options", "block"),
    [
        ("convnext_atto", {"layer_scale_init_value": 0.5}, Int8Block),
        ("convnext_atto", {"layer_scale_init_value": 0.5, "stem_stride": 1, "kernel_size": 3}, Int8Block),
        ("convnextv2_atto", {}, Int8Block),
        ("convnext_isotropic_small", {}, Int8Block),
        ("roadmap_micro/depthwise", {"layer_scale_init_value": 0.5}, Int8Linear),
        ("torchvision/swin_t", {}, Int8Linear),
        ("timm/convnext_atto", {}, Int8Linear),
    ],
)
def test_torchs_products_do_for_every_kind_of_network(
    name: str, options: dict[str, Any], block: type[nn.Module]
) -> None:
    int8 = keeps_its_outputs(untrained(name, **options))
    assert sum(type(module) is block for module in int8.modules()) >= 8


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize(
    "build",
    [
        small,
        lambda: small(stem_stride=2, kernel_size=3, layer_scale_init_value=None),
        lambda: IsotropicConvNeXt(depth=3, dim=48, num_classes=10, layer_scale_init_value=0.5).eval(),
    ],
)
def test_the_kernels_do_for_convnext_v1(
    build: Callable[[], nn.Module], library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    take_inference_library(library, monkeypatch)
    int8 = keeps_its_outputs(build())
    assert any(type(module) is FusedNetwork for module in int8.modules())


def keeps_its_outputs(model: nn.Module) -> nn.Module:
    """Check that a network's int8 form gives its outputs about, and leaves it as it is; returns that form."""
    before = {key: value.clone() for key, value in model.state_dict().items()}
    images = torch.randn(6, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    int8 = quantize(model, images)
    exact, ours = logits(model, images), int8(images)
    assert ours.dtype == torch.float32
    assert (ours - exact).pow(2).mean() < 0.01 * exact.var()
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    return int8


def round_factors(layer: nn.Linear, seen: Range) -> None:
    """Let a linear layer multiply what int8 multiplies: its weight and its inputs rounded to steps."""
    rounded, scale = rounded_weight(layer.weight.detach())
    layer.weight = nn.Parameter(rounded * scale[:, None], requires_grad=False)

    def rounded_input(_: nn.Module, inputs: tuple[Tensor]) -> Tensor:
        return ((inputs[0] / seen.scale + seen.zero_point).round().clamp(0, 255) - seen.zero_point) * seen.scale

    layer.register_forward_pre_hook(rounded_input)


@pytest.mark.parametrize("library", LIBRARIES)
def test_the_kernels_round_as_a_network_of_rounded_layers(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    take_inference_library(library, monkeypatch)
    monkeypatch.setattr("convnext.acceleration.int8.has_bf16", lambda: False)
    images = torch.randn(6, 3, 64, 80, generator=torch.Generator().manual_seed(1))
    model = small()
    exact, ours = logits(model, images), quantize(model, images)(images)
    reference = folded(model)
    blocks = [module for module in reference.modules() if isinstance(module, Block)]
    ranges = observe(reference, [layer for block in blocks for layer in (block.pwconv1, block.pwconv2)], images)
    for block in blocks:
        round_factors(block.pwconv1, ranges[block.pwconv1])
        round_factors(block.pwconv2, ranges[block.pwconv2].after_gelu())
    wanted = logits(reference.double(), images.double())
    # Where a value lies between two steps, the last bit decides which it goes to; unrelated errors would give 1.4.
    assert (ours - wanted).norm() < 0.5 * (exact - wanted).norm()


@pytest.mark.usefixtures("_v1")
@pytest.mark.parametrize("name", ["convnext_atto", pytest.param("convnextv2_atto", marks=needs_vnni)])
def test_any_batch_and_size_of_image(name: str) -> None:
    images = torch.randn(9, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    model = untrained(name)
    int8 = quantize(model, images[:4])
    whole = int8(images)
    for batch in (1, 5):
        torch.testing.assert_close(int8(images[:batch]), whole[:batch], atol=0.02, rtol=0.02)
    assert int8(images[:0]).shape == (0, 10)
    other = torch.randn(2, 3, 96, 64, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(int8(other), logits(model, other), atol=0.1, rtol=0.1)
    torch.testing.assert_close(int8(images.to(memory_format=torch.channels_last)), whole)


@needs_vnni
def test_large_batches_go_through_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.randn(7, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    int8 = quantize(untrained("convnextv2_atto"), images)
    whole = int8(images)
    monkeypatch.setattr("convnext.acceleration.int8.PART_PIXELS", 3 * 64 * 64)
    torch.testing.assert_close(int8(images), whole, atol=0.02, rtol=0.02)
    with pytest.raises(UsageError, match="a batch of images"):
        int8(images[0])


@pytest.mark.parametrize("library", LIBRARIES)
def test_what_is_not_finite_is_passed_on(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    take_inference_library(library, monkeypatch)
    images = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    int8 = quantize(small(), images)
    images[1, 0, 5, 5] = torch.nan
    assert int8(images)[1].isnan().all()
    assert int8(images)[[0, 2]].isfinite().all()


@pytest.mark.usefixtures("_v1")
def test_features_without_a_classifier() -> None:
    model = convnext.create_model("convnext_atto", num_classes=0, layer_scale_init_value=0.5).eval()
    images = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    ours, exact = quantize(model, images)(images), logits(model, images)
    assert (ours - exact).pow(2).mean() < 0.01 * exact.var()


@pytest.mark.usefixtures("_v1")
def test_models_and_images_that_do_not_fit() -> None:
    model, fitting = untrained("convnext_atto"), torch.zeros(2, 3, 64, 64)
    for images, named in (
        (fitting[:0], r"\(0, 3, 64, 64\)"),
        (fitting[0], r"\(N, in_chans, H, W\)"),
        (fitting.byte(), "uint8"),
        (fitting + torch.nan, "not finite"),
        (fitting.to("meta"), "meta"),
        (fitting[..., :16, :16], "16x16"),
    ):
        with pytest.raises(UsageError, match=named):
            quantize(model, images)
    with pytest.raises(UsageError, match=r"model\.cpu\(\)"):
        quantize(untrained("convnext_atto").to("meta"), fitting)
    with pytest.raises(UsageError, match=r"model\.float\(\)"):
        quantize(untrained("convnext_atto").bfloat16(), fitting)


def test_a_cpu_without_the_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: False)
    images = torch.zeros(2, 3, 64, 64)
    with pytest.raises(UsageError, match="VNNI"):
        quantize(untrained("convnextv2_atto"), images)
    monkeypatch.setenv("CONVNEXT_KERNELS", "off")
    with pytest.raises(UsageError, match=r"VNNI.*CONVNEXT_KERNELS"):
        quantize(untrained("convnext_atto"), images)


@needs_vnni
@pytest.mark.usefixtures("_kernels_off")
def test_maps_are_fp32_where_the_processor_has_no_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("convnext.acceleration.int8.has_cpu_bf16", lambda: False)
    model = untrained("convnext_atto", layer_scale_init_value=0.5)
    images = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    int8 = quantize(model, images)
    exact = logits(model, images)
    assert {parameter.dtype for parameter in int8.parameters()} == {torch.float32}
    assert (int8(images) - exact).pow(2).mean() < 0.01 * exact.var()


def test_agreement_is_the_share_of_equal_first_classes() -> None:
    a = torch.eye(4)
    assert agreement(a, a) == 1
    assert agreement(a, a[[0, 1, 3, 2]]) == 0.5
    with pytest.raises(UsageError, match="one shape"):
        agreement(a, a[:2])
    with pytest.raises(UsageError, match="one shape"):
        agreement(a[:0], a[:0])
