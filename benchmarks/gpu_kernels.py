"""The kernels of ``benchmarks/gpu.py``, each at the shapes of a network's stages, with the bytes and FLOP it takes.

Bytes are those of every map and weight, read or written once; FLOP are twice the multiply-accumulates. What each would
take at the machine's own copy bandwidth and rate of matrix products stands beside what it took.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from convnext.acceleration.gpu import depthwise_operator as depthwise
from convnext.acceleration.gpu import mlp_operator as mlp
from convnext.acceleration.gpu.linear_operator import linear_add, linear_gelu_squares
from convnext.acceleration.gpu.patches_operator import cut, norm_patches

KERNEL = 7


@dataclass(frozen=True)
class Measured:
    """A call, and what it moves and multiplies.

    Attributes:
        name: of the kernel, or of torch's operators for the same.
        shape: of the map.
        call: what is timed.
        bytes: read and written at the least.
        flop: at the least.
    """

    name: str
    shape: str
    call: Callable[[], Any]
    bytes: float
    flop: float


def kernels(batch: int, stages: list[tuple[int, int]], device: torch.device, dtype: torch.dtype) -> Iterator[Measured]:
    """Every kernel at every stage.

    Args:
        batch: images.
        stages: channels, and height and width.
        device: where.
        dtype: of maps and weights.
    """
    for channels, size in stages:
        yield from at_stage(batch, channels, size, partial(torch.randn, device=device, dtype=dtype))


def at_stage(batch: int, channels: int, size: int, random: Callable[..., Tensor]) -> Iterator[Measured]:
    """The kernels of a block, and of the downsampling behind it."""
    x, hidden = random(batch, size, size, channels), random(batch, size, size, 4 * channels)
    weight, bias = random(channels, 1, KERNEL, KERNEL), random(channels)
    first, bias1 = random(4 * channels, channels) / channels**0.5, random(4 * channels)
    second, bias2 = random(channels, 4 * channels) / channels**0.5, random(channels)
    normalised, scale = depthwise.depthwise_norm(x, weight, bias, 1e-6)
    response = random(batch, 4 * channels).float()
    one, taps = x.numel() * x.element_size(), 2.0 * KERNEL**2 * x.numel()
    product, weights = 2.0 * x.numel() * 4 * channels, 2 * first.numel() * first.element_size()

    def case(name: str, call: Callable[[], Any], maps: float, flop: float, more: float = 0) -> Measured:
        return Measured(name, f"{batch}x{size}x{size}x{channels}", call, maps * one + more, flop)

    nchw = x.permute(0, 3, 1, 2)
    yield case("depthwise + norm", lambda: depthwise.depthwise_norm(x, weight, bias, 1e-6), 2, taps)
    yield case(
        "torch: convolution, norm",
        lambda: F.layer_norm(
            F.conv2d(nchw, weight, bias, padding=KERNEL // 2, groups=channels).permute(0, 2, 3, 1), (channels,)
        ),
        2,
        taps,
    )
    yield case("gradient of the norm", lambda: depthwise.norm_gradient(x, normalised, scale), 3, 0)
    yield case("gradient of the input", lambda: depthwise.input_gradient(x, weight), 2, taps)
    yield case("gradient of the weight", lambda: depthwise.weight_gradient(x, normalised, KERNEL), 2, taps)
    both = (x, first, bias1, second, bias2, x, None)
    yield case("mlp, nothing kept", lambda: mlp.mlp_forward(*both, False), 3, 2 * product, weights)
    yield case("mlp, GELU's argument kept", lambda: mlp.mlp_forward(*both, True), 7, 2 * product, weights)
    yield case(
        "torch: linear, GELU, linear, addition",
        lambda: x + F.linear(F.gelu(F.linear(x, first, bias1)), second, bias2),
        3,
        2 * product,
        weights,
    )
    yield case(
        "gradient through GELU",
        lambda: mlp.mlp_gradient(x, normalised, first, bias1, second, None, hidden),
        14,
        product,
        weights / 2,
    )
    yield case("matrix product of the same size", lambda: F.linear(x, first), 5, product, weights / 2)
    yield case("linear + GELU + squares", lambda: linear_gelu_squares(x, first, bias1), 5, product, weights / 2)
    yield case(
        "linear + addition, scaled rows",
        lambda: linear_add(hidden, second, bias2, x, None, response),
        6,
        product,
        weights / 2,
    )
    if size >= 2 and size % 2 == 0:
        yield case("norm into patches", lambda: norm_patches(x, 2, 1e-6, x.dtype), 2, 0)
    if (channels, size) == (96, 56):
        yield from stem(batch, channels, size, random)


def stem(batch: int, channels: int, size: int, random: Callable[..., Tensor]) -> Iterator[Measured]:
    """The stem's convolution as matrix product and as torch's convolution."""
    images = random(batch, 3, 4 * size, 4 * size).contiguous(memory_format=torch.channels_last)
    weight, bias = random(channels, 3, 4, 4), random(channels)
    matrix = weight.permute(0, 2, 3, 1).flatten(1)
    flop = 2.0 * batch * size**2 * 48 * channels
    count = (images.numel() + batch * size**2 * channels) * images.element_size()
    nhwc, shape = images.permute(0, 2, 3, 1), f"{batch}x{4 * size}x{4 * size}x3"
    product = Measured("stem", shape, lambda: F.linear(cut(nhwc, 4).flatten(3), matrix, bias), count, flop)
    yield product
    last = weight.contiguous(memory_format=torch.channels_last)
    yield Measured("torch: stem", shape, lambda: F.conv2d(images, last, bias, stride=4), count, flop)
