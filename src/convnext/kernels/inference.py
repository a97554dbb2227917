"""ConvNeXt's layers for inference on the CPU, by the C code beside this file: each reads a map once and writes one.

Maps are fp32, (N, H, W, P): channels last, padded with zeros to P, a multiple of :data:`PAD`. Matrix products are fp32,
or of bf16 with sums in fp32. The plain reference is the network itself (``models/convnext.py``).
"""

import ctypes
import threading
from contextlib import suppress
from functools import cache

import torch
from torch import Tensor

from convnext.errors import RunError
from convnext.kernels import enabled, native

LIBRARY = "inference"
PAD = 32
BUILD_SECONDS = 6  # about, on a machine of 2026

_building = threading.Lock()


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
    opened.convnext_block.argtypes = [pointer] * 8 + [sizes] * 4 + [number, sizes, real, number, number]
    opened.convnext_patches.argtypes = [pointer] * 4 + [sizes] * 4 + [number, sizes, real, number, number]
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
    """Values in fp32 with zeros behind them in every dimension, up to a shape."""
    filled = torch.zeros(shape)
    filled[tuple(slice(0, size) for size in values.shape)] = values
    return filled


def packed(weight: Tensor, bf16: bool) -> Tensor:
    """A matrix (inputs, outputs), both multiples of PAD, as the products read it: panels of columns; pairs of bf16."""
    inputs, outputs = weight.shape
    columns = columns_of_a_panel()
    if bf16:
        return weight.bfloat16().view(inputs // 2, 2, outputs // columns, columns).permute(2, 0, 3, 1).contiguous()
    return weight.view(inputs, outputs // columns, columns).permute(1, 0, 2).contiguous()


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
) -> None:
    """A block of ConvNeXt V1 from x to out, maps (N, H, W, P) that do not overlap.

    Args:
        x: the map.
        out: where the result goes.
        tensors: weight (k * k, P) and bias (P) of the depthwise convolution, then of the two linear layers: weight
            (inputs, outputs) as :func:`packed` gives it, and bias.
        channels: without padding.
        kernel_size: of the depthwise convolution.
        eps: of the normalisation.
        bf16: the dtype of the packed weights.

    Raises:
        RunError: there is no memory.
    """
    hidden = tensors[3].numel()
    check(
        inference_library().convnext_block(
            *(tensor.data_ptr() for tensor in (x, out, *tensors)),
            *(*x.shape[:3], channels, kernel_size, hidden, eps, bf16, torch.get_num_threads()),
        )
    )


def patches(
    x: Tensor, weight: Tensor, bias: Tensor, channels: int, kernel_size: int, out_channels: int, eps: float, bf16: bool
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

    Raises:
        RunError: there is no memory.
    """
    samples, height, width, _ = x.shape
    out = torch.empty(samples, height // kernel_size, width // kernel_size, padded(out_channels))
    check(
        inference_library().convnext_patches(
            *(tensor.data_ptr() for tensor in (x, out, weight, bias)),
            *(samples, height, width, channels, kernel_size, out_channels, eps, bf16, torch.get_num_threads()),
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
