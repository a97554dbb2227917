"""The formats of exported files, and the request that each of them writes."""

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from convnext.environment import check_installed
from convnext.errors import UsageError, unknown_name
from convnext.inference.card import Card

PRECISIONS = ("fp32", "bf16", "int8")


@dataclass(frozen=True)
class ExportRequest:
    """A file to write.

    Attributes:
        model: in fp32 on the CPU; not changed.
        card: metadata of the file.
        path: the file, in an empty folder, which may get further files of the format.
        calibration: prepared images (N, C, H, W) for int8.
    """

    model: nn.Module
    card: Card
    path: Path
    calibration: Tensor | None = None


class WrittenFiles(NamedTuple):
    """All files of an export, the one that a user names last; and remarks on them."""

    paths: list[Path]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Format:
    """A format. Its writer, ``NAME_format.py``, is imported on first use.

    Attributes:
        name: as on the command line.
        suffix: of its files.
        precisions: that it can hold.
        packages: required for writing, from an ``extra``.
        extra: of this package.
        int8: further package required for int8, and its extra.
        is_data: False if opening a file may run code that is in it.
    """

    name: str
    suffix: str
    precisions: tuple[str, ...] = PRECISIONS
    packages: tuple[str, ...] = ()
    extra: str = ""
    int8: tuple[str, str] | None = None
    is_data: bool = True

    def check_packages(self, precision: str) -> None:
        """Raise UsageError if a package that writes this precision is not installed."""
        for package in self.packages:
            check_installed(package, self.extra)
        if precision == "int8" and self.int8:
            check_installed(*self.int8)

    def write(self, request: ExportRequest) -> WrittenFiles:
        """Write a file."""
        module: Any = importlib.import_module(f"convnext.exporting.{self.name}_format")
        return module.write(request)

    def default_path(self, reference: str, folder: Path | None, precision: str) -> Path:
        """Return the file for a model reference whose run is in a folder: ``model.onnx``, ``model-int8.onnx``.

        It is in the run's folder, beside a weights file, or for published weights in the current folder.
        """
        end = self.suffix if precision == "fp32" else f"-{precision}{self.suffix}"
        source = Path(reference)
        if folder is not None:
            return folder / f"model{end}"
        if source.is_file():
            return source.with_name(f"{source.stem}{end}")
        return source / f"model{end}" if source.is_dir() else Path(f"{reference.replace('/', '-')}{end}")

    def check_path(self, out: Path) -> Path:
        """Return a path for a file of this format; raise UsageError if it has another suffix or is a folder."""
        if out.suffix.lower() != self.suffix:
            raise UsageError(f"--out {out} does not fit format {self.name}: end it in {self.suffix}")
        if out.is_dir():
            raise UsageError(f"--out {out} is a folder: pass a file name")
        return out


FORMATS = {
    one.name: one
    for one in (
        Format("onnx", ".onnx", packages=("onnx", "onnxscript", "onnxslim", "onnxruntime"), extra="onnx"),
        Format("torch", ".pt2", ("fp32", "bf16"), is_data=False),
        Format("openvino", ".xml", packages=("openvino",), extra="openvino", int8=("nncf", "openvino")),
    )
}


def find_format(name: str, precision: str) -> Format:
    """Return a format that can hold a precision.

    Raises:
        UsageError: either is unknown, or the format does not have the precision; the message names those that do.
    """
    if name not in FORMATS:
        raise unknown_name("format", name, FORMATS)
    if precision not in PRECISIONS:
        raise unknown_name("precision", precision, PRECISIONS)
    if precision not in FORMATS[name].precisions:
        others = ", ".join(one.name for one in FORMATS.values() if precision in one.precisions)
        raise UsageError(f"format {name} has no {precision}: it would be neither faster nor smaller; pass {others}")
    return FORMATS[name]
