"""The formats by name: what each is for, what it can hold, and what writes and opens it."""

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convnext.errors import UsageError, unknown_name
from convnext.exporting.extras import check_installed
from convnext.exporting.job_types import Loaded, Order, Written

PRECISIONS = ("fp32", "bf16", "int8")


@dataclass(frozen=True)
class Format:
    """A format. What writes and opens it, ``NAME_format.py``, loads when it is first used.

    Attributes:
        name: what a user calls it.
        suffix: of its files.
        runtime: what opens it.
        precisions: that it can hold.
        packages: that writing it takes beside this package's own, of an ``extra``.
        extra: what they are installed by.
        int8: the package that int8 takes as well, and its extra.
        is_data: whether a file of it can run no code when it is opened.
    """

    name: str
    suffix: str
    runtime: str
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

    def check_runtime(self) -> None:
        """Refuse to open where the runtime is missing.

        Raises:
            UsageError: with what to install.
        """
        check_installed(self.runtime, self.extra)

    def write(self, order: Order) -> Written:
        """Write a file."""
        return self.module.write(order)

    def load(self, path: Path) -> Loaded:
        """Open a file."""
        return self.module.load(path)

    @property
    def module(self) -> Any:
        """What writes and opens it."""
        return importlib.import_module(f"convnext.exporting.{self.name}_format")


ONNX = Format("onnx", ".onnx", "onnxruntime", packages=("onnx", "onnxscript", "onnxslim", "onnxruntime"), extra="onnx")
TORCH = Format("torch", ".pt2", "torch", ("fp32", "bf16"), is_data=False)
AOTI = Format("aoti", ".pt2", "torch", int8=("torchao", "torchao"), is_data=False)
OPENVINO = Format("openvino", ".xml", "openvino", packages=("openvino",), extra="openvino", int8=("nncf", "openvino"))

FORMATS = {one.name: one for one in (ONNX, TORCH, AOTI, OPENVINO)}
SUFFIXES = tuple(dict.fromkeys(one.suffix for one in FORMATS.values()))


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
