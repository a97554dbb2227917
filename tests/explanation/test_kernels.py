"""The sheet of depthwise kernels: the right ones, in the right order, on one scale."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import convnext
from convnext.cli import main
from convnext.explanation.depthwise_kernels import SHOWN, BlockKernels, depthwise_kernels, kernels_of
from convnext.explanation.depthwise_kernels_figure import draw_kernels, sheet

Capture = pytest.CaptureFixture[str]


def test_of_a_network_the_weights_are_the_kernels() -> None:
    model: Any = convnext.create_model("convnextv2_atto", num_classes=3)
    found = kernels_of(model)
    assert [(block.stage, block.block) for block in found] == [
        (stage + 1, block + 1) for stage, depth in enumerate((2, 2, 6, 2)) for block in range(depth)
    ]
    assert torch.equal(found[3].weights, model.stages[1][1].dwconv.weight.detach()[:, 0])


@pytest.mark.parametrize(
    ("name", "stages", "blocks"),
    [
        ("convnext_isotropic_small", 1, 18),
        ("roadmap_micro/inverted_bottleneck", 4, 6),
        ("torchvision/convnext_tiny", 4, 18),
        ("timm/convnext_atto", 4, 12),
        ("torchvision/resnet18", 0, 0),
        ("roadmap_micro/patchify_stem", 0, 0),
    ],
)
def test_the_stages_of_networks(name: str, stages: int, blocks: int) -> None:
    with torch.device("meta"):
        model = convnext.create_model(name)
    model = model.to_empty(device="cpu")
    found = kernels_of(model)
    assert (len({block.stage for block in found}), len(found)) == (stages, blocks)


def test_channels_are_chosen_by_their_norm() -> None:
    weights = torch.zeros(100, 7, 7)
    weights[:, 3, 3] = torch.randperm(100) - 50.0
    chosen = BlockKernels(1, 1, "", weights).chosen()[:, 3, 3].abs()
    assert len(chosen) == SHOWN
    assert chosen[0] == 50
    assert chosen[-1] == 0
    assert bool((chosen.diff() < 0).all())
    assert (chosen.diff() + 50 / (SHOWN - 1)).abs().max() <= 1  # evenly
    assert len(BlockKernels(1, 1, "", weights[:5]).chosen()) == 5


def test_how_far_out_the_weight_is() -> None:
    weights = torch.zeros(2, 5, 5)
    weights[0, 2, 2], weights[1, 1, 2], weights[0, 0, 4] = 2, -1, 3
    block = BlockKernels(1, 1, "", weights)
    assert block.beyond(1) == pytest.approx(10 / 14)
    assert block.beyond(3) == pytest.approx(9 / 14)
    assert block.beyond(5) == pytest.approx(0)
    assert block.beyond(7) == pytest.approx(0)
    assert BlockKernels(1, 1, "", torch.zeros(2, 5, 5)).beyond(3) is None


def test_the_sheet_shows_each_kernel_where_it_belongs() -> None:
    weights = torch.arange(10.0, 0, -1)[:, None, None].expand(10, 3, 3)
    canvas = sheet(BlockKernels(1, 1, "", weights))
    assert canvas.shape == (7, 31)
    assert (canvas[:3, :3] == 10).all()
    assert (canvas[4:, 4:7] == 1).all()
    assert np.isnan(canvas[3]).all()
    assert np.isnan(canvas[4:, 7:]).all()


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.chdir(tmp_path)
    name = "roadmap_micro/kernel_5"
    assert main(["explain", name, "--kernels", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [(block["stage"], block["kernel_size"], block["channels"]) for block in document["blocks"]] == [
        (1, 5, 24), (2, 5, 24), (3, 5, 48), (3, 5, 96), (3, 5, 96), (4, 5, 96)
    ]  # fmt: skip
    assert document["figure"] == "runs/explain-roadmap_micro-kernel_5/kernels.png"
    assert Path(document["figure"]).exists()
    assert main(["explain", "roadmap_micro/resnet", "--kernels"]) == 2
    assert "roadmap_micro/resnet" in capsys.readouterr().err
    assert main(["explain", name, name, "--kernels"]) == 2
    assert "--kernels" in capsys.readouterr().err


def test_the_scale_is_one_for_all_and_has_zero_in_the_middle() -> None:
    figure = draw_kernels(depthwise_kernels("roadmap_micro/separate_downsampling"))
    pictures = [axes.images[0] for axes in figure.axes if axes.images]
    titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
    assert titles == [
        "stage 1, block 1: 7x7, 24 channels",
        "stage 2, block 1: 7x7, 48 channels",
        "stage 3, block 1: 7x7, 96 channels",
        "stage 3, block 3: 7x7, 96 channels",
        "stage 4, block 1: 7x7, 192 channels",
    ]
    limits = {picture.get_clim() for picture in pictures}
    assert len(limits) == 1
    low, high = limits.pop()
    assert low == -high
