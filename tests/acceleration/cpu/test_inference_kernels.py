"""The layers for inference against torch's operators in float64: maps that fit nothing, any number of threads."""

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from convnext.acceleration.cpu.inference_kernels import (
    Int8,
    Range,
    block,
    fill,
    has_bf16,
    multiplied,
    packed_int8,
    padded,
    patches,
)
from tests.acceleration.cpu.cases import LIBRARIES, take_inference_library

EPS = 1e-6
# Samples, height, width and channels. A task has several samples of small maps, or some rows of one.
SHAPES = [(1, 3, 4, 7), (9, 2, 3, 33), (33, 3, 2, 20), (5, 7, 7, 40), (3, 13, 9, 96), (2, 30, 17, 32), (0, 4, 4, 8)]
TOLERANCES = {"fp32": 1e-6, "bf16": 5e-3, "int8": 3e-3}  # in int8, a value between two steps may go to either
NORMALISED, ACTIVATED = Range(-3.2, 3.0), Range(-0.17, 2.5)  # narrow enough that some values are beyond
LARGE = (7, 7, 7, 288)  # more weights than the second-level cache holds


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True, params=LIBRARIES)
def _library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    take_inference_library(request.param, monkeypatch)


@pytest.fixture(params=TOLERANCES)
def precision(_library: None, request: pytest.FixtureRequest) -> str:
    if request.param == "bf16" and not has_bf16():
        pytest.skip("needs a processor with bf16")
    return request.param


def map_of(x: Tensor) -> Tensor:
    """A map as the kernels have it: channels padded with zeros."""
    return fill(x, *x.shape[:-1], padded(x.shape[-1]))


class BlockCase:
    """A block with weights such that every part of it counts, and a map for it."""

    def __init__(self, shape: tuple[int, ...], kernel_size: int = 7, hidden: int | None = None) -> None:
        generator = torch.Generator().manual_seed(3)
        channels = shape[-1]
        width = 4 * channels if hidden is None else hidden
        self.channels, self.size = channels, kernel_size
        draw = lambda *sizes: torch.randn(sizes, generator=generator)  # noqa: E731
        self.x = draw(*shape)
        self.taps, self.bias = draw(channels, 1, kernel_size, kernel_size) / kernel_size, draw(channels)
        self.weight1, self.bias1 = draw(width, channels) / channels**0.5, draw(width)
        self.weight2, self.bias2 = draw(channels, width) / width**0.5, draw(channels)

    def wanted(self, precision: str = "fp32") -> Tensor:
        """The same in float64; in int8, of factors that are rounded to its steps."""
        ranges = (NORMALISED, ACTIVATED) if precision == "int8" else (None, None)
        x = self.x.double()
        y = F.conv2d(
            x.movedim(-1, 1), self.taps.double(), self.bias.double(), padding=self.size // 2, groups=self.channels
        )
        y = F.layer_norm(y.movedim(1, -1), (self.channels,), eps=EPS)
        y = F.gelu(rounded_linear(y, self.weight1, self.bias1, ranges[0]))
        return x + rounded_linear(y, self.weight2, self.bias2, ranges[1])

    def given(self, precision: str = "fp32", threads: int = 1) -> Tensor:
        """What the kernel gives, its padding with it."""
        width, hidden, bf16 = padded(self.channels), padded(len(self.weight1)), precision == "bf16"
        ranges = (NORMALISED, ACTIVATED) if precision == "int8" else (None, None)
        weight1, *first = multiplied(self.weight1, width, hidden, bf16, ranges[0])
        weight2, *second = multiplied(self.weight2, hidden, width, bf16, ranges[1])
        taps = fill(self.taps.flatten(1).T, self.size**2, width)
        biases = fill(self.bias, width), fill(self.bias1, hidden), fill(self.bias2, width)
        tensors = (taps, biases[0], weight1, biases[1], weight2, biases[2])
        x = map_of(self.x)
        out = torch.full_like(x, torch.nan)
        torch.set_num_threads(threads)
        block(x, out, tensors, self.channels, self.size, EPS, bf16, (*first, *second))
        return out


def rounded_linear(x: Tensor, weight: Tensor, bias: Tensor, seen: Range | None) -> Tensor:
    """A linear layer in float64, its factors rounded to int8's steps where the range of x is given."""
    weight = weight.double()
    if seen is not None:
        x = ((x / seen.scale).round() + seen.zero_point).clamp(0, 255).sub(seen.zero_point) * seen.scale
        scale = weight.abs().amax(1, keepdim=True) / 127
        weight = (weight / scale).round() * scale
    return F.linear(x, weight, bias.double())


def patches_case(
    shape: tuple[int, ...], out_channels: int, size: int, precision: str = "fp32", threads: int = 1
) -> tuple[Tensor, Tensor]:
    """What the kernel gives for a convolution of patches, and what it should."""
    generator = torch.Generator().manual_seed(4)
    channels = shape[-1]
    x = torch.randn(shape, generator=generator)
    weight = torch.randn(out_channels, channels, size, size, generator=generator) / (size * channels**0.5)
    bias = torch.randn(out_channels, generator=generator)
    seen = NORMALISED if precision == "int8" else None
    y = F.layer_norm(x.double(), (channels,), eps=EPS).movedim(-1, 1)
    columns = F.unfold(y, size, stride=size).mT  # (N, positions, C * k * k)
    wanted = rounded_linear(columns, weight.flatten(1), bias, seen)
    wanted = wanted.view(len(x), shape[1] // size, shape[2] // size, out_channels)
    width, out_width = padded(channels), padded(out_channels)
    taps = fill(weight.permute(0, 2, 3, 1), out_channels, size, size, width).flatten(1)
    matrix, *int8 = multiplied(taps, taps.shape[1], out_width, precision == "bf16", seen)
    torch.set_num_threads(threads)
    sizes = channels, size, out_channels, EPS, precision == "bf16"
    return patches(map_of(x), matrix, fill(bias, out_width), *sizes, tuple(int8)), wanted


def check(given: Tensor, wanted: Tensor, tolerance: float) -> None:
    """The values are right and the padding is zero."""
    channels = wanted.shape[-1]
    assert given.shape[:-1] == wanted.shape[:-1]
    assert not given[..., channels:].any()
    assert (given[..., :channels] - wanted).norm() <= tolerance * wanted.norm()


@pytest.mark.parametrize("shape", [*SHAPES, LARGE])
@pytest.mark.parametrize("kernel_size", [7, 5])
def test_a_block_is_torchs(shape: tuple[int, ...], kernel_size: int, precision: str) -> None:
    case = BlockCase(shape, kernel_size)
    check(case.given(precision), case.wanted(precision), TOLERANCES[precision])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("out_channels", "size"), [(48, 2), (5, 1), (33, 3)])
def test_patches_are_torchs(shape: tuple[int, ...], out_channels: int, size: int, precision: str) -> None:
    samples, height, width, channels = shape
    shape = samples, max(height, size), max(width, size), channels
    check(*patches_case(shape, out_channels, size, precision), TOLERANCES[precision])


@pytest.mark.parametrize("shape", [(9, 2, 3, 33), (5, 7, 7, 40), (2, 30, 17, 32), LARGE])
def test_any_number_of_threads_gives_the_same_bits(shape: tuple[int, ...], precision: str) -> None:
    case = BlockCase(shape)
    first, (patched, _) = case.given(precision), patches_case(shape, 48, 2, precision)
    for threads in (2, 5):
        assert torch.equal(case.given(precision, threads), first)
        assert torch.equal(patches_case(shape, 48, 2, precision, threads)[0], patched)


def test_one_sample_gives_the_same_bits_alone_as_among_others(precision: str) -> None:
    case = BlockCase(LARGE)
    whole = case.given(precision)
    case.x = case.x[2:3]
    assert torch.equal(case.given(precision), whole[2:3])


@pytest.mark.parametrize(
    ("channels", "out_channels", "positions"), [(1, 1, 1), (33, 7, 29), (96, 100, 50), (300, 33, 7)]
)
def test_int8_products_are_exact(channels: int, out_channels: int, positions: int) -> None:
    """Every position has the same values in another order, so that what normalises them is known."""
    generator = torch.Generator().manual_seed(5)
    values = torch.randint(256, (channels,), generator=generator)
    values[:2] = torch.tensor([255, 0])[:channels]
    x = torch.stack([values[torch.randperm(channels, generator=generator)] for _ in range(positions)])
    weight = torch.randint(-127, 128, (channels, out_channels), generator=generator)
    weight[:, 0], offset = 127, torch.randint(-1000, 1000, (out_channels,), generator=generator)
    width = padded(out_channels)
    deviation = max(values.double().var(correction=0).item(), 1e-12) ** 0.5
    int8 = Int8(
        fill(offset.int(), width), fill(torch.ones(out_channels), width), deviation, values.double().mean().item()
    )
    matrix = packed_int8(fill(weight.to(torch.int8), padded(channels), width))
    maps = map_of(x.float().view(1, positions, 1, channels))
    given = patches(maps, matrix, torch.zeros(width), channels, 1, out_channels, 1e-30, bf16=False, int8=(int8,))
    assert torch.equal(given[0, :, 0, :out_channels].long(), x @ weight + offset)
