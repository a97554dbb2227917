"""Channel activity: counted right where it is known by hand, read at the right place, and as a user asks for it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import convnext
from convnext.cli import main
from convnext.errors import RunError
from convnext.explanation.activity import Activity, NetworkActivity, behind, block_activity, cosine_distance, hidden_of
from convnext.explanation.activity_figure import draw_activity
from tests.conftest import MakeFolder
from tests.runs import MakeRun

Capture = pytest.CaptureFixture[str]


def test_the_cosine_distance_is_that_of_all_pairs() -> None:
    hidden = torch.randn(3, 5, 7)
    expected = [
        torch.stack([(1 - torch.cosine_similarity(one, other, dim=0)) / 2 for one in image for other in image]).mean()
        for image in hidden
    ]
    assert torch.allclose(cosine_distance(hidden), torch.stack(expected).double(), atol=1e-6)
    line = torch.randn(1, 1, 9)
    assert cosine_distance(torch.cat([line, 3 * line, 0.1 * line], 1)).item() == pytest.approx(0, abs=1e-6)
    assert cosine_distance(torch.cat([line, -line], 1)).item() == pytest.approx(0.5)
    assert cosine_distance(torch.eye(9)[None]).item() == pytest.approx(0.5 * (1 - 1 / 9))
    assert cosine_distance(torch.zeros(1, 4, 9)).item() == 0.5


@pytest.mark.parametrize("name", ["convnext_atto", "convnextv2_atto"])
def test_dead_and_saturated_channels_are_counted(name: str) -> None:
    model: Any = convnext.create_model(name, num_classes=3).eval()
    first = model.stages[0][0]
    with torch.no_grad():
        first.pwconv1.weight.mul_(20)
        first.pwconv1.weight[:40] = 0
        first.pwconv1.bias[:16] = -50  # dead: of 160 channels 10 %
        first.pwconv1.bias[16:40] = 5  # saturated: 15 %
    found = block_activity(model, torch.randn(6, 3, 64, 64))
    assert len(found) == 12
    assert found[0].block == "stages.0.0"
    assert found[0].behind == ("GRN" if "v2" in name else "GELU")
    assert found[0].channels == 160
    assert found[0].dead == pytest.approx(0.10)
    assert found[0].saturated == pytest.approx(0.15)
    assert found[1].dead == found[1].saturated == 0
    assert all(0 < block.distance <= 0.5 for block in found)
    assert found[0].distance < found[1].distance  # 24 channels are the same
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())


def test_a_channel_that_lives_in_one_image_is_not_dead() -> None:
    """Images are taken together, however they are divided into batches."""
    model: Any = convnext.create_model("roadmap_micro/kernel_7", num_classes=3, layer_scale_init_value=1.0).eval()
    images = torch.randn(9, 3, 64, 64)
    whole = block_activity(model, images)
    parts = [block_activity(model, images[i : i + 1]) for i in range(9)]
    for i, block in enumerate(whole):
        assert block.dead <= min(part[i].dead for part in parts) + 0.02
        assert block.distance == pytest.approx(sum(part[i].distance for part in parts) / 9, abs=1e-5)


def places(model: Any) -> dict[str, nn.Module]:
    """Where the hidden channels of this package's first and last block are, by the modules' own outputs."""
    blocks = {"stages.0.0": model.stages[0][0], f"stages.3.{len(model.stages[3]) - 1}": model.stages[3][-1]}
    if hasattr(model.stages[0][0], "grn"):
        return {name: block.grn for name, block in blocks.items()}
    return {name: block.pointwise_act if block.spatial_first else block.spatial_act for name, block in blocks.items()}


@pytest.mark.parametrize(
    "name", ["convnext_atto", "convnextv2_atto", *(f"roadmap_micro/{step.key}" for step in convnext.roadmap("micro"))]
)
def test_it_reads_what_the_last_layer_reads(name: str) -> None:
    model: Any = convnext.create_model(name, num_classes=3, layer_scale_init_value=None if "v2" in name else 1.0).eval()
    outputs: dict[str, Tensor] = {}
    handles = [
        module.register_forward_hook(lambda _module, _inputs, output, name=name: outputs.update({name: output.clone()}))  # pyright: ignore
        for name, module in places(model).items()
    ]
    images = torch.randn(2, 3, 96, 96)
    found = hidden_of(model, images)
    for handle in handles:
        handle.remove()
    assert list(found) == [f"stages.{i}.{j}" for i, stage in enumerate(model.stages) for j in range(len(stage))]
    for block, output in outputs.items():
        channels_first = output if output.shape[1] == found[block].shape[1] else output.permute(0, 3, 1, 2)
        assert torch.equal(found[block], channels_first.flatten(2))
    kind = "GRN" if "v2" in name else "GELU" if "convnext" in name or model.design.activation == "gelu" else "ReLU"
    assert behind(model.stages[0][0]) == kind


@pytest.mark.parametrize(
    ("name", "blocks", "channels", "kind"),
    [
        ("torchvision/resnet18", 8, (64, 512), "ReLU"),
        ("timm/convnext_atto", 4, (160, 1280), "GELU"),
        ("torchvision/convnext_tiny", 18, (384, 3072), "GELU"),
    ],
)
def test_other_libraries_networks(name: str, blocks: int, channels: tuple[int, int], kind: str) -> None:
    model = convnext.create_model(name, num_classes=3).eval()
    found = block_activity(model, torch.randn(1, 3, 64, 64))
    assert (len(found), found[0].channels, found[-1].channels) == (blocks, *channels)
    assert {block.behind for block in found} == {kind}


def test_values_that_are_not_finite() -> None:
    model: Any = convnext.create_model("convnext_atto", num_classes=3).eval()
    nn.init.constant_(model.stages[1][0].pwconv1.bias, float("nan"))
    with pytest.raises(RunError, match=r"stages\.1\.0"):
        block_activity(model, torch.randn(1, 3, 32, 32))


def test_the_command(
    tmp_path: Path, make_folder: MakeFolder, make_run: MakeRun, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    make_folder({"cat": 2, "dog": 2}).rename("photos")
    make_run("photos")
    assert main(["explain", "run", "roadmap_micro/resnet", "--activity", "--json", "--data", "photos"]) == 0
    said = capsys.readouterr()
    document = json.loads(said.out)
    assert [(network["name"], network["weights"]) for network in document["networks"]] == [
        ("run", "untrained"),
        ("run", "trained"),
        ("roadmap_micro/resnet", "untrained"),
    ]
    assert document["networks"][0]["images"] == "4 images: photos"
    first = document["networks"][0]["blocks"][0]
    assert list(first) == ["block", "behind", "channels", "root_mean_square", "dead", "saturated", "distance"]
    assert Path("run/explain/activity.svg").exists()


def test_the_figure_has_a_line_for_each_network() -> None:
    networks = []
    for name, weights in (("convnext_atto", "trained"), ("roadmap_micro/resnet", "untrained")):
        model = convnext.create_model(name, num_classes=3).eval()
        networks.append(NetworkActivity(name, weights, "noise", block_activity(model, torch.randn(1, 3, 64, 64))))
    figure = draw_activity(Activity(tuple(networks), ()))
    for axes in figure.axes:
        assert len(axes.lines) == 2
        assert axes.get_ylim()[0] == 0
    values = list(map(float, figure.axes[2].lines[1].get_ydata()))  # pyright: ignore
    assert values == [block.distance for block in networks[1].blocks]
    assert figure.axes[2].get_xlabel() == "place of the block, from the first (0) to the last (1)"
