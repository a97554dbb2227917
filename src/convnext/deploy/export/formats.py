"""The formats by name: what each is for, what it can hold, and what writes and opens it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from convnext.deploy.export import aoti_format, onnx_format, openvino_format, torch_format
from convnext.deploy.export.extras import needed
from convnext.deploy.export.order import Loaded, Order, Written
from convnext.errors import UsageError, unknown_name

PRECISIONS = ("fp32", "bf16", "int8")


@dataclass(frozen=True)
class Format:
    """A format.

    Attributes:
        name: what a user calls it.
        suffix: of its files.
        runtime: what opens it.
        write: writes a file.
        load: opens one.
        precisions: that it can hold.
        packages: that writing it takes beside this package's own, of an ``extra``.
        extra: what they are installed by.
        is_data: whether a file of it can run no code when it is opened.
    """

    name: str
    suffix: str
    runtime: str
    write: Callable[[Order], Written]
    load: Callable[[Path], Loaded]
    precisions: tuple[str, ...] = PRECISIONS
    packages: tuple[str, ...] = ()
    extra: str = ""
    is_data: bool = True

    def check(self) -> None:
        """Refuse to write where a package is missing.

        Raises:
            UsageError: with what to install.
        """
        for package in self.packages:
            needed(package, self.extra)

    def check_runtime(self) -> None:
        """Refuse to open where the runtime is missing.

        Raises:
            UsageError: with what to install.
        """
        needed(self.runtime, self.extra)


ONNX = Format(
    "onnx", ".onnx", "onnxruntime", onnx_format.write, onnx_format.load,
    packages=onnx_format.PACKAGES, extra=onnx_format.EXTRA,
)  # fmt: skip
TORCH = Format("torch", ".pt2", "torch", torch_format.write, torch_format.load, ("fp32", "bf16"), is_data=False)
AOTI = Format("aoti", ".pt2", "torch", aoti_format.write, aoti_format.load, ("fp32", "bf16"), is_data=False)
OPENVINO = Format(
    "openvino", ".xml", "openvino", openvino_format.write, openvino_format.load, ("fp32",),
    packages=openvino_format.PACKAGES, extra=openvino_format.EXTRA,
)  # fmt: skip

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
        raise UsageError(f"format {name} has no {precision} that a runtime would run: {', '.join(able)} have it")
    return FORMATS[name]
