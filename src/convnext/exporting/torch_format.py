"""A program of ``torch.export``: opened by torch, on any machine that has it."""

import io
import json

import torch

from convnext.exporting.graph import graph_of, program_of
from convnext.exporting.job_types import Order, Written
from convnext.files import writing
from convnext.inference.exported import METADATA_FILE


def write(order: Order) -> Written:
    """Write the file."""
    dtype = torch.bfloat16 if order.card.precision == "bf16" else torch.float32
    program = program_of(graph_of(order.model, order.card, dtype), order.card)
    document = json.dumps(order.card.to_metadata())
    whole = io.BytesIO()  # torch, writing to a disk that is full, ends the process
    torch.export.save(program, whole, extra_files={METADATA_FILE: document})
    content = whole.getbuffer()
    with writing(order.path, len(content)):
        order.path.write_bytes(content)
    return Written([order.path])
