"""What a checkpoint's pickle may call and mention: tensors and plain values, with arguments that bound their cost."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

LARGEST_KEY = 1 << 60  # from here on whole numbers can be made to collide, and a dictionary of such takes for ever
ITEM_SIZES = {
    **{"DoubleStorage": 8, "LongStorage": 8, "FloatStorage": 4, "IntStorage": 4, "HalfStorage": 2},
    **{"BFloat16Storage": 2, "ShortStorage": 2, "CharStorage": 1, "ByteStorage": 1, "BoolStorage": 1},
}
NUMPY_TYPE = re.compile(r"[fiu][1248]|b1")
SPECIAL_TENSORS = re.compile(  # what stands for sparse and quantised tensors, complex numbers and those of 8 bits
    r"torch\.(_utils|_tensor)\._rebuild|torch\.\w*Storage$|torch\.(storage|serialization)\.|torch\.(per_|[a-z]+\d)"
)


@dataclass(frozen=True)
class Global:
    """Something that the pickle names, to be called or to be mentioned."""

    name: str


@dataclass(eq=False)
class Built:
    """Something that the pickle builds.

    Attributes:
        kind: ``dict``, ``list``, ``storage``, or the name of what was called for it.
        keys: of a dictionary, those that are words.
        items: of a list.
        values: of a storage, how many.
        item_size: of a storage, bytes a value.
        is_set: whether it was given its attributes.
    """

    kind: str
    keys: list[str] = field(default_factory=list)
    items: list[Any] = field(default_factory=list)
    values: int = 0
    item_size: int = 0
    is_set: bool = False


def is_plain(value: Any) -> bool:
    """Whether a value is a word or number, which holds no others."""
    return value is None or isinstance(value, str | bytes | int | float)


def is_flat(value: Any) -> bool:
    """Whether a value is a tuple of words and numbers alone."""
    return isinstance(value, tuple) and all(map(is_plain, value))


def is_key(value: Any) -> bool:
    """Whether a dictionary finds a value as fast as it is read: not what holds others, nor numbers made to collide."""
    return is_plain(value) and (not isinstance(value, int | float) or abs(value) < LARGEST_KEY)


def is_tensor(arguments: tuple[Any, ...]) -> bool:
    """Whether a tensor's storage, offset, size and stride are within the storage."""
    match arguments:
        case (Built("storage") as storage, int(offset), tuple(size), tuple(stride), *_):
            whole = all(isinstance(number, int) and number >= 0 for number in (offset, *size, *stride))
        case _:
            return False
    if not whole or len(size) != len(stride) or len(size) > 64:
        return False
    if 0 in size:
        return True
    last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
    return last < storage.values


def is_numpy_type(arguments: tuple[Any, ...]) -> bool:
    """Whether numpy's type of numbers is plain: others hold objects, or any number of bytes."""
    return is_flat(arguments) and bool(arguments) and bool(NUMPY_TYPE.fullmatch(str(arguments[0])))


def are_plain(arguments: tuple[Any, ...]) -> bool:
    """Whether arguments are words and small numbers, or one tuple or list of such."""
    match arguments:
        case (tuple(items),) | (Built("list", items=items),):
            return all(map(is_key, items))
        case _:
            return all(map(is_key, arguments))


def of_kind(*kinds: str) -> Callable[[tuple[Any, ...]], bool]:
    """Whether the first argument was built as one of some kinds."""

    def check(arguments: tuple[Any, ...]) -> bool:
        return bool(arguments) and isinstance(arguments[0], Built) and arguments[0].kind in kinds

    return check


TENSORS = ("torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor")
# What checkpoints call, and with which arguments it neither runs code nor takes more than they hold. Numbers of numpy's
# are among them, such as a best accuracy: of its plain types, with the state that numpy itself writes, they are bytes.
CALLS: dict[str, Callable[[tuple[Any, ...]], bool]] = {
    **dict.fromkeys(TENSORS, is_tensor),
    "torch._utils._rebuild_parameter": of_kind(*TENSORS),
    "torch.Size": are_plain,
    "torch.device": are_plain,
    "builtins.set": are_plain,
    "collections.OrderedDict": lambda arguments: arguments == (),
    "collections.Counter": lambda arguments: arguments == () or of_kind("dict")(arguments),
    "_codecs.encode": lambda arguments: is_flat(arguments) and arguments[1:] == ("latin1",),  # how bytes are written
    "numpy.dtype": is_numpy_type,
    "numpy.core.multiarray.scalar": of_kind("numpy.dtype"),
    "numpy._core.multiarray.scalar": of_kind("numpy.dtype"),
}
TYPES = {
    "argparse.Namespace",  # of the official training code, which keeps its arguments beside the weights
    *(f"torch.{kind}" for kind in ("float16", "bfloat16", "float32", "float64", "uint8", "int8", "int16", "int32")),
    *("torch.int64", "torch.bool"),
}
