"""LayerNorm, GELU and the end of a branch: outputs and gradients against float64, on shapes that fit nothing."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import gelu
from torch.nn.functional import layer_norm as torch_layer_norm

from convnext.acceleration.cpu.add_branch import add_branch, add_branch_gradient, scale_rows, scale_rows_gradient
from convnext.acceleration.cpu.bias_gelu import bias_gelu, bias_gelu_gradient
from convnext.acceleration.cpu.layer_norm import layer_norm, layer_norm_gradient
from convnext.acceleration.cpu.native import available
from convnext.errors import UsageError

needs_compiler = pytest.mark.skipif(not available(), reason="no C compiler here")

TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
SHAPES = [(2, 5, 3, 17), (3, 7, 18), (200, 3, 35), (1, 16), (4, 1), (2, 0, 8), (0, 3, 19), (3000, 33)]


def fast_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return layer_norm(x, weight, bias, 1e-6, x.dtype)[0]


def fast_branch(shortcut: Tensor, x: Tensor, bias: Tensor) -> Tensor:
    return add_branch(shortcut, x, bias, kept(x), shortcut.dtype)


def fast_scale(weight: Tensor, scale: Tensor) -> Tensor:
    return scale_rows(weight.float(), scale, weight.dtype)


def kept(x: Tensor) -> Tensor:
    """A factor for each sample, some of them 0."""
    return torch.arange(len(x), dtype=torch.float32) % 3


def slow_branch(shortcut: Tensor, x: Tensor, bias: Tensor) -> Tensor:
    return shortcut + kept(x).view(-1, *(1,) * (x.ndim - 1)) * (x + bias)


Operator = tuple[Callable[..., Tensor], Callable[..., Tensor], str]
OPERATORS: dict[str, Operator] = {  # fast, slow, and what they take: maps, or one value a channel or a row
    "layer_norm": (fast_norm, lambda x, w, b: torch_layer_norm(x, w.shape, w, b, 1e-6), "map channel channel"),
    "bias_gelu": (bias_gelu, lambda x, b: gelu(x + b), "map channel"),
    "add_branch": (fast_branch, slow_branch, "map map channel"),
    "scale_rows": (fast_scale, lambda w, s: w * s[:, None], "matrix row"),
}
GRADIENTS = {
    "layer_norm": lambda x, w: layer_norm_gradient(x, x + 1, w, layer_norm(x + 1, w, w, 1e-6, x.dtype)[1], 1e-6),
    "bias_gelu": lambda x, w: bias_gelu_gradient(x, x, w),
    "add_branch": lambda x, w: add_branch_gradient(x, kept(x), x.dtype, w.dtype),
    "scale_rows": lambda x, w: scale_rows_gradient(x.flatten(1), x.flatten(1).float(), w.new_ones(len(x))),
}


def inputs(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> list[Tensor]:
    shapes = {"map": shape, "channel": shape[-1:], "matrix": shape[:1] + shape[-1:], "row": shape[:1]}
    kinds = OPERATORS[name][2].split()
    tensors = [torch.randn(shapes[kind], dtype=dtype if kind in ("map", "matrix") else torch.float32) for kind in kinds]
    return [(2 * tensor + 0.5).requires_grad_() for tensor in tensors]


def error_of(value: Tensor | None, reference: Tensor | None) -> float:
    assert value is not None
    assert reference is not None
    assert value.shape == reference.shape
    return (torch.linalg.norm(value.double() - reference) / torch.linalg.norm(reference).clamp_min(1e-30)).item()


def check(name: str, tensors: list[Tensor], tolerance: float) -> None:
    """Output and gradients against float64."""
    fast, slow, _ = OPERATORS[name]
    doubles = [tensor.detach().double().requires_grad_() for tensor in tensors]
    output, expected = fast(*tensors), slow(*doubles)
    assert output.is_contiguous()
    assert error_of(output, expected) <= tolerance
    grad = torch.randn_like(output)
    values = torch.autograd.grad(output, tensors, grad)
    for tensor, value, reference in zip(
        tensors, values, torch.autograd.grad(expected, doubles, grad.double()), strict=True
    ):
        assert value.dtype == tensor.dtype
        assert error_of(value, reference) <= tolerance


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", OPERATORS)
def test_output_and_gradients(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    if name == "layer_norm" and shape[-1] == 1:  # whose output is its bias, and whose gradient is nothing
        return
    check(name, inputs(name, shape, dtype), TOLERANCES[dtype])


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("name", OPERATORS)
def test_plain_path(name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONVNEXT_KERNELS", "off")
    check(name, inputs(name, (3, 5, 19), dtype), TOLERANCES[dtype])


@pytest.mark.parametrize("name", OPERATORS)
def test_strided_inputs(name: str) -> None:
    tensors = [
        tensor.detach().repeat_interleave(2, -1)[..., ::2].requires_grad_()
        for tensor in inputs(name, (3, 5, 19), torch.float32)
    ]
    check(name, tensors, 1e-5)


def test_values_far_out() -> None:
    x = torch.tensor([[-1e4, -6.0, -5.5, 0.0, 5.5, 6.0, 1e4, float("nan")]])
    for dtype in TOLERANCES:
        values = bias_gelu(x.to(dtype), torch.zeros(8)).float()
        gradients, _ = bias_gelu_gradient(torch.ones(1, 8, dtype=dtype), x.to(dtype), torch.zeros(8))
        for value, expected in zip(values[0], gelu(x)[0], strict=True):
            torch.testing.assert_close(value, expected, rtol=1e-2, atol=1e-3, equal_nan=True)
        assert torch.equal(gradients[0, :7].float().round(), torch.tensor([0.0, 0, 0, 0, 1, 1, 1]))
        assert gradients[0, 7].isnan()


@needs_compiler
@pytest.mark.parametrize("name", GRADIENTS)
def test_any_number_of_threads_gives_the_same_bits(name: str) -> None:
    x, weight = torch.randn(50, 13, 40), torch.randn(40)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3, 2):
            torch.set_num_threads(count)
            results.append(GRADIENTS[name](x, weight))
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        assert all(torch.equal(*pair) for pair in zip(result, results[0], strict=True))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # opcheck's own
@pytest.mark.parametrize("dtype", TOLERANCES)
def test_operators_keep_torchs_rules(dtype: torch.dtype) -> None:
    x, weight, bias = inputs("layer_norm", (2, 3, 5), dtype)
    matrix, scale = torch.randn(2, 3, requires_grad=True), torch.randn(2, requires_grad=True)
    grad, keep = torch.randn_like(x), kept(x)
    torch.library.opcheck(layer_norm, (x, weight, bias, 1e-6, dtype))
    torch.library.opcheck(bias_gelu, (x, bias))
    torch.library.opcheck(add_branch, (x, torch.randn_like(x).requires_grad_(), bias, keep, dtype))
    torch.library.opcheck(scale_rows, (matrix, scale, dtype))
    x, weight, bias, matrix, scale = (tensor.detach() for tensor in (x, weight, bias, matrix, scale))
    statistics = layer_norm(x, weight, bias, 1e-6, dtype)[1]
    torch.library.opcheck(layer_norm_gradient, (grad, x, weight, statistics, 1e-6))
    torch.library.opcheck(bias_gelu_gradient, (grad, x, bias))
    torch.library.opcheck(add_branch_gradient, (grad, keep, dtype, torch.float32))
    torch.library.opcheck(scale_rows_gradient, (matrix.to(dtype), matrix, scale))


def test_gradients_of_gradients() -> None:
    def double(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, requires_grad=True)

    x, weight, bias = double(2, 3, 4), double(4), double(4)
    gradgradcheck: Any = torch.autograd.gradgradcheck
    assert gradgradcheck(lambda *tensors: layer_norm(*tensors, 1e-6, torch.float64)[0], (x, weight, bias))
    assert gradgradcheck(bias_gelu, (x, bias))
    assert gradgradcheck(
        lambda *tensors: add_branch(*tensors, kept(x).double(), torch.float64), (x, double(2, 3, 4), bias)
    )
    assert gradgradcheck(lambda *tensors: scale_rows(*tensors, torch.float64), (double(3, 4), double(3)))


def test_shapes_that_do_not_fit() -> None:
    x, short = torch.randn(2, 4), torch.randn(3)
    for call in (
        lambda: layer_norm(x, short, short, 1e-6, x.dtype),
        lambda: bias_gelu(x, short),
        lambda: add_branch(x, x, short, None, x.dtype),
        lambda: scale_rows(x, short, x.dtype),
    ):
        with pytest.raises(UsageError, match="need"):
            call()
