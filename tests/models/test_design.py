"""Designs: any valid combination builds, an invalid one names both choices, and equal choices compute equal things."""

import dataclasses
import itertools
import json
from typing import Any

import pytest
import torch
from torch import nn

import convnext
from convnext.models.design import Design, DesignNetwork

TINY: dict[str, Any] = {"depths": (1, 1, 2, 1), "width": 8}
CHOICES: dict[str, tuple[Any, ...]] = {
    "stem": ("resnet", "patchify"),
    "bottleneck": ("narrow", "inverted"),
    "block_order": ("pointwise_first", "spatial_first"),
    "depthwise": (False, True),
    "activations": (1, 2, 3),
    "norm": ("batch", "layer"),
    "norms": (1, 2, 3),
    "downsampling and stage_norms": (("in_block", False), ("separate", False), ("separate", True)),
}


@pytest.mark.parametrize("every", [29, pytest.param(1, marks=pytest.mark.slow)])
def test_combinations_build_and_learn(every: int) -> None:
    """Of the 864 choices that change the network's structure: shapes, and a finite gradient in every parameter."""
    images = torch.randn(2, 3, 32, 32)
    for values in itertools.islice(itertools.product(*CHOICES.values()), None, None, every):
        choices = dict(zip(CHOICES, values, strict=True))
        downsampling, stage_norms = choices.pop("downsampling and stage_norms")
        design = Design(**TINY, **choices, downsampling=downsampling, stage_norms=stage_norms)
        model = DesignNetwork(design, num_classes=3, layer_scale_init_value=1.0, drop_path_rate=0)
        assert [maps.shape[1:] for maps in model.forward_intermediates(images, intermediates_only=True)] == [
            (channels, 8 >> i, 8 >> i) for i, channels in enumerate(design.widths)
        ], design
        nn.functional.cross_entropy(model(images), torch.tensor([0, 1])).backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, (name, design)
            assert parameter.grad.isfinite().all(), (name, design)


@pytest.mark.parametrize(
    ("choices", "first", "second"),
    [
        ({"stem": "resnet", "stem_stride": 2}, "stem='resnet'", "stem_stride=2"),
        ({"downsampling": "in_block", "stage_norms": True}, "stage_norms=True", "downsampling='in_block'"),
    ],
)
def test_a_clash_names_both_choices(choices: dict[str, Any], first: str, second: str) -> None:
    with pytest.raises(convnext.UsageError) as error:
        Design(**choices)
    assert first in str(error.value)
    assert second in str(error.value)


@pytest.mark.parametrize(
    ("choices", "named"),
    [
        ({"norm": "group"}, "norm .*'group'.*'batch', 'layer'"),
        ({"norms": 4}, "norms .*4.*1, 2, 3"),
        ({"depths": (3, 3, 9)}, r"depths .*\(3, 3, 9\)"),
        ({"depths": (3, 0, 9, 3)}, r"depths .*\(3, 0, 9, 3\)"),
        ({"depths": (3, 3, 9.0, 3)}, r"depths .*9\.0"),
        ({"depths": 3}, "depths .*3"),
        ({"depthwise": "no"}, "depthwise .*'no'.*bool"),
        ({"norms": True}, "norms .*True.*int"),
        ({"kernel_size": 3.0}, r"kernel_size .*3\.0.*int"),
        ({"width": 0}, "width .*0"),
        ({"kernel_size": 6}, "kernel_size .*6"),
    ],
)
def test_a_wrong_value_says_what_is_allowed(choices: dict[str, Any], named: str) -> None:
    with pytest.raises(convnext.UsageError, match=named):
        Design(**choices)


@pytest.mark.parametrize("key", ["resnet", "inverted_bottleneck", "kernel_7", "fewer_norms", "separate_downsampling"])
def test_a_1x1_convolution_equals_a_linear_layer(key: str) -> None:
    design = next(step.design for step in convnext.roadmap("micro") if step.key == key)
    assert design.pointwise == "linear"
    linear = convnext.create_model(design, num_classes=5, layer_scale_init_value=1.0).eval()
    conv = convnext.create_model(
        dataclasses.replace(design, pointwise="conv"), num_classes=5, layer_scale_init_value=1.0
    ).eval()
    shapes = {name: tensor.shape for name, tensor in conv.state_dict().items()}
    assert any(len(shape) == 4 and "pwconv" in name for name, shape in shapes.items())
    conv.load_state_dict({name: tensor.reshape(shapes[name]) for name, tensor in linear.state_dict().items()})
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(conv(images), linear(images), rtol=1e-5, atol=1e-5)


def test_a_second_norm_at_the_start_of_the_block() -> None:
    """The variant that the paper tried without gain: one more BatchNorm, before the depthwise convolution."""
    (kept,) = (step.design for step in convnext.roadmap("tiny") if step.key == "fewer_norms")
    rejected = dataclasses.replace(kept, norms=2)
    keys = {name: set(convnext.create_model(d).state_dict()) for name, d in (("kept", kept), ("rejected", rejected))}
    assert {key.split(".", 3)[3] for key in keys["rejected"] - keys["kept"]} == {
        f"prenorm.{part}" for part in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    }
    assert keys["kept"] < keys["rejected"]


def test_without_stage_norms_downsampling_stands_bare() -> None:
    design = dataclasses.replace(convnext.roadmap("micro")[-1].design, stage_norms=False)
    names = [name for name, _ in convnext.create_model(design).named_parameters() if name.startswith("downsample")]
    assert names == [f"downsample_layers.{i}.{int(i > 0)}.{part}" for i in range(4) for part in ("weight", "bias")]


def test_a_design_comes_back_from_json() -> None:
    design = convnext.roadmap("tiny")[3].design
    assert Design(**json.loads(json.dumps(dataclasses.asdict(design)))) == design
    assert hash(design)


@pytest.mark.parametrize("size", [32, 45, 71])
def test_any_size_goes_through_every_step(size: int) -> None:
    for step in convnext.roadmap("micro"):
        model = DesignNetwork(step.design, num_classes=3).eval()
        with torch.no_grad():
            assert model(torch.randn(1, 3, size, size + 9)).shape == (1, 3), step.key


def test_an_option_may_change_the_design() -> None:
    model = convnext.create_model("roadmap_micro/kernel_7", kernel_size=9, stem_stride=2, num_classes=4)
    assert model.get_parameter("stages.0.0.dwconv.weight").shape[-1] == 9
    assert model(torch.randn(2, 3, 16, 16)).shape == (2, 4)
