"""A program of ``torch.export``: opened by torch, on any machine that has it."""

import json
import warnings
import zipfile
from pathlib import Path

import torch
from torch import Tensor

from convnext.deploy.export.graph import graph_of, program_of
from convnext.deploy.export.order import Loaded, Order, Written
from convnext.files import writing

CARD = "convnext.json"  # among a .pt2 file's extra files
LARGEST_CARD = 50_000_000  # bytes


def write(order: Order) -> Written:
    """Write the file."""
    dtype = torch.bfloat16 if order.card.precision == "bf16" else torch.float32
    program = program_of(graph_of(order.model, order.card, dtype), order.card)
    document = json.dumps(order.card.to_metadata())
    with writing(order.path, sum(tensor.nbytes for tensor in program.state_dict.values())):
        torch.export.save(program, order.path, extra_files={CARD: document})
    return Written([order.path])


def load(path: Path) -> Loaded:
    """Open a file that is trusted: torch unpickles parts of it."""
    metadata = read_extra(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.load(path)
    network = program.module()
    node = next(node for node in program.graph.nodes if node.name in program.graph_signature.user_inputs)
    example = node.meta["val"]

    def call(images: Tensor) -> Tensor:
        return network(images)

    shape = tuple(side if isinstance(side, int) else None for side in example.shape)
    return Loaded(call, metadata, (shape, str(example.dtype).removeprefix("torch.")))


def read_extra(path: Path) -> dict[str, str]:
    """What a ``.pt2`` file says of itself, read without opening the rest.

    Raises:
        ValueError: it is damaged.
    """
    with zipfile.ZipFile(path) as archive:
        found = [entry for entry in archive.infolist() if entry.filename.endswith(f"/extra/{CARD}")]
        if not found:
            return {}
        if found[0].file_size > LARGEST_CARD:
            raise ValueError(f"its {CARD} takes {found[0].file_size:,} bytes")
        document = json.loads(archive.read(found[0]))
    if not isinstance(document, dict) or not all(isinstance(text, str) for text in document.values()):
        raise ValueError(f"its {CARD} is no object of words")
    return document


def is_package(path: Path) -> bool:
    """Whether a ``.pt2`` file is a package of AOTInductor, with machine code, not a program."""
    with zipfile.ZipFile(path) as archive:
        return any("/data/aotinductor/" in name for name in archive.namelist())
