"""A block's two linear layers as one operator: against float64, with the code for this processor and for others."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import gelu, linear
from torch.utils.flop_counter import FlopCounterMode

from convnext.acceleration.cpu.mlp import computes, residual_mlp, residual_mlp_gradient
from convnext.errors import UsageError
from tests.acceleration.cpu.cases import LIBRARIES, take_training_library

TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
SHAPES = [  # (N, ..., B), D, C: sizes that fit registers, lines and tasks, and such as fit nothing
    ((2, 7, 96), 64, 96),
    ((3, 5, 5, 17), 33, 17),
    ((16, 3), 9, 2),
    ((2, 3, 40), 50, 24),
    ((400, 19), 35, 18),
    ((3, 67, 530), 70, 515),
    ((0, 4, 8), 32, 8),
    ((2, 0, 8), 32, 8),
]


def tensors_of(shape: tuple[int, ...], hidden: int, outputs: int, dtype: torch.dtype) -> list[Tensor]:
    """Shortcut, x, weights, biases and LayerScale; a layer's parameters are in fp32 as under autocast."""
    torch.manual_seed(3)
    inputs = shape[-1]
    values = [
        torch.randn(*shape[:-1], outputs),
        torch.randn(shape).to(dtype),
        torch.randn(hidden, inputs) / inputs**0.5,
        torch.randn(hidden),
        torch.randn(outputs, hidden) / hidden**0.5,
        torch.randn(outputs),
        torch.randn(outputs),
    ]
    return [value.requires_grad_() for value in values]


def factors(x: Tensor) -> Tensor:
    """Stochastic depth's, one of them 0 where there are several."""
    return torch.arange(1, len(x) + 1).remainder(3) * 0.75


def mlp_of(tensors: Sequence[Tensor], keep: Tensor | None, dtype: torch.dtype, out: torch.dtype) -> tuple[Tensor, Any]:
    """The operator, with LayerScale or without."""
    call: Any = residual_mlp
    return call(*tensors, *(None,) * (7 - len(tensors)), keep, dtype, out)


def reference(tensors: list[Tensor], keep: Tensor | None) -> tuple[Tensor, list[Tensor]]:
    """The sum in float64, of torch's operators alone, and its inputs as leaves."""
    doubles = [tensor.detach().double().requires_grad_() for tensor in tensors]
    shortcut, x, weight1, bias1, weight2, bias2, *scale = doubles
    branch = linear(gelu(linear(x, weight1, bias1)), weight2, bias2)
    for factors in scale:
        branch = branch * factors
    for factors in () if keep is None else (keep.double(),):
        branch = branch * factors.view(-1, *(1,) * (x.ndim - 1))
    return shortcut + branch, doubles


def error_of(value: Tensor, expected: Tensor) -> float:
    assert value.shape == expected.shape
    return (torch.linalg.norm(value.double() - expected) / torch.linalg.norm(expected).clamp_min(1e-30)).item()


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize(("shape", "hidden", "outputs"), SHAPES)
@pytest.mark.parametrize("dropped", [True, False])
@pytest.mark.parametrize("scaled", [True, False])
def test_output_and_gradients(
    shape: tuple[int, ...],
    hidden: int,
    outputs: int,
    dtype: torch.dtype,
    library: str,
    dropped: bool,
    scaled: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    take_training_library(library, monkeypatch)
    assert computes(dtype) or library == "here"
    tensors = tensors_of(shape, hidden, outputs, dtype)[: 7 if scaled else 6]
    keep = factors(tensors[1]) if dropped else None
    out, kept = mlp_of(tensors, keep, dtype, torch.float32)
    expected, doubles = reference(tensors, keep)
    assert kept.dtype == dtype
    assert not kept.requires_grad
    assert error_of(out, expected) <= TOLERANCES[dtype]
    grad = torch.randn_like(out)
    values = torch.autograd.grad(out, tensors, grad)
    for tensor, value, right in zip(
        tensors, values, torch.autograd.grad(expected, doubles, grad.double()), strict=True
    ):
        assert value.dtype == tensor.dtype
        assert error_of(value, right) <= TOLERANCES[dtype]


@pytest.mark.parametrize("library", LIBRARIES)
def test_whole_models_in_bf16_and_strided_inputs(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    take_training_library(library, monkeypatch)
    tensors = [tensor.detach().bfloat16() for tensor in tensors_of((3, 4, 18), 20, 18, torch.bfloat16)]
    tensors = [tensor.repeat_interleave(2, -1)[..., ::2].requires_grad_() for tensor in tensors]
    out, _ = mlp_of(tensors, None, torch.bfloat16, torch.bfloat16)
    expected, doubles = reference(tensors, None)
    assert out.dtype == torch.bfloat16
    assert error_of(out, expected) <= 1e-2
    grad = torch.randn_like(out)
    for value, right in zip(
        torch.autograd.grad(out, tensors, grad), torch.autograd.grad(expected, doubles, grad.double()), strict=True
    ):
        assert value.dtype == torch.bfloat16
        assert error_of(value, right) <= 1e-2


@pytest.mark.parametrize("library", LIBRARIES)
def test_any_number_of_threads_gives_the_same_bits(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    take_training_library(library, monkeypatch)
    tensors = [tensor.detach() for tensor in tensors_of((7, 64, 24), 48, 24, torch.float32)]
    dtypes = [dtype for dtype in TOLERANCES if computes(dtype)]
    threads, results = torch.get_num_threads(), []
    gradient: Any = residual_mlp_gradient
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            found = []
            for dtype in dtypes:
                out, kept = mlp_of(tensors, factors(tensors[1]), dtype, torch.float32)
                found += [out, kept, *gradient(out, *tensors[1:], factors(tensors[1]), kept)]
            results.append(found)
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        assert all(torch.equal(*pair) for pair in zip(result, results[0], strict=True))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # opcheck's own
def test_operators_keep_torchs_rules() -> None:
    tensors = tensors_of((2, 3, 5), 7, 6, torch.float32)
    keep = factors(tensors[1])
    torch.library.opcheck(residual_mlp, (*tensors, keep, torch.float32, torch.float32))
    torch.library.opcheck(residual_mlp, (*tensors[:-1], None, keep, torch.float32, torch.float32))
    out, kept = mlp_of(tensors, keep, torch.float32, torch.float32)
    values = [tensor.detach() for tensor in (out, *tensors[1:])]
    torch.library.opcheck(residual_mlp_gradient, (*values, keep, kept))
    torch.library.opcheck(residual_mlp_gradient, (*values[:-1], None, keep, kept))


def test_products_are_counted() -> None:
    tensors = tensors_of((2, 3, 4), 5, 6, torch.float32)
    with FlopCounterMode(display=False) as counter:
        out, _ = mlp_of(tensors, None, torch.float32, torch.float32)
        assert counter.get_total_flops() == 2 * 6 * (4 * 5 + 5 * 6)
        out.sum().backward()
    assert counter.get_total_flops() == 3 * 2 * 6 * (4 * 5 + 5 * 6)


def test_gradients_of_gradients() -> None:
    tensors = [tensor.detach().double().requires_grad_() for tensor in tensors_of((2, 3, 4), 5, 3, torch.float32)]
    keep = factors(tensors[1]).double()
    gradgradcheck: Any = torch.autograd.gradgradcheck
    for inputs in (tensors, tensors[:-1]):
        assert gradgradcheck(lambda *values: mlp_of(values, keep, torch.float64, torch.float64)[0], inputs)


def test_gradients_of_gradients_by_the_kernel() -> None:
    """Through the kernel's first gradients, in fp32, beside those in float64."""
    tensors = tensors_of((2, 9, 8), 16, 8, torch.float32)
    _, doubles = reference(tensors, None)
    found = []
    for values, dtype in ((tensors, torch.float32), (doubles, torch.float64)):
        out, _ = mlp_of(values, None, dtype, dtype)
        (grad,) = torch.autograd.grad(out.sin().sum(), values[1], create_graph=True)
        found.append(torch.autograd.grad(grad.square().sum(), values))
    assert all(error_of(*pair) <= 1e-5 for pair in zip(*found, strict=True))


def test_shapes_that_do_not_fit() -> None:
    tensors = [tensor.detach() for tensor in tensors_of((2, 3, 4), 5, 4, torch.float32)]
    dtypes = torch.float32, torch.float32
    with pytest.raises(UsageError, match=r"\(3, 5\).*need"):
        mlp_of([*tensors[:4], tensors[4][:3], *tensors[5:]], None, *dtypes)
    with pytest.raises(UsageError, match="one value an output"):
        mlp_of([*tensors[:-1], torch.ones(3)], None, *dtypes)
    with pytest.raises(UsageError, match="one a sample"):
        mlp_of(tensors, torch.ones(3), *dtypes)
