"""An architecture as it is drawn and told: every figure in it is the network's, and what differs is marked."""

from pathlib import Path

import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from rich.console import Console
from rich.table import Table

import convnext
from convnext.errors import UsageError
from convnext.explanation.architecture import Architecture, architecture, architecture_table
from convnext.explanation.architecture_figure import draw_architecture
from convnext.explanation.block_drawing import cells, side_branches
from convnext.explanation.difference import aligned, difference, difference_table, marks, typical
from convnext.explanation.difference_figure import draw_difference, panels
from convnext.explanation.structure import Block
from convnext.plotting import ORANGE, render
from convnext.quantities import quantity


def words(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].texts]


def told(table: Table) -> str:
    console = Console(width=200)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


def outlined(figure: Figure, style: str) -> int:
    """How many boxes have an orange outline of a style."""
    boxes = [patch for patch in figure.axes[0].patches if isinstance(patch, FancyBboxPatch) and patch.zorder == 3]
    return sum(
        patch.get_linewidth() > 1 and (patch.get_linestyle() in ("-", "solid")) == (style == "solid") for patch in boxes
    )


@pytest.mark.parametrize("name", ["convnext_atto", "convnextv2_atto", "roadmap_micro/resnet", "torchvision/resnet18"])
def test_the_document_adds_up_to_the_cost(name: str) -> None:
    document, cost = architecture(name).to_dict(), convnext.cost(convnext.create_model(name))
    layers = [layer for part in document["parts"] for block in part["blocks"] for layer in block["layers"]]
    for key, whole in (("params", cost.params), ("macs", cost.macs)):
        assert sum(part[key] for part in document["parts"]) == whole == document[key]
        assert sum(layer[key] for layer in layers) == whole
    assert [layer["place"] for layer in layers] == list(range(len(layers)))


def test_every_layer_of_every_kind_of_block_is_drawn() -> None:
    shown = architecture("roadmap_micro/resnet")
    drawn = words(draw_architecture(shown))
    groups = [group for part in shown.structure.parts for group in part.distinct()]
    for text in {layer.text for layer in shown.structure.layers if layer.kind not in ("pool", "drop", "linear")}:
        count = sum(layer.text == text for group in groups for layer in group[-1].layers)
        there = [word for word in drawn if word.replace("\N{MULTIPLICATION SIGN}", "x") == text]
        assert len(there) == count, text
    assert f"{shown.structure.params:,} parameters, {shown.structure.macs:,} multiply-accumulates" in drawn[1]
    for part in shown.structure.parts:
        assert f"{quantity(part.macs)} MACs" in drawn
    assert "drop path 0.025" in drawn


def test_a_shortcut_with_layers_stands_beside_the_block() -> None:
    block = architecture("torchvision/resnet50").structure.stages[1].blocks[0]
    boxes = cells([block])
    aside = side_branches(boxes)
    assert [box.text for box in boxes if box.place in aside] == ["1\N{MULTIPLICATION SIGN}1, 512, /2", "BN"]
    (join,) = set(aside.values())
    assert next(box for box in boxes if box.place == join).kind == "add"
    mixed = architecture("torchvision/maxvit_t").structure.stages[0].blocks[0]
    boxes = cells([mixed])
    shortcut = [box.text for box in boxes if box.place in side_branches(boxes)]
    assert shortcut == ["3\N{MULTIPLICATION SIGN}3 average pool, /2", "1\N{MULTIPLICATION SIGN}1, 64"]
    plain = architecture("torchvision/resnet50").structure.stages[1].blocks[1]
    assert side_branches(cells([plain])) == {}


def test_a_long_block_keeps_its_ends() -> None:
    block = architecture("convnext_atto").structure.stages[0].blocks[0]
    boxes = cells([block], most=4)
    assert [box.text.replace("\N{MULTIPLICATION SIGN}", "x") for box in boxes] == [
        "d7x7, 40",
        "LN",
        "3 more layers",
        "LayerScale",
        "+",
    ]
    assert boxes[3].inputs == (boxes[2].place,)


@pytest.mark.parametrize(
    "name",
    [
        "convnextv2_atto",
        "convnext_isotropic_small",
        "roadmap_micro/separate_downsampling",
        pytest.param("torchvision/googlenet", marks=pytest.mark.slow),
    ],
)
def test_boxes_do_not_overlap_and_texts_fit_their_boxes(name: str) -> None:
    figure = draw_architecture(architecture(name))
    renderer = FigureCanvasAgg(figure).get_renderer()
    boxes = [p for p in figure.axes[0].patches if isinstance(p, FancyBboxPatch) and p.zorder == 3]
    extents = [box.get_window_extent(renderer) for box in boxes]
    for i, one in enumerate(extents):
        assert not any(one.overlaps(other) for other in extents[i + 1 :])
    whole = figure.bbox
    for text in figure.axes[0].texts:
        extent = text.get_window_extent(renderer)
        assert whole.x0 <= extent.x0
        assert extent.x1 <= whole.x1, text.get_text()
        around = [box for box in extents if box.contains(*extent.get_points().mean(0))]
        assert all(box.x0 <= extent.x0 and extent.x1 <= box.x1 for box in around), text.get_text()


def test_the_table_says_what_the_paper_says() -> None:
    text = told(architecture_table(architecture("convnext_tiny")))
    assert "9 \N{MULTIPLICATION SIGN} d7x7, 384 · LN · 1x1, 1536 · GELU · 1x1, 384 · LayerScale · +" in text
    assert "28.59 M" in text
    assert "4.456 G" in text


def test_two_steps_of_the_roadmap_differ_in_their_one_change() -> None:
    steps = convnext.roadmap("micro")
    for step in steps[1::4]:
        before = next(other for other in steps if other.key == step.before)
        found = difference(architecture(before.design), architecture(step.design))
        fields = {name for name, _, _ in found.design()}
        assert fields
        assert all(getattr(before.design, name) != getattr(step.design, name) for name in fields)
        assert any(pair.differs for pair in found.pairs)
    found = difference(architecture("roadmap_micro/gelu"), architecture("roadmap_micro/fewer_activations"))
    assert found.design() == [("activations", 3, 1)]
    assert {name: values for name, *values in found.counts()}["activations"] == [18, 6]
    assert [pair.title for pair in found.pairs if not pair.differs] == ["stem", "head"]
    text = told(difference_table(found))
    assert "the same" in text
    assert "stem, head" in text


def test_a_network_does_not_differ_from_itself() -> None:
    found = difference(architecture("convnext_atto"), architecture("convnext_atto"))
    assert not any(pair.differs for pair in found.pairs)
    figure = draw_difference(found)
    assert outlined(figure, "solid") == outlined(figure, "dashed") == 0
    assert not [text for text in figure.axes[0].texts if text.get_color() == ORANGE and text.get_text() != "bold"]


def test_what_differs_is_marked() -> None:
    """One GELU less behind the depthwise convolution, one less behind the addition; nothing else."""
    found = difference(architecture("roadmap_micro/gelu"), architecture("roadmap_micro/fewer_activations"))
    first, second = (typical(part)[0] for part in (found.pairs[1].first, found.pairs[1].second) if part)
    ours, theirs = marks(first, second)
    assert theirs == {}
    assert [(layer.text, ours[layer.place]) for layer in first.layers if layer.place in ours] == [
        ("GELU", "only"),
        ("GELU", "only"),
    ]
    assert outlined(draw_difference(found), "solid") == 4  # in the block, and in the one that leads into stage 2


def test_layers_are_paired_in_order_by_what_they_do() -> None:
    blocks: list[Block] = [
        typical(architecture(name).structure.stages[0])[0] for name in ("torchvision/resnet50", "convnext_tiny")
    ]
    pairs = [(one and one.text, other and other.text) for one, other in aligned(*(block.layers for block in blocks))]
    assert ("3x3, 64", "d7x7, 96") in pairs
    assert ("1x1, 256", "1x1, 96") in pairs
    assert (None, "LayerScale") in pairs
    assert ("+", "+") in pairs
    assert [one for one, _ in pairs if one] == [layer.text for layer in blocks[0].layers]
    assert [other for _, other in pairs if other] == [layer.text for layer in blocks[1].layers]


def test_resnet_beside_convnext_has_what_the_papers_figure_has() -> None:
    found = difference(architecture("torchvision/resnet50"), architecture("convnext_tiny"))
    titles = [panel.title for panel in panels(found)]
    assert titles == ["stem", "block of stage 1 (also of 2, 3, 4, in other widths)", "into stage 2", "head"]
    drawn = [word.replace("\N{MULTIPLICATION SIGN}", "x") for word in words(draw_difference(found))]
    for text in ("1x1, 64", "3x3, 64", "1x1, 256", "d7x7, 96", "1x1, 384", "1x1, 96", "2x2, 192, /2", "1x1, 512, /2"):
        assert text in drawn
    assert {"x 9", "x 6"} <= set(drawn)


def test_networks_with_other_numbers_of_stages_are_compared() -> None:
    found = difference(architecture("timm/vit_tiny_patch16_224"), architecture("convnext_isotropic_small"))
    assert [pair.title for pair in found.pairs] == ["stem", "stage 1", "head"]
    found = difference(architecture("convnext_isotropic_small"), architecture("convnext_atto"))
    assert next(pair.title for pair in found.pairs if pair.first is None) == "between stages 1 and 2"
    draw_difference(found)
    assert found.to_dict()["difference"]["parts"][2]["params"][0] is None


def test_a_run_a_file_and_a_tag_are_drawn(tmp_path: Path) -> None:
    model = convnext.create_model("convnext_atto", num_classes=7)
    convnext.save_weights(model, tmp_path / "seven.safetensors")
    shown = architecture(tmp_path / "seven.safetensors")
    assert shown.structure.params == convnext.cost(model).params
    assert shown.structure.parts[-1].shape == (7,)
    tagged = architecture("convnext_tiny.in22k")  # nothing is downloaded
    assert tagged.structure.stages[2].blocks[8].shape == (14, 14, 384)
    assert tagged.structure.parts[-1].shape == (21841,)
    assert architecture("timm/vit_tiny_patch16_384.augreg_in21k_ft_in1k").structure.image_size == (384, 384)


def test_wrong_words_are_refused() -> None:
    with pytest.raises(UsageError, match="did you mean convnext_tiny"):
        architecture("convnext_tinny")
    for name in ("convnext_tiny.nothing", "timm/resnet18.nothing", "torchvision/resnet18.nothing", "runs/none"):
        with pytest.raises(UsageError):
            architecture(name)
    with pytest.raises(UsageError, match="image size is 0"):
        architecture("convnext_tiny", 0)


def test_a_network_itself_and_other_sizes_are_drawn() -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.LazyLinear(2))
    model(torch.zeros(1, 3, 9, 9))
    shown: Architecture = architecture(model, 9)
    assert [part.title for part in shown.structure.parts] == ["stage 1", "head"]
    assert render(draw_architecture(shown), "png").startswith(b"\x89PNG")
