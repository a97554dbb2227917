"""Effective receptive fields: exact where they are known, within the theoretical ones, and as a user asks for them."""

import json
from pathlib import Path

import pytest
import torch
from matplotlib.text import Text
from torch import Tensor, nn

import convnext
from convnext.cli import main
from convnext.errors import RunError, UsageError
from convnext.explanation.receptive_field import StageField, receptive_field, stage_fields
from convnext.explanation.receptive_field_figure import draw_fields
from convnext.inference.model import resolve
from tests.conftest import MakeFolder
from tests.runs import MakeRun

Capture = pytest.CaptureFixture[str]


class Convolutions(nn.Module):
    """3x3 convolutions of ones in a row, then a class."""

    def __init__(self, number: int, dilation: int = 1, weight: float = 1.0) -> None:
        super().__init__()
        layers = [nn.Conv2d(1, 1, 3, padding=dilation, dilation=dilation, bias=False) for _ in range(number)]
        self.features = nn.Sequential(*layers)
        for layer in layers:
            nn.init.constant_(layer.weight, weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.features(x).mean((2, 3))


@pytest.mark.parametrize(
    ("model", "profile", "half", "most"),
    [
        (Convolutions(1), [1, 1, 1], 3, 3),
        (Convolutions(1, weight=-2), [1, 1, 1], 3, 3),  # absolute, and adding up to 1
        (Convolutions(2), [1, 2, 3, 2, 1], 3, 5),  # 3 x 3 holds (7 / 9)²
        (Convolutions(1, dilation=3), [1, 0, 0, 1, 0, 0, 1], 7, 7),
    ],
)
@pytest.mark.parametrize("size", [16, 17])
def test_of_convolutions_by_hand(model: nn.Module, profile: list[int], half: int, most: int, size: int) -> None:
    (stage,) = stage_fields(model.eval(), torch.randn(7, 1, size, size))
    line = torch.tensor(profile, dtype=torch.float64)
    expected = torch.zeros(size, size, dtype=torch.float64)
    first = size // 2 - len(profile) // 2
    expected[first : first + len(profile), first : first + len(profile)] = torch.outer(line, line) / line.sum() ** 2
    assert torch.allclose(stage.gradient, expected)
    assert (stage.side(0.5), stage.side(0.95), stage.side(1.0)) == (half, most, len(profile))
    assert stage.square(1.0) == (len(profile), first, first)
    assert stage.positions == (size, size)


def test_the_average_is_over_images() -> None:
    """The derivative of a square is twice the value: images of 1 and of -3 give 2 and 6 in absolute value."""

    class Squares(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.middle = Middle()

        def forward(self, x: Tensor) -> Tensor:
            return self.middle(x).mean((2, 3))

    class Middle(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x**2 + x.roll(1, 3).abs()

    images = torch.stack([torch.full((1, 8, 8), 1.0), torch.full((1, 8, 8), -3.0)])
    (stage,) = stage_fields(Squares().eval(), images)
    assert stage.gradient[4, 4].item() == pytest.approx((2 + 6) / (2 + 6 + 1 + 1))
    assert stage.gradient[4, 3].item() == pytest.approx((1 + 1) / (2 + 6 + 1 + 1))


def extent(stage: StageField) -> int:
    """Pixels a side of what has any gradient."""
    rows = stage.gradient.sum(1).nonzero()
    return int(rows.max() - rows.min()) + 1


@pytest.mark.parametrize("kernel_size", [3, 7])
def test_it_is_within_the_theoretical_one(kernel_size: int) -> None:
    model = convnext.create_model(
        "roadmap_micro/separate_downsampling", kernel_size=kernel_size, num_classes=2, layer_scale_init_value=1.0
    ).eval()
    theoretical, field, stride = [], 4, 4
    for depth in (1, 1, 3, 1):
        field += depth * (kernel_size - 1) * stride
        theoretical.append(field)
        field, stride = field + stride, 2 * stride  # the 2 x 2 convolution before the next stage
    stages = stage_fields(model, torch.randn(2, 3, 256, 256))
    assert [stage.positions for stage in stages] == [(64, 64), (32, 32), (16, 16), (8, 8)]
    found = [extent(stage) for stage in stages]
    assert found[:2] == theoretical[:2]
    assert all(ours <= most for ours, most in zip(found, theoretical, strict=True))
    assert all((stage.side(0.5) or 0) <= (stage.side(0.95) or 0) <= extent(stage) for stage in stages)


def test_wider_kernels_see_further() -> None:
    wide, narrow = (
        stage_fields(
            convnext.create_model(f"roadmap_micro/{step}", num_classes=2, layer_scale_init_value=1.0).eval(),
            torch.randn(2, 3, 128, 128),
        )
        for step in ("kernel_7", "move_up_depthwise")
    )
    assert all(extent(one) > extent(other) for one, other in zip(wide[:3], narrow[:3], strict=True))
    assert all((one.side(0.95) or 0) > (other.side(0.95) or 0) for one, other in zip(wide[1:], narrow[1:], strict=True))


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("convnext_isotropic_small", ["blocks.3", "blocks.8", "blocks.13", "blocks.17"]),
        ("torchvision/resnet18", ["layer1.1", "layer2.1", "layer3.1", "layer4.1"]),
        ("timm/convnext_atto", ["stages.0", "stages.1", "stages.2", "stages.3"]),
    ],
)
def test_the_stages_of_other_networks(name: str, layers: list[str]) -> None:
    model = convnext.create_model(name, num_classes=2).eval()
    stages = stage_fields(model, torch.randn(1, 3, 96, 96))
    assert [stage.layer for stage in stages] == layers
    assert all(stage.gradient.sum().item() == pytest.approx(1) for stage in stages)
    assert not any(module._forward_hooks for module in model.modules())


def test_no_gradient_and_broken_ones() -> None:
    (stage,) = stage_fields(Convolutions(1, weight=0).eval(), torch.randn(1, 1, 8, 8))
    assert stage.side(0.5) is None
    assert stage.to_dict()["side_95"] is None
    with pytest.raises(RunError, match="Convolutions"):
        stage_fields(Convolutions(1, weight=float("nan")).eval(), torch.randn(1, 1, 8, 8))


@pytest.fixture
def run(tmp_path: Path, make_folder: MakeFolder, make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> str:
    """A folder to work in with a run of 64 px."""
    monkeypatch.chdir(tmp_path)
    make_folder({"cat": 2, "dog": 5}).rename("photos")
    torch.manual_seed(1)  # an untrained network's seed is 0
    make_run("photos", image_size=64)
    return "run"


def test_a_run_beside_its_untrained_twin_and_another_network(run: str, capsys: Capture) -> None:
    words = ["explain", run, "roadmap_micro/move_up_depthwise", "--receptive-field"]
    assert main([*words, "--json", "--data", "photos/cat"]) == 0
    said = capsys.readouterr()
    document = json.loads(said.out)
    found = [(network["name"], network["weights"]) for network in document["networks"]]
    assert found == [(run, "untrained"), (run, "trained"), ("roadmap_micro/move_up_depthwise", "untrained")]
    assert [network["image_size"] for network in document["networks"]] == [64, 64, 224]
    assert document["networks"][0]["images"] == "2 images: photos/cat"
    stages = document["networks"][1]["stages"]
    assert [stage["positions"] for stage in stages] == [[16, 16], [8, 8], [4, 4], [2, 2]]
    assert all(1 <= stage["side_50"] <= stage["side_95"] <= 64 for stage in stages)
    assert document["figure"] == "run/explain/receptive-field.png"
    assert Path("run/explain/receptive-field.png").exists()
    assert Path("run/explain/receptive-field.svg").exists()
    assert "warning: run: LayerScale is 1 in the untrained network" in said.err
    assert "warning: roadmap_micro/move_up_depthwise is untrained (seed 0)" in said.err
    assert said.err.splitlines()[-1] == "Figure, as .png and .svg: run/explain/receptive-field.png"


def test_the_table_has_the_held_out_images(run: str, capsys: Capture) -> None:
    assert main(["explain", run, "--receptive-field", "--out", "here"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line.strip().startswith(run)]
    assert [line[:4] for line in lines] == [
        [run, weights, "stage", str(i)] for weights in ("untrained", "trained") for i in (1, 2, 3, 4)
    ]
    found = receptive_field([run])
    assert found.networks[0].images == "2 images: photos, images held out in training"
    assert [line[5] for line in lines[:4]] == [str(stage.side(0.5)) for stage in found.networks[0].stages]


def test_no_text_of_the_figure_is_cut_off_or_covered(run: str) -> None:
    figure = draw_fields(receptive_field([run, run]))
    figure.draw_without_rendering()
    whole = figure.bbox
    texts = [text for text in figure.findobj(Text) if isinstance(text, Text) and text.get_text() and text.get_visible()]
    titles = [axes.title for axes in figure.axes]
    for text in [*texts, *titles]:
        box = text.get_window_extent()
        assert whole.x0 - 1 <= box.x0, text
        assert box.x1 <= whole.x1 + 1, text
    boxes = [title.get_window_extent() for title in titles if title.get_text()]
    assert not any(one.overlaps(other) for i, one in enumerate(boxes) for other in boxes[:i])


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["nowhere", "--receptive-field"], 2, "no run folder nowhere"),
        (["run", "roadmap_micro/kernel_6", "--receptive-field"], 2, "roadmap_micro/kernel_6"),
        (["run", "--receptive-field", "--data", "empty"], 2, "no images in empty: name a folder that has some"),
        (["run", "--receptive-field", "--data", "digit"], 2, "unknown data 'digit'"),
        (["run", "--receptive-field", "--data", "broken"], 1, "none of 1 images of broken can be read"),
        (["run", "--receptive-field", "--kernels"], 2, "--receptive-field and --kernels"),
        (["run", "--receptive-field", "--device", "tpu"], 2, "device 'tpu' cannot be used here"),
    ],
)
@pytest.mark.usefixtures("run")
def test_errors_are_one_line(words: list[str], status: int, message: str, capsys: Capture) -> None:
    Path("empty").mkdir()
    Path("broken").mkdir()
    Path("broken/a.jpg").write_text("no picture")
    assert main(["explain", *words]) == status
    said = capsys.readouterr()
    assert said.err.splitlines()[-1].startswith("error: ")
    assert message in said.err.splitlines()[-1]
    assert said.out == ""


def test_photographs_where_there_is_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from convnext.explanation.study_images import study_images

    monkeypatch.chdir(tmp_path)
    model = resolve("roadmap_micro/kernel_7", "named")
    images = study_images(model, None)
    assert images.name == "12 images: pieces of two photographs"
    assert images.images.shape == (12, 3, 224, 224)
    assert len({image.sum().item() for image in images.images}) == 12
    with pytest.raises(UsageError, match="unknown data"):
        study_images(model, "photographs")
