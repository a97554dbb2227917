"""The layers for inference against torch's operators in float64: maps that fit nothing, any number of threads."""

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from convnext.kernels.inference import block, fill, has_bf16, packed, padded, patches
from tests.kernels.cases import LIBRARIES, take_inference_library

EPS = 1e-6
# Samples, height, width and channels. A task has several samples of small maps, or some rows of one.
SHAPES = [(1, 3, 4, 7), (9, 2, 3, 33), (33, 3, 2, 20), (5, 7, 7, 40), (3, 13, 9, 96), (2, 30, 17, 32), (0, 4, 4, 8)]
TOLERANCES = {False: 1e-6, True: 5e-3}  # by whether it is in bf16
LARGE = (7, 7, 7, 288)  # more weights than the second-level cache holds


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True, params=LIBRARIES)
def _library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    take_inference_library(request.param, monkeypatch)


@pytest.fixture(params=["fp32", "bf16"])
def bf16(_library: None, request: pytest.FixtureRequest) -> bool:
    """Whether to multiply in bf16."""
    if request.param == "bf16" and not has_bf16():
        pytest.skip("needs a processor with bf16")
    return request.param == "bf16"


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

    def wanted(self) -> Tensor:
        x = self.x.double()
        y = F.conv2d(
            x.movedim(-1, 1), self.taps.double(), self.bias.double(), padding=self.size // 2, groups=self.channels
        )
        y = F.layer_norm(y.movedim(1, -1), (self.channels,), eps=EPS)
        y = F.gelu(F.linear(y, self.weight1.double(), self.bias1.double()))
        return x + F.linear(y, self.weight2.double(), self.bias2.double())

    def given(self, bf16: bool = False, threads: int = 1) -> Tensor:
        """What the kernel gives, its padding with it."""
        width, hidden = padded(self.channels), padded(len(self.weight1))
        tensors = (
            fill(self.taps.flatten(1).T, self.size**2, width),
            fill(self.bias, width),
            packed(fill(self.weight1.T, width, hidden), bf16),
            fill(self.bias1, hidden),
            packed(fill(self.weight2.T, hidden, width), bf16),
            fill(self.bias2, width),
        )
        x = map_of(self.x)
        out = torch.full_like(x, torch.nan)
        torch.set_num_threads(threads)
        block(x, out, tensors, self.channels, self.size, EPS, bf16)
        return out


def patches_case(
    shape: tuple[int, ...], out_channels: int, size: int, bf16: bool = False, threads: int = 1
) -> tuple[Tensor, Tensor]:
    """What the kernel gives for a convolution of patches, and what it should."""
    generator = torch.Generator().manual_seed(4)
    channels = shape[-1]
    x = torch.randn(shape, generator=generator)
    weight = torch.randn(out_channels, channels, size, size, generator=generator) / (size * channels**0.5)
    bias = torch.randn(out_channels, generator=generator)
    y = F.layer_norm(x.double(), (channels,), eps=EPS).movedim(-1, 1)
    wanted = F.conv2d(y, weight.double(), bias.double(), stride=size).movedim(1, -1)
    taps = fill(weight.permute(2, 3, 1, 0), size, size, padded(channels), padded(out_channels)).flatten(0, 2)
    torch.set_num_threads(threads)
    given = patches(
        map_of(x), packed(taps, bf16), fill(bias, padded(out_channels)), channels, size, out_channels, EPS, bf16
    )
    return given, wanted


def check(given: Tensor, wanted: Tensor, tolerance: float) -> None:
    """The values are right and the padding is zero."""
    channels = wanted.shape[-1]
    assert given.shape[:-1] == wanted.shape[:-1]
    assert not given[..., channels:].any()
    assert (given[..., :channels] - wanted).norm() <= tolerance * wanted.norm()


@pytest.mark.parametrize("shape", [*SHAPES, LARGE])
@pytest.mark.parametrize("kernel_size", [7, 5])
def test_a_block_is_torchs(shape: tuple[int, ...], kernel_size: int, bf16: bool) -> None:
    case = BlockCase(shape, kernel_size)
    check(case.given(bf16), case.wanted(), TOLERANCES[bf16])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("out_channels", "size"), [(48, 2), (5, 1), (33, 3)])
def test_patches_are_torchs(shape: tuple[int, ...], out_channels: int, size: int, bf16: bool) -> None:
    samples, height, width, channels = shape
    shape = samples, max(height, size), max(width, size), channels
    check(*patches_case(shape, out_channels, size, bf16), TOLERANCES[bf16])


@pytest.mark.parametrize("shape", [(9, 2, 3, 33), (5, 7, 7, 40), (2, 30, 17, 32), LARGE])
def test_any_number_of_threads_gives_the_same_bits(shape: tuple[int, ...], bf16: bool) -> None:
    case = BlockCase(shape)
    first, (patched, _) = case.given(bf16), patches_case(shape, 48, 2, bf16)
    for threads in (2, 5):
        assert torch.equal(case.given(bf16, threads), first)
        assert torch.equal(patches_case(shape, 48, 2, bf16, threads)[0], patched)


def test_one_sample_gives_the_same_bits_alone_as_among_others(bf16: bool) -> None:
    case = BlockCase(LARGE)
    whole = case.given(bf16)
    case.x = case.x[2:3]
    assert torch.equal(case.given(bf16), whole[2:3])
