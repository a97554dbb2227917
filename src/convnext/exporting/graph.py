"""The network as it stands in a file: with its constants folded, without gradients, from images or from pictures."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from convnext.acceleration.folding import folded
from convnext.data.preprocessing import Preprocessing
from convnext.errors import UsageError, reason
from convnext.inference.card import Card
from convnext.inference.runtime import input_of

CALIBRATION_BATCH = 8
GREY = (19595, 38470, 7471)  # Pillow's weights of red, green and blue, in 65536ths


class Graph(nn.Module):
    """From images (N, C, H, W) in fp32 to logits (N, classes) in fp32.

    Args:
        model: the network; left as it is.
        dtype: that it computes in.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.dtype = dtype
        self.network = folded(model).to(dtype=dtype, memory_format=torch.contiguous_format)  # pyright: ignore
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Logits of images."""
        return self.network(images.to(self.dtype)).float()


class PicturesGraph(nn.Module):
    """From pictures (N, H, W, 3), uint8 in RGB and cut to the network's size, to probabilities (N, classes) in fp32.

    Args:
        graph: the network.
        preprocessing: what the network's images are normalised by.
    """

    def __init__(self, graph: nn.Module, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.inner = graph  # not "graph": torch.export takes that for its own
        self.grey = preprocessing.channels == 1
        for name, values in (("mean", preprocessing.mean), ("std", preprocessing.std), ("weights", GREY)):
            dtype = torch.int32 if name == "weights" else torch.float32
            self.register_buffer(name, torch.tensor(values, dtype=dtype).view(1, -1, 1, 1), persistent=False)
        self.eval()

    def forward(self, pictures: Tensor) -> Tensor:
        """Probabilities of pictures."""
        x = pictures.permute(0, 3, 1, 2)  # (N, 3, H, W)
        mean, std, weights = (self.get_buffer(name) for name in ("mean", "std", "weights"))
        if self.grey:  # as Pillow makes it, which is what the network was trained on
            x = (x.to(torch.int32) * weights).sum(1, keepdim=True, dtype=torch.int32) + 32768
            x = torch.div(x, 65536, rounding_mode="floor")
        return self.inner((x.float() / 255 - mean) / std).softmax(1)


def graph_of(model: nn.Module, card: Card, dtype: torch.dtype = torch.float32) -> nn.Module:
    """The graph that a card describes, of a network."""
    graph = Graph(model, dtype)
    return PicturesGraph(graph, card.preprocessing) if card.with_preprocessing else graph


def example_of(card: Card) -> Tensor:
    """An input of a graph; where any number or size will do, of 2 and of sides that differ."""
    count = card.batch or 2
    height, width = (card.size, card.size) if card.size else (2 * card.smallest, 3 * card.smallest)
    generator = torch.Generator().manual_seed(0)
    if card.with_preprocessing:
        return torch.randint(256, (count, height, width, 3), dtype=torch.uint8, generator=generator)
    return torch.randn(count, card.channels, height, width, generator=generator)


def shapes_of(card: Card) -> Any:
    """Which of the input's dimensions are any."""
    dim = torch.export.Dim
    first = 1 if card.with_preprocessing else 2
    found: dict[int, Any] = {} if card.batch else {0: dim("batch")}
    if not card.size:
        sides = (first, "height"), (first + 1, "width")
        found |= {place: dim(name, min=card.smallest) for place, name in sides}
    return found


def program_of(graph: nn.Module, card: Card) -> torch.export.ExportedProgram:
    """A graph as torch exports it, for the shapes that a card says.

    Raises:
        UsageError: the network cannot be exported for them.
    """
    try:
        with torch.no_grad(), nullcontext() if card.size else any_size():
            program = torch.export.export(
                graph,
                (example_of(card),),
                dynamic_shapes=(shapes_of(card),),
                prefer_deferred_runtime_asserts_over_guards=not card.size,
            )
    except Exception as error:  # the exporter's kinds are many, and the network may be any library's
        asked = f"batch {card.batch or 'dynamic'} and size {card.size or 'dynamic'}"
        remedy = "give --size N and --batch N" if not (card.size and card.batch) else "it has no form for this format"
        raise UsageError(f"{card.model} cannot be exported with {asked} ({reason(error)}): {remedy}") from error
    for node in program.graph.nodes:  # which name files of the machine that it is made on
        node.meta.pop("stack_trace", None)
    return program


@contextmanager
def any_size() -> Iterator[None]:
    """Let the exporter take no size for another than one: it would else refuse the smallest maps, of one position."""
    from torch.fx.experimental import _config as symbolic_shapes  # which takes its time

    with symbolic_shapes.patch(backed_size_oblivious=True):  # pyright: ignore[reportAttributeAccessIssue]
        yield


def batches_of(images: Tensor, card: Card) -> list[Tensor]:
    """What a graph takes, of images to calibrate with: a few at a time, or as many as it takes, the last batch filled
    with those of the first."""
    inputs, count = input_of(images, card), card.batch or CALIBRATION_BATCH
    if card.batch:
        inputs = inputs[torch.arange(-(-len(inputs) // count) * count) % len(inputs)]
    return list(inputs.split(count))
