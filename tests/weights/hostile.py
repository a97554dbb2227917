"""Files that a stranger could make, for the tests of what is refused."""

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from convnext.models.convnext import ConvNeXt

NAMES = (b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch\nFloatStorage\n")
LAUGHS = b"X\x01\x00\x00\x00a" + b"q\x01h\x01\x86" * 60  # a tuple of two tuples of two tuples ...: 2 ** 60 words


def tiny(seed: int = 0, **options: Any) -> nn.Module:
    """A ConvNeXt that a file of 200 kB holds."""
    torch.manual_seed(seed)
    return ConvNeXt(depths=(1, 1, 1, 1), dims=(8, 16, 32, 64), num_classes=3, **options)


def document(*instructions: bytes) -> bytes:
    """A pickle of protocol 2."""
    return b"\x80\x02" + b"".join(instructions) + b"."


def whole(number: int) -> bytes:
    """The instruction that puts a whole number down."""
    return pickle.dumps(number, 2)[2:-1]


def tensor(values: int = 4, size: tuple[int, ...] = (4,), stride: tuple[int, ...] = (1,), offset: int = 0) -> bytes:
    """A dictionary of one tensor, of a storage that claims a number of values, as instructions."""
    shape, steps = (b"(" + b"".join(map(whole, numbers)) + b"t" for numbers in (size, stride))
    storage = (
        b"(X\x07\x00\x00\x00storage" + NAMES[1] + b"X\x01\x00\x00\x000X\x03\x00\x00\x00cpu" + whole(values) + b"tQ"
    )
    hooks = b"ccollections\nOrderedDict\n)R"
    made = NAMES[0] + b"(" + storage + whole(offset) + shape + steps + b"\x89" + hooks + b"tR"
    return b"}X\x01\x00\x00\x00w" + made + b"s"


def write_zip(
    path: Path, content: bytes, records: Mapping[str, bytes] | None = None, compression: int = zipfile.ZIP_STORED
) -> Path:
    """A file as ``torch.save`` writes it, of a pickle and the bytes of its storages."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", content)
        archive.writestr("archive/byteorder", "little")
        for name, values in ({"0": bytes(16)} if records is None else records).items():
            archive.writestr(f"archive/data/{name}", values)
        archive.writestr("archive/version", "3\n")
    return path


def write_safetensors(path: Path, header: bytes, values: bytes = b"", length: int | None = None) -> Path:
    """A safetensors file of any header, with its length or another."""
    path.write_bytes((len(header) if length is None else length).to_bytes(8, "little") + header + values)
    return path
