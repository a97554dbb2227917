"""The sheet of depthwise kernels: a row a stage, its first and last block beside one another."""

import matplotlib
import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from convnext.explanation.depthwise_kernels import SHOWN, BlockKernels, Kernels
from convnext.explanation.found import shown
from convnext.plotting import STYLE

ACROSS = 8  # kernels in a row
CLIPPED = 0.5  # % of the weights shown may be beyond the scale's ends


def draw_kernels(kernels: Kernels) -> Figure:
    """The first and the last block of each stage, on one scale."""
    stages: dict[int, list[BlockKernels]] = {}
    for block in kernels.blocks:
        stages.setdefault(block.stage, []).append(block)
    ends = [block for found in stages.values() for block in (found[:1] if len(found) == 1 else [found[0], found[-1]])]
    columns = min(2, len(ends))
    rows = -(-len(ends) // columns)
    values = np.concatenate([block.chosen().abs().flatten().numpy() for block in ends])
    limit = float(np.percentile(values, 100 - CLIPPED)) or 1.0
    norm = Normalize(-limit, limit)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(1.4 + 3.6 * columns, 1.1 + 1.65 * rows), layout="constrained")
        panels = figure.subplots(rows, columns, squeeze=False, gridspec_kw={"wspace": 0.08})
        for axes in panels.flat:
            axes.set_axis_off()
        for axes, block in zip(panels.flat, ends, strict=False):
            axes.imshow(sheet(block), cmap="RdBu_r", norm=norm, interpolation="nearest")
            size = block.weights.shape[-1]
            title = f"stage {block.stage}, block {block.block}: {size}x{size}, {len(block.weights)} channels"
            axes.set_title(title, fontsize=8)
        bar = figure.colorbar(ScalarMappable(norm, "RdBu_r"), ax=panels, shrink=0.7, aspect=30, extend="both")
        bar.set_label("weight (one scale for all)")
        figure.suptitle(
            f"depthwise kernels of {shown(kernels.name, 50)}\n{SHOWN} channels of a block at most, evenly through "
            "the order of their norm, the largest first",
            fontsize=9,
            parse_math=False,
        )
        return figure


def sheet(block: BlockKernels) -> np.ndarray:
    """The chosen kernels beside one another, with empty lines between them."""
    chosen = block.chosen().numpy()
    size = chosen.shape[-1] + 1
    down = -(-len(chosen) // ACROSS)
    canvas = np.full((down * size - 1, ACROSS * size - 1), np.nan, np.float32)
    for i, kernel in enumerate(chosen):
        top, left = i // ACROSS * size, i % ACROSS * size
        canvas[top : top + size - 1, left : left + size - 1] = kernel
    return canvas
