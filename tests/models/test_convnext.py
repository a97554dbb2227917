"""The family: the paper's parameter counts, and the same outputs as timm's networks with the same weights."""

from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import convnext
from convnext.models.convnext import VARIANTS, IsotropicConvNeXt
from convnext.models.layers import DropPath
from convnext.models.protocol import Network
from tests.models.conversion import from_timm, randomize

# paper.md's figures: parameters to the unit, 10^9 multiply-accumulates at 224 px as printed.
PARAMS = {
    "convnext_tiny": 28_589_128,
    "convnext_small": 50_223_688,
    "convnext_base": 88_591_464,
    "convnext_large": 197_767_336,
    "convnext_xlarge": 350_196_968,
    "convnextv2_atto": 3_708_400,
    "convnextv2_femto": 5_233_240,
    "convnextv2_pico": 9_066_280,
    "convnextv2_nano": 15_623_800,
    "convnextv2_tiny": 28_635_496,
    "convnextv2_huge": 660_289_640,
}
MILLIONS = {"convnext_isotropic_small": 22, "convnext_isotropic_base": 87, "convnext_isotropic_large": 306}
GMACS = {
    "convnext_tiny": "4.456",
    "convnext_small": "8.68",
    "convnext_base": "15.355",
    "convnext_large": "34.36",
    "convnext_xlarge": "60.92",
    "convnext_isotropic_small": "4.3",
    "convnext_isotropic_base": "16.9",
    "convnext_isotropic_large": "59.7",
}
# By size, of those that timm has: compared by output in the suite, in the slow tests, and everywhere by shape.
SMALL = [f"convnext_{size}" for size in ("atto", "femto", "pico", "nano", "tiny")]
SMALL += [f"convnextv2_{size}" for size in ("atto", "femto", "pico", "nano", "tiny")]
LARGE = [f"convnext_{size}" for size in ("small", "base", "large", "xlarge")]
LARGE += [f"convnextv2_{size}" for size in ("base", "large", "huge")]


def on_meta(name: str, **options: Any) -> nn.Module:
    with torch.device("meta"):
        return convnext.create_model(name, **options)


def maps_of(model: nn.Module, images: Tensor) -> list[Tensor]:
    assert isinstance(model, Network)
    return model.forward_intermediates(images, intermediates_only=True)


@pytest.mark.parametrize("name", PARAMS)
def test_parameters_equal_the_paper(name: str) -> None:
    assert sum(p.numel() for p in on_meta(name).parameters()) == PARAMS[name]


@pytest.mark.parametrize("name", MILLIONS)
def test_isotropic_parameters_round_to_the_paper(name: str) -> None:
    assert round(sum(p.numel() for p in on_meta(name).parameters()) / 1e6) == MILLIONS[name]


@pytest.mark.parametrize("name", GMACS)
def test_macs_equal_the_paper(name: str) -> None:
    digits = len(GMACS[name].split(".")[1])
    assert f"{convnext.cost(on_meta(name)).macs / 1e9:.{digits}f}" == GMACS[name]


@pytest.mark.parametrize("name", ["atto", "femto", "pico", "nano"])
def test_small_v1_have_the_sizes_of_v2(name: str) -> None:
    first, second = on_meta(f"convnext_{name}"), on_meta(f"convnextv2_{name}")
    shapes = {key: tensor.shape for key, tensor in second.state_dict().items() if ".grn." not in key}
    assert {key: t.shape for key, t in first.state_dict().items() if not key.endswith(".gamma")} == shapes


@pytest.mark.parametrize("name", [*SMALL, *(pytest.param(name, marks=pytest.mark.slow) for name in LARGE)])
def test_outputs_equal_timm(name: str) -> None:
    theirs = timm.create_model(name).eval()
    randomize(theirs)
    ours = convnext.create_model(name).eval()
    ours.load_state_dict(from_timm(theirs.state_dict()))
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", [*SMALL, *LARGE])
def test_shapes_equal_timm(name: str) -> None:
    with torch.device("meta"):
        theirs = from_timm(timm.create_model(name).state_dict())
    ours = on_meta(name).state_dict()
    assert {key: tensor.shape for key, tensor in ours.items()} == {key: tensor.shape for key, tensor in theirs.items()}


@pytest.mark.parametrize("name", VARIANTS)
def test_keys_are_official(name: str) -> None:
    keys = set(on_meta(name).state_dict())
    blocks = "blocks.0." if "isotropic" in name else "stages.0.0."
    expected = {blocks + part for part in ("dwconv.weight", "norm.bias", "pwconv1.weight", "pwconv2.bias")}
    expected |= {"norm.weight", "head.bias"}
    expected |= {blocks + "grn.gamma", blocks + "grn.beta"} if "v2" in name else set()
    expected |= (
        {"stem.weight"} if "isotropic" in name else {"downsample_layers.0.1.weight", "downsample_layers.3.1.bias"}
    )
    assert expected <= keys


@pytest.mark.parametrize("size", [32, 33, 64, 100])
def test_features_of_any_size(size: int) -> None:
    model = convnext.create_model("convnext_atto", num_classes=7)
    maps = maps_of(model, torch.randn(2, 3, size, size + 8))
    side, other = size // 4, (size + 8) // 4
    for i, features in enumerate(maps):
        assert features.shape == (2, 40 * 2**i, side >> i, other >> i)
    assert model(torch.randn(2, 3, size, size)).shape == (2, 7)


def test_isotropic_features() -> None:
    model = convnext.create_model("convnext_isotropic_small")
    images = torch.randn(1, 3, 64, 64)
    maps = maps_of(model, images)
    assert isinstance(model, IsotropicConvNeXt)
    torch.testing.assert_close(model.head(model.norm(maps[-1].mean((-2, -1)))), model(images))
    assert not torch.equal(maps[0], maps[-1])
    assert [tuple(features.shape) for features in maps] == [(1, 384, 4, 4)] * 4


@pytest.mark.parametrize("name", ["convnext_atto", "convnext_isotropic_small", "roadmap_micro/resnet"])
def test_too_small_an_image_says_what_to_do(name: str) -> None:
    with pytest.raises(convnext.UsageError, match=r"30x40.*32x32"):
        convnext.create_model(name)(torch.randn(1, 3, 30, 40))


def test_one_image_without_a_batch_says_what_to_do() -> None:
    with pytest.raises(convnext.UsageError, match=r"\(3, 32, 32\)"):
        convnext.create_model("convnext_atto")(torch.randn(3, 32, 32))


@pytest.mark.parametrize(("stem_stride", "smallest"), [(4, 32), (2, 16), (1, 8)])
def test_stem_stride(stem_stride: int, smallest: int) -> None:
    model = convnext.create_model("convnext_atto", stem_stride=stem_stride)
    maps = maps_of(model, torch.randn(1, 3, smallest, smallest))
    assert [features.shape[-1] for features in maps] == [8, 4, 2, 1]
    with pytest.raises(convnext.UsageError, match=f"{smallest}x{smallest}"):
        model(torch.randn(1, 3, smallest - 1, smallest))


def test_options() -> None:
    model = convnext.create_model(
        "convnext_atto", num_classes=0, in_chans=4, kernel_size=5, layer_scale_init_value=None
    )
    assert model(torch.randn(2, 4, 32, 32)).shape == (2, 320)
    assert not any(name.endswith("gamma") for name, _ in model.named_parameters())
    assert model.get_parameter("stages.0.0.dwconv.weight").shape == (40, 1, 5, 5)


def test_head_init_scale() -> None:
    torch.manual_seed(3)
    plain = convnext.create_model("convnext_atto")
    torch.manual_seed(3)
    scaled = convnext.create_model("convnext_atto", head_init_scale=0.001)
    torch.testing.assert_close(scaled.get_parameter("head.weight"), plain.get_parameter("head.weight") * 0.001)


def test_drop_path_grows_with_depth_and_works_in_training_only() -> None:
    model = convnext.create_model("convnext_atto", drop_path_rate=0.5)
    rates = [module.rate for module in model.modules() if isinstance(module, DropPath)]
    assert rates[0] == 0
    assert rates[-1] == pytest.approx(0.5)
    assert rates == sorted(rates)
    randomize(model)
    images = torch.randn(4, 3, 32, 32)
    assert not torch.equal(model(images), model(images))
    model.eval()
    assert torch.equal(model(images), model(images))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": -1}, "num_classes is -1"),
        ({"in_chans": 0}, "in_chans is 0"),
        ({"drop_path_rate": 1.0}, "drop_path_rate is 1.0"),
        ({"kernel_size": 4}, "kernel_size is 4"),
        ({"depths": (3, 3, 9)}, "depths"),
        ({"dims": (8, 16, 32, 0)}, "dims"),
        ({"output_stride": 4}, "output_stride is 4"),
        ({"stem_stride": 3}, "stem_stride is 3"),
        ({"colour": 1}, "'colour'.*num_classes"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(convnext.UsageError, match=message):
        convnext.create_model("convnext_atto", **options)


@pytest.mark.parametrize("name", ["convnext_atto", "convnextv2_atto", "convnext_isotropic_small"])
def test_every_parameter_gets_a_finite_gradient(name: str) -> None:
    model = convnext.create_model(name, num_classes=5)
    randomize(model)
    model(torch.randn(2, 3, 64, 64)).square().mean().backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
        assert parameter.grad.abs().max() > 0, key
