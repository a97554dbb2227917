"""ConvNeXt's layers for inference on the CPU, by the C code beside this file: each reads a map once and writes one.

Maps are fp32, (N, H, W, P): channels last, padded with zeros to P, a multiple of :data:`PAD`. Matrix products are fp32,
of bf16 with sums in fp32, or of int8 with exact sums. The plain reference is the network itself
(``models/convnext.py``).
"""

import ctypes
import threading
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from convnext.acceleration import enabled
from convnext.acceleration.cpu import native
from convnext.errors import RunError

LIBRARY = "inference"
PAD = 32
INT8 = 2  # a precision of the C code, beside 0, fp32, and 1, bf16
BUILD_SECONDS = 6  # about, on a machine of 2026

GELU_MINIMUM = -0.17  # the least value of GELU

_building = threading.Lock()


@dataclass(frozen=True)
class Int8:
    """How a linear layer multiplies in int8: weights of -127 to 127, inputs of 0 to 255.

    Attributes:
        offset: (P') int32, minus the zero point times the sum of each column's weights.
        scale: (P'), of the sums: the inputs' times each column's.
        steps: inputs times this plus ``zero`` are what is rounded.
        zero: the zero point.
    """

    offset: Tensor
    scale: Tensor
    steps: float
    zero: float


@dataclass
class Range:
    """The minimum and maximum of a layer's input on calibration images."""

    low: float = 0.0  # zero is always inside: it is what padding and ReLU give
    high: float = 0.0

    def widen(self, x: Tensor) -> None:
        """Widen the range to hold ``x``."""
        if x.numel():
            low, high = x.aminmax()
            self.low, self.high = min(self.low, low.item()), max(self.high, high.item())

    @property
    def scale(self) -> float:
        """The step between two of the 256 values."""
        return max(self.high - self.low, 1e-12) / 255

    @property
    def zero_point(self) -> int:
        """The value that stands for zero, 0 to 255."""
        return round(-self.low / self.scale)

    def after_gelu(self) -> "Range":
        """The range of GELU's output, which has values below any that were seen."""
        return Range(max(self.low, GELU_MINIMUM), self.high)


def rounded_weight(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A weight (outputs, inputs) in int8, -127 to 127, and the scale of each output, (outputs)."""
    scale = weight.abs().amax(1).clamp_min(1e-12) / 127
    return (weight / scale[:, None]).round().to(torch.int8), scale


class Int8Structure(ctypes.Structure):
    """:class:`Int8` as the C code has it."""

    _fields_ = (
        ("offset", ctypes.c_void_p),
        ("scale", ctypes.c_void_p),
        ("steps", ctypes.c_float),
        ("zero", ctypes.c_float),
    )


def structures(layers: tuple[Int8, ...]) -> Any:
    """Layers as an array in C; None for none."""
    values = [(layer.offset.data_ptr(), layer.scale.data_ptr(), layer.steps, layer.zero) for layer in layers]
    return (Int8Structure * len(layers))(*values) if layers else None


def inference_library() -> ctypes.CDLL:
    """The library, built where that was not done yet.

    Raises:
        RunError: fast forms are off, there is no compiler, or it fails.
    """
    if not enabled():
        raise RunError("CONVNEXT_KERNELS is off")
    with _building:
        return _library()


@cache
def _library(options: tuple[str, ...] = ()) -> ctypes.CDLL:
    opened = native.opened(LIBRARY, options)
    sizes, number, real, pointer = ctypes.c_int64, ctypes.c_int, ctypes.c_float, ctypes.c_void_p
    opened.convnext_block.argtypes = [pointer] * 8 + [sizes] * 4 + [number, sizes, real, number, pointer, number]
    opened.convnext_patches.argtypes = [pointer] * 4 + [sizes] * 4 + [number, sizes, real, number, pointer, number]
    opened.convnext_stem.argtypes = [pointer] * 7 + [sizes] * 4 + [number] * 3 + [sizes, real, number]
    return opened


def is_built() -> bool:
    """Whether the user's cache has the library, so that it costs nothing."""
    with suppress(RunError, OSError, RuntimeError):  # RuntimeError: a user without a home
        return any(native.library_path(compiler, LIBRARY).exists() for compiler in native.compilers())
    return False


def padded(count: int) -> int:
    """Channels with their padding."""
    return -(-count // PAD) * PAD


def fill(values: Tensor, *shape: int) -> Tensor:
    """Values with zeros behind them in every dimension, up to a shape."""
    filled = torch.zeros(shape, dtype=values.dtype)
    filled[tuple(slice(0, size) for size in values.shape)] = values
    return filled


def packed(weight: Tensor, bf16: bool) -> Tensor:
    """A matrix (inputs, outputs), both multiples of PAD, as the products read it: panels of columns; pairs of bf16."""
    inputs, outputs = weight.shape
    columns = columns_of_a_panel()
    if bf16:
        return weight.bfloat16().view(inputs // 2, 2, outputs // columns, columns).permute(2, 0, 3, 1).contiguous()
    return weight.view(inputs, outputs // columns, columns).permute(1, 0, 2).contiguous()


def packed_int8(weight: Tensor) -> Tensor:
    """The same for a matrix of int8: as many of its values along the sum lie together as the processor adds up."""
    inputs, outputs = weight.shape
    columns, together = columns_of_a_panel(), inference_library().convnext_int8_together()
    return weight.view(inputs // together, together, outputs // columns, columns).permute(2, 0, 3, 1).contiguous()


def columns_of_a_panel() -> int:
    """COLUMNS of the C code on this processor."""
    return inference_library().convnext_columns()


def has_bf16() -> bool:
    """Whether the library multiplies in bf16."""
    return bool(inference_library().convnext_has_bf16())


def block(
    x: Tensor,
    out: Tensor,
    tensors: tuple[Tensor, ...],
    channels: int,
    kernel_size: int,
    eps: float,
    bf16: bool,
    int8: tuple[Int8, ...] = (),
) -> None:
    """A block of ConvNeXt V1 from x to out, maps (N, H, W, P) that do not overlap.

    Args:
        x: the map.
        out: where the result goes.
        tensors: weight (k * k, P) and bias (P) of the depthwise convolution, then of the two linear layers: weight
            (inputs, outputs) as :func:`packed` or :func:`packed_int8` gives it, and bias (outputs).
        channels: without padding.
        kernel_size: of the depthwise convolution.
        eps: of the normalisation.
        bf16: the dtype of the packed weights.
        int8: of the two linear layers, where their weights are of int8.

    Raises:
        RunError: there is no memory.
    """
    hidden = tensors[3].numel()
    check(
        inference_library().convnext_block(
            *(tensor.data_ptr() for tensor in (x, out, *tensors)),
            *(*x.shape[:3], channels, kernel_size, hidden, eps, INT8 if int8 else bf16),
            *(structures(int8), torch.get_num_threads()),
        )
    )


def patches(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    channels: int,
    kernel_size: int,
    out_channels: int,
    eps: float,
    bf16: bool,
    int8: tuple[Int8, ...] = (),
) -> Tensor:
    """Normalisation of every position of x (N, H, W, P), and the convolution of its patches: (N, H / k, W / k, P').

    Args:
        x: the map.
        weight: (k * k * P, P'), packed.
        bias: (P').
        channels: of x, without padding.
        kernel_size: k, also the stride.
        out_channels: without padding.
        eps: of the normalisation.
        bf16: the dtype of the packed weight.
        int8: of the layer, where its weight is of int8.

    Raises:
        RunError: there is no memory.
    """
    samples, height, width, _ = x.shape
    out = torch.empty(samples, height // kernel_size, width // kernel_size, padded(out_channels))
    check(
        inference_library().convnext_patches(
            *(tensor.data_ptr() for tensor in (x, out, weight, bias)),
            *(samples, height, width, channels, kernel_size, out_channels, eps, INT8 if int8 else bf16),
            *(structures(int8), torch.get_num_threads()),
        )
    )
    return out


def stem(
    images: Tensor,
    tensors: tuple[Tensor, ...],
    kernel_size: int,
    stride: int,
    padding: int,
    out_channels: int,
    eps: float,
) -> Tensor:
    """The images' convolution in fp32, (N, C, H, W) of any strides to a map; and its normalisation, if it has one.

    Args:
        images: fp32.
        tensors: weight (C * k * k, padded; P), packed, and bias (P); then weight and bias (P) of the normalisation.
        kernel_size: k.
        stride: of the convolution.
        padding: of the convolution.
        out_channels: without padding.
        eps: of the normalisation.

    Raises:
        RunError: there is no memory.
    """
    samples, channels, height, width = images.shape
    rows, columns = ((size + 2 * padding - kernel_size) // stride + 1 for size in (height, width))
    out = torch.empty(samples, rows, columns, padded(out_channels))
    addresses = [tensor.data_ptr() for tensor in tensors] + [None] * (4 - len(tensors))
    check(
        inference_library().convnext_stem(
            *(images.data_ptr(), (ctypes.c_int64 * 4)(*images.stride()), out.data_ptr(), *addresses),
            *(samples, height, width, channels, kernel_size, stride, padding, out_channels, eps),
            torch.get_num_threads(),
        )
    )
    return out


def check(status: int) -> None:
    """Raise what a function of the library says."""
    if status:
        raise RunError("no memory is left for a layer of the network: take a smaller batch")
