"""How alike the feature maps of two networks are: linear CKA between all their blocks, over batches of images.

Sources: Kornblith et al. 2019 (arXiv 1905.00414) for CKA; Nguyen et al. 2021 (arXiv 2010.15327) for its minibatch form,
whose estimator of HSIC (Song et al. 2012) is unbiased, so that batches add up.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from rich import box
from rich.table import Table
from rich.text import Text
from torch import Tensor, nn

from convnext.errors import RunError, UsageError
from convnext.models.structure import Structure, structure

LEAST_BATCH = 4  # images; the unbiased estimator divides by N - 3
BATCH_SIZE = 32


@dataclass(frozen=True)
class Point:
    """Where a network's features are taken.

    Attributes:
        path: the module whose output they are.
        stage: its stage, from 1 on.
        number: among those of its stage, from 1 on.
        is_end: whether it is the last of its stage.
    """

    path: str
    stage: int
    number: int
    is_end: bool

    @property
    def label(self) -> str:
        """Its name: stage 3, block 2."""
        return f"stage {self.stage}, block {self.number}"


@dataclass(frozen=True)
class Similarity:
    """Linear CKA between the blocks of two networks.

    Attributes:
        names: of the first and the second network.
        rows: the first network's blocks.
        columns: the second one's.
        values: (rows, columns), float64; 0 for unrelated features, 1 for the same up to rotation and scale. As an
            unbiased estimate it may lie a little outside; NaN where features are the same for all images.
        images: how many were compared.
        data: which these were, in words.
    """

    names: tuple[str, str]
    rows: tuple[Point, ...]
    columns: tuple[Point, ...]
    values: Tensor
    images: int
    data: str = ""

    def to_dict(self) -> dict[str, Any]:
        """The similarity as plain data: the document of ``convnext explain --similarity --json``."""
        return {
            "models": list(self.names),
            "measure": "linear CKA, unbiased",
            "images": self.images,
            "data": self.data,
            "rows": [point_dict(point) for point in self.rows],
            "columns": [point_dict(point) for point in self.columns],
            "values": [[value if math.isfinite(value) else None for value in row] for row in self.values.tolist()],
        }


def point_dict(point: Point) -> dict[str, Any]:
    """A point as plain data."""
    return {"stage": point.stage, "block": point.number, "module": point.path}


class MinibatchCKA:
    """Linear CKA between two lists of features, from batches: the same images in both lists.

    What a batch leaves behind is a number for each pair, so that memory depends on the batch alone.
    """

    def __init__(self) -> None:
        self.cross = self.first = self.second = torch.zeros((), dtype=torch.float64)
        self.images = 0

    def add(self, first: Sequence[Tensor], second: Sequence[Tensor]) -> None:
        """Add a batch by the :func:`centred_gram` matrices (N, N) of each list's features."""
        ours, theirs = (torch.stack(list(grams)).flatten(1) for grams in (first, second))  # (features, N * N)
        count = math.isqrt(ours.shape[1])
        weight = count / (count * (count - 3))  # the estimator's, by the batch's share of all images
        self.cross = self.cross + weight * (ours @ theirs.T)
        self.first = self.first + weight * ours.square().sum(1)
        self.second = self.second + weight * theirs.square().sum(1)
        self.images += count

    def values(self) -> Tensor:
        """CKA between each of the first list and each of the second, float64; NaN where features do not vary."""
        scale = (self.first[:, None] * self.second).sqrt()
        return torch.where(scale > 0, self.cross / scale, torch.nan)


def centred_gram(features: Tensor) -> Tensor:
    """The Gram matrix (N, N) of features (N, ...), float64, centred so that products of two estimate HSIC unbiasedly.

    The diagonal is 0, and every row and column adds up to 0. The mean over the images is taken off beforehand: the
    result does not depend on it, but rounding does.
    """
    count = len(features)
    if count < LEAST_BATCH:
        raise UsageError(f"{count} images are too few to compare features by, needs {LEAST_BATCH} or more at a time")
    flat = features.detach().flatten(1).float() if features.dtype != torch.float64 else features.detach().flatten(1)
    flat = flat - flat.mean(0)
    if not math.isfinite(flat.abs().max()):
        raise RunError("features are not finite: the network's weights are damaged")
    gram = (flat @ flat.T).double().cpu().fill_diagonal_(0)
    rows = gram.sum(1) / (count - 2)
    centred = gram - rows[:, None] - rows + gram.sum() / ((count - 1) * (count - 2))
    return centred.fill_diagonal_(0)


def similarity(
    first: nn.Module,
    second: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    names: tuple[str, str] = ("first", "second"),
    data: str = "",
) -> Similarity:
    """Compare the feature maps of two networks, block by block.

    Args:
        first: the one, in evaluation mode.
        second: the other; the same for the similarity of a network's blocks with each other.
        batches: the same pictures, prepared for each of the two networks: (N, C, H, W) twice, N from 4 on.
        names: of the networks.
        data: which pictures these are, in words.

    Raises:
        UsageError: there are no images, or a batch has fewer than four.
        RunError: features are not finite.
    """
    cka = MinibatchCKA()
    ours: list[Point] = []
    theirs: list[Point] = []
    for images, others in batches:
        ours = ours or points(structure(first, (images.shape[2], images.shape[3])))
        theirs = theirs or points(structure(second, (others.shape[2], others.shape[3])))
        grams = grams_of(first, ours, images)
        cka.add(grams, grams if second is first and others is images else grams_of(second, theirs, others))
    if not cka.images:
        raise UsageError("there are no images to compare two networks on")
    return Similarity(names, tuple(ours), tuple(theirs), cka.values(), cka.images, data)


def points(found: Structure) -> list[Point]:
    """The ends of a network's blocks, in order; of a network without blocks, those of its convolutions."""
    rows: list[Point] = []
    for stage, part in enumerate(found.stages, start=1):
        paths = [block.path for block in part.blocks if block.path]
        if not paths:
            layers = [layer for block in part.blocks for layer in block.layers]
            paths = [layer.path for layer in layers if layer.kind in ("convolution", "linear")]
        rows += [Point(path, stage, i, i == len(paths)) for i, path in enumerate(dict.fromkeys(paths), start=1)]
    if not rows:
        raise UsageError("this network has no blocks whose features could be compared")
    return rows


@torch.inference_mode()
def grams_of(model: nn.Module, where: Sequence[Point], images: Tensor) -> list[Tensor]:
    """The centred Gram matrices of a network's features at some points; each map is let go as soon as it is used."""
    found: dict[str, Tensor] = {}
    with seen(model, [point.path for point in where], found):
        model(images)
    return [found[point.path] for point in where]


@contextmanager
def seen(model: nn.Module, paths: Sequence[str], found: dict[str, Tensor]) -> Iterator[None]:
    """Put the Gram matrix of what each module puts out into ``found``."""

    def see(path: str, module: nn.Module, inputs: Any, output: Any) -> None:  # noqa: ARG001
        found[path] = centred_gram(output)

    handles = [model.get_submodule(path).register_forward_hook(partial(see, path)) for path in paths]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def evenly(count: int, most: int = BATCH_SIZE) -> list[int]:
    """The sizes of batches of nearly equal size, of at most ``most``: a small last one would be a noisy estimate."""
    number = max(1, math.ceil(count / most))
    return [count // number + (i < count % number) for i in range(number)]


def similarity_table(found: Similarity) -> Table:
    """The similarity between the ends of the stages, for a terminal."""
    title = f"{found.names[0]} (rows) and {found.names[1]} (columns): linear CKA over {found.images} images"
    table = Table(title=Text(title), box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    ends = [(i, point) for i, point in enumerate(found.columns) if point.is_end]
    table.add_column("end of")
    for _, point in ends:
        table.add_column(f"stage {point.stage}", justify="right", no_wrap=True)
    for row, point in enumerate(found.rows):
        if point.is_end:
            cells = (found.values[row, column].item() for column, _ in ends)
            table.add_row(f"stage {point.stage}", *(f"{value:.2f}" if math.isfinite(value) else "-" for value in cells))
    return table
