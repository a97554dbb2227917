"""The formats by name: what each can hold, and what writes it."""

import importlib
from dataclasses import dataclass
from typing import Any

from convnext.environment import check_installed
from convnext.errors import UsageError, unknown_name
from convnext.exporting.job_types import Order, Written

PRECISIONS = ("fp32", "bf16", "int8")


@dataclass(frozen=True)
class Format:
    """A format. What writes it, ``NAME_format.py``, loads when it is first used; `inference/exported.py` opens it.

    Attributes:
        name: what a user calls it.
        suffix: of its files.
        precisions: that it can hold.
        packages: that writing it takes beside this package's own, of an ``extra``.
        extra: what they are installed by.
        int8: the package that int8 takes as well, and its extra.
        is_data: whether a file of it can run no code when it is opened.
    """

    name: str
    suffix: str
    precisions: tuple[str, ...] = PRECISIONS
    packages: tuple[str, ...] = ()
    extra: str = ""
    int8: tuple[str, str] | None = None
    is_data: bool = True

    def check(self, precision: str) -> None:
        """Refuse to write in a precision where a package is missing.

        Raises:
            UsageError: with what to install.
        """
        for package in self.packages:
            check_installed(package, self.extra)
        if precision == "int8" and self.int8:
            check_installed(*self.int8)

    def write(self, order: Order) -> Written:
        """Write a file."""
        return self.module.write(order)

    @property
    def module(self) -> Any:
        """What writes it."""
        return importlib.import_module(f"convnext.exporting.{self.name}_format")


ONNX = Format("onnx", ".onnx", packages=("onnx", "onnxscript", "onnxslim", "onnxruntime"), extra="onnx")
TORCH = Format("torch", ".pt2", ("fp32", "bf16"), is_data=False)
OPENVINO = Format("openvino", ".xml", packages=("openvino",), extra="openvino", int8=("nncf", "openvino"))

FORMATS = {one.name: one for one in (ONNX, TORCH, OPENVINO)}


def format_named(name: str, precision: str) -> Format:
    """A format that can hold a precision.

    Raises:
        UsageError: either is unknown, or they do not go together; the message names what does.
    """
    if name not in FORMATS:
        raise unknown_name("format", name, FORMATS)
    if precision not in PRECISIONS:
        raise unknown_name("precision", precision, PRECISIONS)
    if precision not in FORMATS[name].precisions:
        able = [one.name for one in FORMATS.values() if precision in one.precisions]
        raise UsageError(
            f"format {name} has no {precision} that is faster or smaller than its fp32: {', '.join(able)} have it"
        )
    return FORMATS[name]
