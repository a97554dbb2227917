"""The drawing: every kind of block once, what differs marked, nothing over anything else."""

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from convnext.explanation.architecture_figure import draw_architecture, panels
from convnext.explanation.difference import paired_parts
from convnext.plotting import ORANGE
from tests.explanation.test_architecture import read


def drawn(figure: Figure) -> list[str]:
    return [text.get_text().replace("\N{MULTIPLICATION SIGN}", "x") for text in figure.axes[0].texts]


def boxes(figure: Figure) -> list[FancyBboxPatch]:
    return [patch for patch in figure.axes[0].patches if isinstance(patch, FancyBboxPatch) and patch.zorder == 3]


def test_resnet_beside_convnext_has_what_the_papers_figure_has() -> None:
    models = read("roadmap_tiny/resnet"), read("convnext_tiny")
    titles = [title for title, _ in panels(paired_parts(models))]
    assert titles == ["stem", "block of stage 1, 2, 3, 4", "into stage 2", "head"]
    words = drawn(draw_architecture(*models))
    for text in ("1x1, 64", "3x3, 64", "1x1, 256", "d7x7, 96", "1x1, 384", "1x1, 96", "2x2, 192, /2", "1x1, 512, /2"):
        assert text in words
    assert {"x 9", "x 6", "3x3 max-pool, /2", "2.114 G MACs"} <= set(words)


def test_what_differs_is_marked() -> None:
    """One GELU fewer after the depthwise convolution, one fewer after the addition."""
    models = read("roadmap_micro/gelu"), read("roadmap_micro/fewer_activations")
    only = [box for box in boxes(draw_architecture(*models)) if box.get_linewidth() > 1.7]
    assert len(only) == 2 * len([title for title, _ in panels(paired_parts(models)) if "stage" in title]) + 1
    same = draw_architecture(models[0], models[0])
    assert [box for box in boxes(same) if box.get_linewidth() > 1] == boxes(same)[:2]  # the legend's
    assert [text.get_text() for text in same.axes[0].texts if text.get_color() == ORANGE] == ["bold"]


@pytest.mark.parametrize(
    "names",
    [
        ["convnextv2_atto"],
        ["convnext_isotropic_small"],
        ["roadmap_micro/fewer_norms"],
        ["roadmap_micro/resnet", "roadmap_micro/separate_downsampling"],
    ],
)
def test_boxes_do_not_overlap_and_texts_fit_their_boxes(names: list[str]) -> None:
    figure = draw_architecture(*map(read, names))
    renderer = FigureCanvasAgg(figure).get_renderer()
    extents = [box.get_window_extent(renderer) for box in boxes(figure)]
    for i, one in enumerate(extents):
        assert not any(one.overlaps(other) for other in extents[i + 1 :])
    for text in figure.axes[0].texts:
        extent = text.get_window_extent(renderer)
        assert figure.bbox.x0 <= extent.x0
        assert extent.x1 <= figure.bbox.x1, text.get_text()
        around = [box for box in extents if box.contains(*extent.get_points().mean(0))]
        assert all(box.x0 <= extent.x0 and extent.x1 <= box.x1 for box in around), text.get_text()
