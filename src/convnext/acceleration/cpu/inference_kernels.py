"""ConvNeXt V1 for inference on the CPU: a model whose every layer is one call of the C code in ``csrc/inference.c``.

Feature maps are fp32, (N, H, W, P): channels last, padded with zeros to P, a multiple of :data:`PAD`. Matrix products
are fp32, of bf16 with sums in fp32, or of int8 with exact sums. The reference is the model itself.
"""

import ctypes
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor, nn

from convnext.acceleration import enabled
from convnext.acceleration.cpu import native
from convnext.errors import RunError
from convnext.models.convnext import Block, ConvNeXt, IsotropicConvNeXt
from convnext.models.layers import DepthwiseConv2d, SameConv2d
from convnext.models.protocol import check_image_size

LIBRARY = "inference"
PAD = 32
INT8 = 2  # a precision of the C code, beside 0, fp32, and 1, bf16
BUILD_SECONDS = 6  # about, on a machine of 2026
IMAGES = 4  # at a time, or two a thread: the maps between two layers stay in the third-level cache

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
    """Compute a block from x to out, maps (N, H, W, P) that do not overlap.

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
    sizes = *x.shape[:3], channels, kernel_size, tensors[3].numel(), eps, INT8 if int8 else bf16
    pointers = (tensor.data_ptr() for tensor in (x, out, *tensors))
    check(inference_library().convnext_block(*pointers, *sizes, structures(int8), torch.get_num_threads()))


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
    """Normalise every position of x (N, H, W, P) and convolve its patches: (N, H / k, W / k, P').

    The weight (k * k * P, P') is packed; the other arguments are those of :func:`block`.
    """
    samples, height, width, _ = x.shape
    out = torch.empty(samples, height // kernel_size, width // kernel_size, padded(out_channels))
    sizes = samples, height, width, channels, kernel_size, out_channels, eps, INT8 if int8 else bf16
    pointers = (tensor.data_ptr() for tensor in (x, out, weight, bias))
    check(inference_library().convnext_patches(*pointers, *sizes, structures(int8), torch.get_num_threads()))
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
    """Convolve fp32 images (N, C, H, W) of any strides to a map, and normalise that if tensors has a norm's.

    ``tensors`` are the packed weight (C * k * k, padded; P) and the bias (P), then the norm's weight and bias (P).
    """
    samples, channels, height, width = images.shape
    rows, columns = ((size + 2 * padding - kernel_size) // stride + 1 for size in (height, width))
    out = torch.empty(samples, rows, columns, padded(out_channels))
    addresses = [tensor.data_ptr() for tensor in tensors] + [None] * (4 - len(tensors))
    sizes = samples, height, width, channels, kernel_size, stride, padding, out_channels, eps
    strides = (ctypes.c_int64 * 4)(*images.stride())
    library, threads = inference_library(), torch.get_num_threads()
    check(library.convnext_stem(images.data_ptr(), strides, out.data_ptr(), *addresses, *sizes, threads))
    return out


def check(status: int) -> None:
    """Raise what a function of the library says."""
    if status:
        raise RunError("no memory is left for a layer of the network: take a smaller batch")


def can_fuse(model: nn.Module) -> bool:
    """True if :class:`FusedNetwork` can be built of a model: ConvNeXt V1, with stages or without, in fp32."""
    if type(model) not in (ConvNeXt, IsotropicConvNeXt):
        return False
    for module in model.modules():
        if isinstance(module, SameConv2d) or (isinstance(module, DepthwiseConv2d) and module.dilation != (1, 1)):
            return False  # output_stride is 16 or 8
        if isinstance(module, Block) and not isinstance(module.grn, nn.Identity):
            return False
    return all(parameter.dtype == torch.float32 and parameter.device.type == "cpu" for parameter in model.parameters())


class FusedNetwork(nn.Module):
    """A folded network (:func:`convnext.acceleration.folding.folded`), each layer of which is one call of the C code.

    Args:
        model: :func:`can_fuse` and folded.
        bf16: multiply in bf16, all but the images' convolution and the head; maps and sums are fp32 always.
        ranges: of the inputs of the layers that multiply in int8 instead: of a block, both or none.

    Raises:
        RunError: the kernels cannot be built here.
    """

    def __init__(self, model: Any, bf16: bool = False, ranges: Mapping[nn.Module, Range] | None = None) -> None:
        super().__init__()
        self.bf16, self.ranges = bf16, ranges or {}
        self.norm: nn.Module = model.norm
        self.head: nn.Module = model.head
        self.smallest_image: int = model.smallest_image
        self.layers: list[Callable[[Tensor, Tensor | None], Tensor]] = []
        if isinstance(model, IsotropicConvNeXt):
            self.stem = images_convolution(model.stem, None)
            self.layers += [self.block(module) for module in cast("list[Block]", list(model.blocks))]
            self.channels = model.stem.out_channels
        else:
            convolution, norm = model.downsample_layers[0]
            self.stem = images_convolution(convolution, norm)
            for i, stage in enumerate(model.stages):
                if i:
                    self.layers.append(self.downsampling(*model.downsample_layers[i]))
                self.layers += [self.block(module) for module in stage]
            self.channels = model.stages[-1][-1].dwconv.in_channels

    def block(self, module: Block) -> Callable[[Tensor, Tensor | None], Tensor]:
        """A block as a function of a map and, for its result, a map of the same shape that is free."""
        channels, (size, _) = module.dwconv.in_channels, module.dwconv.kernel_size
        width, hidden, bf16, eps = padded(channels), padded(module.pwconv1.out_features), self.bf16, module.norm.eps
        normalised, activated = self.ranges.get(module.pwconv1), self.ranges.get(module.pwconv2)
        weight1, *int8 = multiplied(module.pwconv1.weight, width, hidden, bf16, normalised)
        weight2, *more = multiplied(module.pwconv2.weight, hidden, width, bf16, activated and activated.after_gelu())
        tensors = (
            fill(module.dwconv.weight.detach().flatten(1).T, size * size, width),
            bias_of(module.dwconv, width),
            weight1,
            bias_of(module.pwconv1, hidden),
            weight2,
            bias_of(module.pwconv2, width),
        )

        def run(x: Tensor, free: Tensor | None) -> Tensor:
            out = torch.empty_like(x) if free is None or free.shape != x.shape else free
            block(x, out, tensors, channels, size, eps, bf16, (*int8, *more))
            return out

        return run

    def downsampling(self, norm: nn.LayerNorm, convolution: nn.Conv2d) -> Callable[[Tensor, Tensor | None], Tensor]:
        """The layer between two stages as a function of a map."""
        channels, out_channels, size = convolution.in_channels, convolution.out_channels, convolution.kernel_size[0]
        width, out_width, bf16, eps = padded(channels), padded(out_channels), self.bf16, norm.eps
        taps = fill(convolution.weight.detach().permute(0, 2, 3, 1), out_channels, size, size, width).flatten(1)
        weight, *int8 = multiplied(taps, taps.shape[1], out_width, bf16, self.ranges.get(convolution))
        bias = bias_of(convolution, out_width)

        def run(x: Tensor, free: Tensor | None) -> Tensor:  # noqa: ARG001
            return patches(x, weight, bias, channels, size, out_channels, eps, bf16, tuple(int8))

        return run

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W) in fp32 to what the network gives of them."""
        check_image_size(images, self.smallest_image)
        count = max(IMAGES, 2 * torch.get_num_threads())
        pooled = [self.pooled(some) for some in images.split(count)]
        return self.head(self.norm(torch.cat(pooled)))

    def pooled(self, images: Tensor) -> Tensor:
        """The mean (N, channels) of the last map's positions."""
        x, free = self.stem(images), None
        for layer in self.layers:
            x, free = layer(x, free), x
        return x.mean((1, 2))[:, : self.channels]


def images_convolution(convolution: nn.Conv2d, norm: nn.LayerNorm | None) -> Callable[[Tensor], Tensor]:
    """The stem as a function of images."""
    width, out_channels = padded(convolution.out_channels), convolution.out_channels
    weight = convolution.weight.detach().flatten(1).T
    tensors = [packed(fill(weight, padded(len(weight)), width), bf16=False), bias_of(convolution, width)]
    if norm is not None:
        tensors += [fill(norm.weight.detach(), width), fill(norm.bias.detach(), width)]
    sizes = convolution.kernel_size[0], convolution.stride[0], int(convolution.padding[0])
    eps = 0.0 if norm is None else norm.eps
    return lambda images: stem(images, tuple(tensors), *sizes, out_channels, eps)


def multiplied(
    weight: Tensor, inputs: int, outputs: int, bf16: bool, seen: Range | None
) -> tuple[Tensor] | tuple[Tensor, Int8]:
    """A linear layer's weight (out_features, in_features), packed; in int8 where the range of its inputs is known."""
    if seen is None:
        return (packed(fill(weight.detach().T, inputs, outputs), bf16),)
    rounded, scale = rounded_weight(weight.detach())
    offset = -seen.zero_point * rounded.sum(1, dtype=torch.int32)
    layer = Int8(fill(offset, outputs), fill(scale * seen.scale, outputs), 1 / seen.scale, seen.zero_point)
    return packed_int8(fill(rounded.T, inputs, outputs)), layer


def bias_of(layer: nn.Conv2d | nn.Linear, size: int) -> Tensor:
    """A layer's bias, padded; zeros where it has none."""
    return torch.zeros(size) if layer.bias is None else fill(layer.bias.detach(), size)
