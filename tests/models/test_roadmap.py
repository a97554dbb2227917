"""The roadmap: the paper's order and figures, a ResNet at its start, the published ConvNeXt at its end."""

import dataclasses
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck, ResNet

import convnext
from convnext.models.roadmap import REGIMES, Step

KEYS = [
    "resnet",
    "stage_ratio",
    "patchify_stem",
    "depthwise",
    "width",
    "inverted_bottleneck",
    "move_up_depthwise",
    "kernel_5",
    "kernel_7",
    "kernel_9",
    "kernel_11",
    "gelu",
    "fewer_activations",
    "fewer_norms",
    "layer_norm",
    "separate_downsampling",
]
# 10^9 multiply-accumulates at 224 px: recomputed (ResNet-50 regime), the paper's column (ResNet-200 regime).
GMACS = {
    "tiny": [
        "4.089",
        "4.526",
        "4.418",
        "2.350",
        "5.268",
        "4.644",
        "4.065",
        "4.097",
        "4.146",
        "4.210",
        "4.291",
        "4.146",
        "4.146",
        "4.146",
        "4.146",
        "4.456",
    ],
    "base": [
        "15.01",
        "14.52",
        "14.38",
        "7.23",
        "16.76",
        "15.68",
        "14.63",
        "14.70",
        "14.81",
        "14.95",
        "15.13",
        "14.81",
        "14.81",
        "14.81",
        "14.81",
        "15.35",
    ],
}
# The two rows of the paper's ResNet-50 column that do not follow from the networks.
ODD = {"layer_norm": 4.46, "separate_downsampling": 4.49}


def steps_of(*regimes: str) -> list[tuple[str, Step]]:
    return [(regime, step) for regime in regimes for step in convnext.roadmap(regime)]


@pytest.mark.parametrize("regime", REGIMES)
def test_sixteen_steps_in_the_papers_order(regime: str) -> None:
    steps = convnext.roadmap(regime)
    assert [step.key for step in steps] == KEYS
    assert [step.key for step in steps if not step.kept] == ["kernel_5", "kernel_9", "kernel_11"]


@pytest.mark.parametrize("regime", REGIMES)
def test_each_step_is_a_kept_one_with_one_change(regime: str) -> None:
    steps = {step.key: step for step in convnext.roadmap(regime)}
    assert steps["resnet"].before is None
    for step in list(steps.values())[1:]:
        before = steps[step.before or ""]
        new, old = dataclasses.asdict(step.design), dataclasses.asdict(before.design)
        changed = [name for name in new if new[name] != old[name]]
        assert before.kept or step.key.startswith("kernel_")
        assert len(changed) == 1 or (step.key, changed) in [
            ("stage_ratio", ["depths", "width"]),  # ResNet-200's width follows from its new depths
            ("separate_downsampling", ["downsampling", "stage_norms"]),  # unstable without
        ]


@pytest.mark.parametrize(
    ("regime", "key", "gmacs"), [(r, k, g) for r in GMACS for k, g in zip(KEYS, GMACS[r], strict=True)]
)
def test_macs(regime: str, key: str, gmacs: str) -> None:
    with torch.device("meta"):
        model = convnext.create_model(f"roadmap_{regime}/{key}")
    digits = len(gmacs.split(".")[1])
    assert f"{convnext.cost(model).macs / 1e9 + 1e-9:.{digits}f}" == gmacs


@pytest.mark.parametrize("regime", GMACS)
def test_the_papers_macs_agree_but_for_two_rows(regime: str) -> None:
    for step, gmacs in zip(convnext.roadmap(regime), GMACS[regime], strict=True):
        if regime == "tiny" and step.key in ODD:
            assert step.paper.gmacs == ODD[step.key]
        else:
            assert step.paper.gmacs == pytest.approx(float(gmacs), abs=0.0051)


def test_paper_figures() -> None:
    tiny, base = convnext.roadmap("tiny"), convnext.roadmap("base")
    assert (tiny[0].paper.top1, tiny[0].paper.top1_std) == (78.82, 0.07)
    assert (tiny[-1].paper.top1, tiny[-1].paper.top1_std) == (81.97, 0.06)
    assert (base[0].paper.top1, base[-1].paper.top1, base[-1].paper.top1_std) == (81.14, 83.60, None)
    assert [step.paper for step in convnext.roadmap("micro")] == [step.paper for step in tiny]


def from_torchvision(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """A torchvision ResNet's keys in the roadmap's naming."""
    names = {"conv1": "downsample_layers.0.0", "bn1": "downsample_layers.0.1", "fc": "head"}
    layers = {
        "conv1": "pwconv1",
        "bn1": "pwnorm1",
        "conv2": "dwconv",
        "bn2": "norm",
        "conv3": "pwconv2",
        "bn3": "pwnorm2",
        "downsample": "shortcut",
    }

    def rename(key: str) -> str:
        first, *rest = key.split(".")
        if not first.startswith("layer"):
            return ".".join((names[first], *rest))
        block, layer, *rest = rest
        return ".".join(("stages", str(int(first[-1]) - 1), block, layers[layer], *rest))

    renamed = {rename(key): tensor for key, tensor in weights.items()}
    return {key: tensor.flatten(1) if "pwconv" in key else tensor for key, tensor in renamed.items()}


def check_equals_resnet(theirs: nn.Module, ours: nn.Module) -> None:
    """Largest difference 1e-5 in logits of a trained network's size, with BatchNorms that all do something."""
    for name, tensor in theirs.state_dict().items():
        if "bn" in name or "downsample.1" in name:
            if name.endswith("running_var"):
                nn.init.uniform_(tensor, 0.5, 2.0)
            elif name.endswith("weight"):
                nn.init.uniform_(tensor, 0.0, 0.2 if "bn3" in name else 1.0)
            elif tensor.is_floating_point():
                nn.init.normal_(tensor, std=0.1)
    ours.load_state_dict(from_torchvision(theirs.state_dict()))
    images = torch.randn(1, 3, 96, 64)
    for dtype, difference in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
        with torch.no_grad():
            expected = theirs.to(dtype).eval()(images.to(dtype))
            actual = ours.to(dtype).eval()(images.to(dtype))
        assert 0.1 < expected.abs().max() < 20
        torch.testing.assert_close(actual, expected, rtol=0, atol=difference)


def test_first_step_of_tiny_is_resnet50() -> None:
    ours = convnext.create_model("roadmap_tiny/resnet", layer_scale_init_value=None)
    assert sum(p.numel() for p in ours.parameters()) == 25_557_032
    check_equals_resnet(torchvision.models.resnet50(), ours)


def test_first_step_of_base_is_resnet200() -> None:
    check_equals_resnet(
        ResNet(Bottleneck, [3, 24, 36, 3]), convnext.create_model("roadmap_base/resnet", layer_scale_init_value=None)
    )


@pytest.mark.parametrize(("output_stride", "dilated"), [(16, [False, False, True]), (8, [False, True, True])])
def test_a_dilated_resnet_is_torchvisions(output_stride: int, dilated: list[bool]) -> None:
    ours = convnext.create_model(
        "roadmap_micro/resnet", width=64, layer_scale_init_value=None, output_stride=output_stride
    )
    check_equals_resnet(ResNet(Bottleneck, [1, 1, 2, 1], replace_stride_with_dilation=dilated), ours)


@pytest.mark.parametrize("size", ["tiny", pytest.param("base", marks=pytest.mark.slow)])
@pytest.mark.parametrize("output_stride", [32, 8])
def test_last_step_is_convnext(size: str, output_stride: int) -> None:
    torch.manual_seed(0)
    options: dict[str, Any] = {"layer_scale_init_value": 1.0, "drop_path_rate": 0.1, "output_stride": output_stride}
    published = convnext.create_model(f"convnext_{size}", **options)
    torch.manual_seed(0)
    step = convnext.create_model(f"roadmap_{size}/separate_downsampling", **options)
    ours, theirs = step.state_dict(), published.state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        for training in (False, True):  # in training the same draws of drop path as well
            torch.manual_seed(1)
            expected = published.train(training)(images)
            torch.manual_seed(1)
            assert torch.equal(step.train(training)(images), expected)


@pytest.mark.parametrize("key", KEYS)
def test_every_parameter_gets_a_finite_gradient(key: str) -> None:
    for regime in REGIMES:
        if regime == "micro":
            model = convnext.create_model(
                f"roadmap_{regime}/{key}", num_classes=4, drop_path_rate=0, layer_scale_init_value=0.5
            )
        else:  # full depth, a narrow width: the same graph
            model = convnext.create_model(
                f"roadmap_{regime}/{key}", num_classes=4, drop_path_rate=0, layer_scale_init_value=0.5, width=8
            )
        model(torch.randn(2, 3, 64, 64)).square().mean().backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, (regime, name)
            assert parameter.grad.isfinite().all(), (regime, name)


@pytest.mark.slow
@pytest.mark.parametrize(("regime", "step"), steps_of("tiny", "base"), ids=lambda value: getattr(value, "key", value))
def test_every_parameter_gets_a_finite_gradient_at_full_width(regime: str, step: Step) -> None:
    model = convnext.create_model(f"roadmap_{regime}/{step.key}")
    model(torch.randn(2, 3, 64, 64)).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_all_steps_name_their_parts_alike() -> None:
    parts = {"dwconv", "norm", "pwconv1", "pwconv2", "gamma", "pwnorm1", "pwnorm2", "shortcut"}
    for step in convnext.roadmap("tiny"):
        with torch.device("meta"):
            keys = convnext.create_model(step.design).state_dict()
        tops = {key.split(".")[0] for key in keys}
        assert {"downsample_layers", "stages", "head"} <= tops <= {"downsample_layers", "stages", "norm", "head"}
        assert {key.split(".")[3] for key in keys if key.startswith("stages.")} <= parts


def test_unknown_regime_and_step_list_the_nearest() -> None:
    with pytest.raises(convnext.UsageError, match=r"'tinny'.*tiny"):
        convnext.roadmap("tinny")
    with pytest.raises(convnext.UsageError, match=r"roadmap_tiny/kernel_8.*roadmap_tiny/kernel_7"):
        convnext.create_model("roadmap_tiny/kernel_8")
