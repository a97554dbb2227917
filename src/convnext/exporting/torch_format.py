"""A program of ``torch.export``: opened by torch, on any machine that has it."""

import io
import json
from pathlib import Path

import torch
from torch import Tensor

from convnext.exporting.extras import hushed
from convnext.exporting.graph import graph_of, program_of
from convnext.exporting.job_types import Loaded, Order, Written
from convnext.exporting.pt2 import CARD, read_extra, write_bytes


def write(order: Order) -> Written:
    """Write the file."""
    dtype = torch.bfloat16 if order.card.precision == "bf16" else torch.float32
    program = program_of(graph_of(order.model, order.card, dtype), order.card)
    document = json.dumps(order.card.to_metadata())
    whole = io.BytesIO()  # torch, writing to a disk that is full, ends the process
    torch.export.save(program, whole, extra_files={CARD: document})
    write_bytes(order.path, whole)
    return Written([order.path])


def load(path: Path) -> Loaded:
    """Open a file that is trusted: torch unpickles parts of it."""
    metadata = read_extra(path)
    with hushed():
        program = torch.export.load(path)
    network = program.module()
    node = next(node for node in program.graph.nodes if node.name in program.graph_signature.user_inputs)
    example = node.meta["val"]

    def call(images: Tensor) -> Tensor:
        return network(images)

    shape = tuple(side if isinstance(side, int) else None for side in example.shape)
    return Loaded(call, metadata, (shape, str(example.dtype).removeprefix("torch.")))
