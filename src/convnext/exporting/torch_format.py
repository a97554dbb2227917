"""Writer of ``torch.export`` programs, which torch opens on any machine."""

import io
import json

import torch

from convnext.exporting.formats import ExportRequest, WrittenFiles
from convnext.exporting.graph import export_program, make_graph
from convnext.files import writing
from convnext.inference.exported import METADATA_FILE


def write(request: ExportRequest) -> WrittenFiles:
    """Write a ``.pt2`` file."""
    dtype = torch.bfloat16 if request.card.precision == "bf16" else torch.float32
    program = export_program(make_graph(request.model, request.card, dtype), request.card)
    metadata = json.dumps(request.card.to_metadata())
    archive = io.BytesIO()  # torch aborts the process if it writes to a full disk itself
    torch.export.save(program, archive, extra_files={METADATA_FILE: metadata})
    content = archive.getbuffer()
    with writing(request.path, len(content)):
        request.path.write_bytes(content)
    return WrittenFiles([request.path])
