"""How alike the feature maps of two networks are: linear CKA between all their blocks, over batches of images."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import torch
from PIL import Image
from rich.table import Table
from rich.text import Text
from torch import Tensor, nn

from convnext.console import table_of
from convnext.device import choose_device
from convnext.errors import UsageError
from convnext.explanation.cka import LEAST_BATCH, MinibatchCKA, centred_gram, evenly
from convnext.explanation.feature_maps import as_map, watching
from convnext.explanation.study_images import sample
from convnext.inference.model import Model, resolve
from convnext.training.blocks import blocks

MOST = 128  # images; more change the values little


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
        notes: what should be said.
    """

    names: tuple[str, str]
    rows: tuple[Point, ...]
    columns: tuple[Point, ...]
    values: Tensor
    images: int
    data: str = ""
    notes: tuple[str, ...] = ()
    file = "similarity"

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


def similarity(first: str, second: str | None = None, data: str | None = None, device: str = "auto") -> Similarity:
    """Compare the feature maps of two networks, block by block, over at most 128 pictures.

    Both networks see the same pictures, each prepared as it was trained to see them. Features are whole maps; of these
    a batch of 32 is held, of one block at a time.

    Args:
        first: a run, weights, or a network's name, which is untrained.
        second: another; None for the first with initial weights, or where it has these, for its blocks with each other.
        data: images, a folder of these or a data set's name; None for those that the first network's run held out, or
            else the second's, or else pieces of two photographs.
        device: auto (a GPU where there is one), cpu, cuda, mps or xpu.

    Raises:
        UsageError: there is no such network or data, or fewer than four images.
        RunError: a file is damaged, or features are not finite.
    """
    torch_device = choose_device(device)
    one = resolve(first, "named")
    other = resolve(second, "named") if second is not None and second != first else one
    if second is None and one.is_trained:
        other = replace(one, name=f"{first}, untrained", module=one.untrained(), is_trained=False, notes=())
    name, pairs, unreadable = pictures(one, other, data)
    if len(pairs) < LEAST_BATCH:
        raise UsageError(
            f"{name} has {len(pairs)} images that can be read, needs {LEAST_BATCH} or more: name other data"
        )
    batches = ((ours.to(torch_device), theirs.to(torch_device)) for ours, theirs in batched_pairs(pairs))
    models = (one.module.to(torch_device), other.module.to(torch_device))
    notes = tuple(dict.fromkeys([*one.notes, *other.notes, *unreadable]))
    return compare(*models, batches, (one.name, other.name), name, notes)


def pictures(one: Model, other: Model, data: str | None) -> tuple[str, list[tuple[Tensor, Tensor]], list[str]]:
    """Pictures prepared for each of two networks, evenly spread over what there is.

    Returns:
        What they are, in words; a pair (C, H, W) for each; which could not be read.
    """
    whose = one if one.recipe is not None else other

    def pair(picture: Image.Image) -> tuple[Tensor, Tensor]:
        image = one.preprocessing(picture)
        return image, image if other.preprocessing == one.preprocessing else other.preprocessing(picture)

    return sample(whose, data, MOST, pair)


def batched_pairs(pairs: Sequence[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
    """Pairs of images as pairs of batches of nearly equal size."""
    begin = 0
    for size in evenly(len(pairs)):
        ours, theirs = zip(*pairs[begin : begin + size], strict=True)
        yield torch.stack(ours), torch.stack(theirs)
        begin += size


def compare(
    first: nn.Module,
    second: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    names: tuple[str, str] = ("first", "second"),
    data: str = "",
    notes: tuple[str, ...] = (),
) -> Similarity:
    """Compare the feature maps of two networks, block by block.

    Args:
        first: the one, in evaluation mode.
        second: the other; the same for the similarity of a network's blocks with each other.
        batches: the same pictures, prepared for each of the two networks: (N, C, H, W) twice, N from 4 on.
        names: of the networks.
        data: which pictures these are, in words.
        notes: what should be said.

    Raises:
        UsageError: there are no images, or a batch has fewer than four.
        RunError: features are not finite.
    """
    cka = MinibatchCKA()
    ours: list[Point] = []
    theirs: list[Point] = []
    for images, others in batches:
        ours = ours or points(first, images)
        theirs = theirs or points(second, others)
        grams = grams_of(first, ours, images)
        cka.add(grams, grams if second is first and torch.equal(others, images) else grams_of(second, theirs, others))
    if not cka.images:
        raise UsageError("there are no images to compare two networks on")
    return Similarity(names, tuple(ours), tuple(theirs), cka.values(), cka.images, data, notes)


def points(model: nn.Module, images: Tensor) -> list[Point]:
    """The ends of a model's blocks, in order; of a model without blocks, its convolutions.

    A stage of another library's model ends where the next block's feature map has another size.
    """
    places = blocks(model) or {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Conv2d)}
    sizes: dict[str, tuple[int, ...]] = {}

    def see(name: str, output: Any) -> None:
        feature_map = as_map(output, (images.shape[2], images.shape[3]), least=1)
        sizes[name] = () if feature_map is None else tuple(feature_map.shape[2:])

    with torch.inference_mode(), watching(places, see):
        model(images[:1])
    stages = [list(names) for _, names in groupby(sizes, key=lambda name: sizes[name])]
    if not stages:
        raise UsageError(f"{type(model).__name__} has no blocks whose features could be compared")
    return [
        Point(name, stage, number, number == len(names))
        for stage, names in enumerate(stages, start=1)
        for number, name in enumerate(names, start=1)
    ]


@torch.inference_mode()
def grams_of(model: nn.Module, where: Sequence[Point], images: Tensor) -> list[Tensor]:
    """The centred Gram matrices of a network's features at some points; each map is let go as soon as it is used."""
    found: dict[str, Tensor] = {}

    def see(path: str, output: Tensor) -> None:
        found[path] = centred_gram(output)

    with watching({point.path: model.get_submodule(point.path) for point in where}, see):
        model(images)
    return [found[point.path] for point in where]


def similarity_table(found: Similarity) -> Table:
    """The similarity between the ends of the stages, for a terminal."""
    lines = (f"linear CKA, {found.images} images", f"rows: {found.names[0]}", f"columns: {found.names[1]}")
    table = table_of(Text("\n".join(lines)), title_justify="left", min_width=max(map(len, lines)))
    ends = [(i, point) for i, point in enumerate(found.columns) if point.is_end]
    table.add_column("end of")
    for _, point in ends:
        table.add_column(f"stage {point.stage}", justify="right", no_wrap=True)
    for row, point in enumerate(found.rows):
        if point.is_end:
            cells = (found.values[row, column].item() for column, _ in ends)
            table.add_row(f"stage {point.stage}", *(f"{value:.2f}" if math.isfinite(value) else "-" for value in cells))
    return table
