"""The graph of an exported file: constants folded, no gradients, from normalized images or from uint8 images."""

from contextlib import nullcontext
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
    """From images (N, C, H, W) in fp32 to logits (N, classes) in fp32, computed in ``dtype``; the model is copied."""

    def __init__(self, model: nn.Module, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.dtype = dtype
        self.network = folded(model).to(dtype=dtype, memory_format=torch.contiguous_format)  # pyright: ignore
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits."""
        return self.network(images.to(self.dtype)).float()


class Uint8Graph(nn.Module):
    """From RGB images (N, H, W, 3) in uint8, resized and cropped, to probabilities (N, classes) in fp32."""

    def __init__(self, graph: nn.Module, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.inner = graph  # torch.export reserves the name "graph"
        self.is_grayscale = preprocessing.channels == 1
        for name, values in (("mean", preprocessing.mean), ("std", preprocessing.std), ("weights", GREY)):
            dtype = torch.int32 if name == "weights" else torch.float32
            self.register_buffer(name, torch.tensor(values, dtype=dtype).view(1, -1, 1, 1), persistent=False)
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Return the probabilities."""
        x = images.permute(0, 3, 1, 2)  # (N, 3, H, W)
        mean, std, weights = (self.get_buffer(name) for name in ("mean", "std", "weights"))
        if self.is_grayscale:  # Pillow's conversion, on which the model was trained
            x = (x.to(torch.int32) * weights).sum(1, keepdim=True, dtype=torch.int32) + 32768  # (N, 1, H, W)
            x = torch.div(x, 65536, rounding_mode="floor")
        return self.inner((x.float() / 255 - mean) / std).softmax(1)


def make_graph(model: nn.Module, card: Card, dtype: torch.dtype = torch.float32) -> nn.Module:
    """Return the graph that a card describes."""
    graph = Graph(model, dtype)
    return Uint8Graph(graph, card.preprocessing) if card.with_preprocessing else graph


def example_input(card: Card) -> Tensor:
    """Return an input of the graph: with 2 images of different sides where those are dynamic."""
    count = card.batch or 2
    height, width = (card.size, card.size) if card.size else (2 * card.smallest, 3 * card.smallest)
    generator = torch.Generator().manual_seed(0)
    if card.with_preprocessing:
        return torch.randint(256, (count, height, width, 3), dtype=torch.uint8, generator=generator)
    return torch.randn(count, card.channels, height, width, generator=generator)


def dynamic_shapes(card: Card) -> dict[int, Any]:
    """Return the dynamic dimensions of the graph's input."""
    first = 1 if card.with_preprocessing else 2
    dims: dict[int, Any] = {} if card.batch else {0: torch.export.Dim("batch")}
    if not card.size:
        for place, name in ((first, "height"), (first + 1, "width")):
            dims[place] = torch.export.Dim(name, min=card.smallest)
    return dims


def export_program(graph: nn.Module, card: Card) -> torch.export.ExportedProgram:
    """Export a graph with ``torch.export``, for the shapes in a card.

    Raises:
        UsageError: the model cannot be exported for them.
    """
    from torch.fx.experimental import _config as symbolic_shapes  # a slow import

    # Otherwise the exporter assumes that no size is 1, and refuses the smallest feature maps.
    oblivious = symbolic_shapes.patch(backed_size_oblivious=True)  # pyright: ignore[reportAttributeAccessIssue]
    try:
        with torch.no_grad(), nullcontext() if card.size else oblivious:
            program = torch.export.export(
                graph,
                (example_input(card),),
                dynamic_shapes=(dynamic_shapes(card),),
                prefer_deferred_runtime_asserts_over_guards=not card.size,
            )
    except Exception as error:  # the exporter has many, and the model may be any library's
        shapes = f"batch {card.batch or 'dynamic'} and size {card.size or 'dynamic'}"
        remedy = "this format cannot hold it" if card.size and card.batch else "pass --size N and --batch N"
        raise UsageError(f"{card.model} cannot be exported with {shapes} ({reason(error)}): {remedy}") from error
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # it names files of this machine
    return program


def calibration_batches(images: Tensor, card: Card) -> list[Tensor]:
    """Return inputs of the graph for calibration; the last batch of a fixed size is filled up from the first."""
    inputs, count = input_of(images, card), card.batch or CALIBRATION_BATCH
    if card.batch:
        inputs = inputs[torch.arange(-(-len(inputs) // count) * count) % len(inputs)]
    return list(inputs.split(count))
