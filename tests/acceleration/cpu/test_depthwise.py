"""The depthwise convolution: torch's output to the bit, and gradients against float64, on shapes that fit nothing."""

from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from convnext.acceleration.cpu import depthwise, native
from convnext.acceleration.cpu.depthwise import depthwise_conv2d, depthwise_gradient, depthwise_weight_gradient
from convnext.acceleration.cpu.native import available
from convnext.errors import UsageError
from tests.acceleration.cpu.cases import LIBRARIES, take_training_library

needs_compiler = pytest.mark.skipif(not available(), reason="no C compiler here")

SHAPES = [  # N, C, H, W, k
    (2, 32, 12, 12, 7),
    (3, 17, 9, 11, 5),  # a channel more than a vector
    (2, 18, 6, 13, 9),  # two more
    (2, 35, 5, 4, 3),  # three more
    (1, 3, 8, 8, 11),
    (2, 16, 7, 7, 1),
    (2, 8, 2, 3, 7),  # a map smaller than the kernel
    (1, 1, 4, 4, 3),
    (150, 2, 3, 3, 3),  # more samples than tasks
    (1, 5, 30, 400, 11),  # maps packed in several parts, and a kernel's row summed in several
    (0, 8, 4, 4, 3),
]
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 1e-2}


@pytest.fixture(autouse=True)
def _slow_convolutions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the C code for the input's gradient on any processor."""
    monkeypatch.setattr(native, "SLOW_CONVOLUTIONS", True)


def plain(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int) -> Tensor:
    return F.conv2d(x, weight, bias, stride, weight.shape[-1] // 2, groups=weight.shape[0])


def inputs(shape: tuple[int, ...], dtype: torch.dtype, layout: str = "channels_last") -> list[Tensor]:
    n, c, h, w, k = shape
    x = torch.randn(n, c, h, w, dtype=dtype)
    if layout == "channels_last":
        x = x.contiguous(memory_format=torch.channels_last)
    elif layout == "strided":
        x = torch.randn(n, 2 * c, h, 3 * w, dtype=dtype)[:, ::2, :, ::3]
    tensors = [x, torch.randn(c, 1, k, k, dtype=dtype), torch.randn(c, dtype=dtype)]
    return [tensor.requires_grad_() for tensor in tensors]


def error_of(value: Tensor | None, reference: Tensor | None) -> float:
    assert value is not None
    assert reference is not None
    assert value.shape == reference.shape
    return (torch.linalg.norm(value.double() - reference) / torch.linalg.norm(reference).clamp_min(1e-30)).item()


def check(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    layout: str = "channels_last",
    grad_layout: str = "same",
    stride: int = 1,
) -> None:
    """Output to the bit, gradients against float64."""
    tensors = inputs(shape, dtype, layout)
    doubles = [tensor.detach().double().requires_grad_() for tensor in tensors]
    output = depthwise_conv2d(*tensors, stride=stride)
    expected = plain(*tensors, stride=stride)
    assert torch.equal(output, expected)
    assert output.stride() == expected.stride()
    grad = torch.randn_like(output)
    if grad_layout == "contiguous":
        grad = grad.contiguous()
    output.backward(grad)
    plain(*doubles, stride=stride).backward(grad.double())
    for tensor, double in zip(tensors, doubles, strict=True):
        assert tensor.grad is not None
        assert tensor.grad.dtype == dtype
        assert error_of(tensor.grad, double.grad) <= TOLERANCES[dtype]


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("shape", SHAPES)
def test_output_and_gradients(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    check(shape, dtype)


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("layout", ["contiguous", "strided"])
def test_other_layouts(layout: str, dtype: torch.dtype) -> None:
    check((2, 19, 9, 10, 7), dtype, layout)


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("stride", [2, 3])
@pytest.mark.parametrize(
    "shape", [(2, 19, 9, 10, 7), (3, 17, 8, 8, 5), (2, 8, 2, 3, 7), (2, 5, 1, 1, 3), (0, 8, 4, 4, 3)]
)
def test_at_a_stride(shape: tuple[int, ...], stride: int, dtype: torch.dtype) -> None:
    check(shape, dtype, stride=stride)


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_gradient_of_the_input_by_torch(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "SLOW_CONVOLUTIONS", False)
    check((2, 19, 9, 10, 7), dtype)


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("name", LIBRARIES)
def test_code_for_other_processors(name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    take_training_library(name, monkeypatch)
    for shape in ((2, 19, 9, 10, 7), (1, 33, 5, 25, 3)):
        check(shape, dtype)


def test_gradient_in_another_layout() -> None:
    check((2, 19, 9, 10, 7), torch.float32, grad_layout="contiguous")


@needs_compiler
@pytest.mark.parametrize("dtype", TOLERANCES)
def test_native_code_is_what_computes(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    def unexpected(*_: Any) -> Any:
        raise AssertionError("the plain path was taken")

    monkeypatch.setattr(depthwise, "plain_weight_gradient", unexpected)
    monkeypatch.setattr(depthwise, "input_gradient", unexpected)
    check((2, 19, 9, 10, 7), dtype)


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_plain_path(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONVNEXT_KERNELS", "off")
    check((2, 19, 9, 10, 7), dtype)


@needs_compiler
def test_long_sums_keep_their_digits() -> None:
    x, grad = (torch.rand(1, 2, 400, 500) for _ in range(2))
    values = depthwise_weight_gradient(x, grad, 3)
    references = depthwise.plain_weight_gradient(x.double(), grad.double(), 3)
    assert all(error_of(*pair) < 1e-6 for pair in zip(values, references, strict=True))


@needs_compiler
def test_any_number_of_threads_gives_the_same_bits() -> None:
    x, weight, grad = (torch.randn(shape) for shape in ((5, 40, 14, 14), (40, 1, 7, 7), (5, 40, 14, 14)))
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3, 2):
            torch.set_num_threads(count)
            results.append(depthwise_gradient(x, weight, grad))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(*pair) for result in results[1:] for pair in zip(result, results[0], strict=True))


@pytest.mark.parametrize("wanted", [(True, False, False), (False, True, False), (False, False, True)])
def test_only_what_is_wanted(wanted: tuple[bool, ...]) -> None:
    tensors = inputs((2, 8, 6, 6, 3), torch.float32)
    tensors = [tensor.detach().requires_grad_(want) for tensor, want in zip(tensors, wanted, strict=True)]
    depthwise_conv2d(*tensors, 1).sum().backward()
    assert [tensor.grad is not None for tensor in tensors] == list(wanted)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # opcheck's own
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize(("biased", "stride"), [(True, 1), (False, 2)])
def test_operators_keep_torchs_rules(dtype: torch.dtype, biased: bool, stride: int) -> None:
    x, weight, bias = inputs((2, 5, 6, 7, 3), dtype)
    torch.library.opcheck(depthwise_conv2d, (x, weight, bias if biased else None, stride))
    torch.library.opcheck(depthwise_weight_gradient, (x, torch.randn_like(x), 3))
    torch.library.opcheck(depthwise_gradient, (x, weight, torch.randn_like(x).requires_grad_()))


@pytest.mark.parametrize("stride", [1, 2])
def test_gradients_of_gradients(stride: int) -> None:
    tensors = inputs((2, 3, 5, 4, 3), torch.float64)
    assert torch.autograd.gradgradcheck(partial(depthwise_conv2d, stride=stride), tuple(tensors))


@pytest.mark.parametrize("shape", [(4, 1, 3, 5), (4, 1, 4, 4), (4, 2, 3, 3), (5, 1, 3, 3)])
def test_weights_of_another_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match="k odd"):
        depthwise_conv2d(torch.randn(1, 4, 8, 8), torch.randn(shape), None, 1)


@needs_compiler
def test_torch_counts_its_operations() -> None:
    tensors = inputs((2, 18, 9, 7, 5), torch.float32)
    with FlopCounterMode(display=False) as counter:
        depthwise_conv2d(*tensors, 1).sum().backward()
    assert counter.get_total_flops() == 3 * 2 * 2 * 18 * 9 * 7 * 5**2  # forward and two gradients
