"""What the figures share: colours, style, and files that are the same for the same content."""

import io
import warnings
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from convnext.files import write_atomically

BLUE, LIGHT_BLUE, ORANGE, GREY = "#0072B2", "#9BC4DE", "#D55E00", "#555555"  # told apart by the colour-blind as well
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.fonttype": "path",
    "svg.hashsalt": "",
}


def render(figure: Figure, image_format: str) -> bytes:
    """The figure as a file of ``png`` or ``svg``; the same bytes for the same results."""
    buffer = io.BytesIO()
    metadata = {"Date": None} if image_format == "svg" else None
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # a box stands for the letter
        figure.savefig(buffer, format=image_format, dpi=150, facecolor="white", metadata=metadata)
    return buffer.getvalue()


def write_figure(figure: Figure, path: Path) -> bytes:
    """Write a figure as ``path`` with the suffixes ``.png`` and ``.svg``; returns the latter's content."""
    svg = render(figure, "svg")
    write_atomically(path.with_suffix(".png"), render(figure, "png"))
    write_atomically(path.with_suffix(".svg"), svg)
    return svg


def shortened(text: str, letters: int) -> str:
    """A text of at most so many letters; of a long one the beginning and the end, which tell names and paths apart."""
    text = " ".join(text.split())
    if len(text) <= letters:
        return text
    end = (letters - 1) // 2
    return f"{text[: letters - 1 - end]}…{text[-end:]}"
