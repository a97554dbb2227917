"""A block's two linear layers on the GPU, whole and in halves: outputs and gradients against float64, on odd shapes."""

import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from convnext.acceleration.gpu import linear_operator as linear
from convnext.acceleration.gpu import mlp_operator as whole
from convnext.acceleration.gpu.linear_operator import linear_add, linear_gelu, linear_gelu_squares
from convnext.acceleration.gpu.mlp_operator import mlp
from convnext.acceleration.gpu.triton_runtime import has_triton, interpreted
from convnext.errors import UsageError

DEVICE = "cuda" if torch.cuda.is_available() and not interpreted() else "cpu"
pytestmark = [pytest.mark.skipif(not has_triton(), reason="needs Triton")]
pytestmark += [pytest.mark.gpu] if DEVICE == "cuda" else []
TOLERANCES = {torch.float32: 2e-6, torch.bfloat16: 1e-2, torch.float16: 1e-3}  # the interpreter cuts bf16 off
KEEP = (1.25, 0.0, 2.0)


def plain_mlp(x: Tensor, *others: Tensor) -> Tensor:
    *first, weight2, bias2, shortcut = others
    return plain_add(plain_gelu(x, *first), weight2, bias2, shortcut)


def plain_gelu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.gelu(F.linear(x, weight, bias))


def plain_add(x: Tensor, weight: Tensor, bias: Tensor, shortcut: Tensor) -> Tensor:
    keep = keep_for(x).to(x.dtype).repeat_interleave(x.shape[:-1].numel() // max(1, samples_of(x)))
    return shortcut + keep.view(*x.shape[:-1], 1) * F.linear(x, weight, bias)


def plain_scaled_add(x: Tensor, weight: Tensor, bias: Tensor, shortcut: Tensor, scale: Tensor) -> Tensor:
    return plain_add(x * scale[:, None, None], weight, bias, shortcut)


def plain_response(x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor, short: Tensor) -> Tensor:
    a = plain_gelu(x, weight1, bias1)
    return plain_scaled_add(a, weight2, bias2, short, response(a.square().sum((1, 2))))


def fast_response(x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor, short: Tensor) -> Tensor:
    a, squares = linear_gelu_squares(x, weight1, bias1)
    return linear_add(a, weight2, bias2, short, keep_for(x), response(squares))


def response(squares: Tensor) -> Tensor:
    """GRN's factor, without its weight."""
    norm = squares.sqrt()
    return 1 + norm / (norm.mean(-1, keepdim=True) + 1e-6)


def samples_of(x: Tensor) -> int:
    return len(x) if x.ndim == 4 else min(3, len(x))


def keep_for(x: Tensor) -> Tensor:
    return torch.tensor(KEEP, device=x.device)[: samples_of(x)]


def fast_gelu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return linear_gelu(x, weight, bias)


# what it takes: a map or a matrix of C or D channels, the layers' weights and biases, factors
Operator = tuple[Callable[..., Tensor], Callable[..., Tensor], str]
OPERATORS: dict[str, Operator] = {
    "mlp": (lambda *t: mlp(*t, keep=keep_for(t[0])), plain_mlp, "C w1 b1 w2 b2 C"),
    "mlp_again": (lambda *t: mlp(*t, keep=keep_for(t[0]), recompute=True), plain_mlp, "C w1 b1 w2 b2 C"),
    "linear_gelu": (fast_gelu, plain_gelu, "C w1 b1"),
    "linear_gelu_again": (lambda *t: linear_gelu(*t, recompute=True), plain_gelu, "C w1 b1"),
    "linear_add": (lambda *t: linear_add(*t, keep=keep_for(t[0])), plain_add, "D w2 b2 C"),
    "linear_scaled_add": (
        lambda *t: linear_add(*t[:4], keep=keep_for(t[0]), row_scale=t[4]),
        plain_scaled_add,
        "D w2 b2 C s",
    ),
    "response": (fast_response, plain_response, "C w1 b1 w2 b2 C"),
}


def inputs(name: str, rows: tuple[int, ...], channels: int, wide: int, dtype: torch.dtype) -> list[Tensor]:
    shapes = {"C": (*rows, channels), "D": (*rows, wide), "w1": (wide, channels), "b1": (wide,), "s": (rows[0], wide)}
    shapes |= {"w2": (channels, wide), "b2": (channels,)}
    tensors = []
    for kind in OPERATORS[name][2].split():
        values = torch.randn(shapes[kind])
        if kind.startswith("w"):
            values = 1.5 * values / shapes[kind][1] ** 0.5
        tensors.append(values.to(DEVICE, torch.float32 if kind == "s" else dtype).requires_grad_())
    return tensors


def error_of(value: Tensor | None, reference: Tensor | None) -> float:
    assert value is not None
    assert reference is not None
    assert value.shape == reference.shape
    return (torch.linalg.norm(value.double() - reference) / torch.linalg.norm(reference).clamp_min(1e-30)).item()


def results(name: str, tensors: list[Tensor], fast: Callable[..., Tensor] | None = None) -> list[Tensor]:
    """Output and gradients."""
    output = (fast or OPERATORS[name][0])(*tensors)
    generator = torch.Generator().manual_seed(1)
    grad = torch.randn(output.shape, generator=generator).to(output)
    return [output.detach(), *torch.autograd.grad(output, tensors, grad)]


def check(name: str, tensors: list[Tensor], tolerance: float, fast: Callable[..., Tensor] | None = None) -> None:
    """Output and gradients against float64."""
    values = results(name, tensors, fast)
    doubles = [tensor.detach().double().requires_grad_() for tensor in tensors]
    references = results(name, doubles, OPERATORS[name][1])
    assert values[0].is_contiguous()
    for value, reference, tensor in zip(values, references, [tensors[0], *tensors], strict=True):
        assert value.dtype == tensor.dtype
        assert error_of(value, reference) <= tolerance


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("name", OPERATORS)
def test_output_and_gradients(name: str, dtype: torch.dtype) -> None:
    check(name, inputs(name, (3, 7, 7), 40, 96, dtype), TOLERANCES[dtype])


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize(
    ("rows", "channels", "wide"),
    [((1, 13, 17), 48, 96), ((2, 1, 1), 64, 64), ((2, 3, 5), 19, 77), ((3, 2, 2), 264, 64), ((0, 7, 7), 40, 160)],
)
@pytest.mark.parametrize("name", OPERATORS)
def test_shapes(name: str, rows: tuple[int, ...], channels: int, wide: int) -> None:
    check(name, inputs(name, rows, channels, wide, torch.float32), 3e-6)


@pytest.mark.parametrize("name", [name for name in OPERATORS if name not in ("linear_scaled_add", "response")])
def test_rows_of_a_matrix(name: str) -> None:
    check(name, inputs(name, (147,), 40, 160, torch.float32), 2e-6)


@pytest.mark.parametrize("name", OPERATORS)
def test_strided_inputs(name: str) -> None:
    tensors = [
        tensor.detach().repeat_interleave(2, -1)[..., ::2].requires_grad_()
        for tensor in inputs(name, (3, 4, 5), 40, 64, torch.float32)
    ]
    check(name, tensors, 2e-6)


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("name", OPERATORS)
def test_plain_path(name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONVNEXT_KERNELS", "off")
    check(name, inputs(name, (3, 5, 5), 24, 96, dtype), 2 * TOLERANCES[dtype])


def test_widest_hidden_map() -> None:
    check("mlp", inputs("mlp", (2, 2, 2), 16, 2816, torch.float32), 3e-6)


@pytest.mark.parametrize("name", OPERATORS)
def test_the_same_bits_again(name: str) -> None:
    tensors = inputs(name, (3, 5, 5), 40, 70, torch.float16)
    for value, again in zip(results(name, tensors), results(name, tensors), strict=True):
        assert torch.equal(value, again)


def test_sums_of_squares() -> None:
    x, weight, bias = inputs("linear_gelu", (3, 9, 9), 40, 70, torch.float32)
    a, squares = linear_gelu_squares(x, weight, bias)
    assert squares.dtype == torch.float32
    assert error_of(squares, a.double().square().sum((1, 2))) < 1e-6
    (grad,) = torch.autograd.grad(squares.sum(), x)  # of the squares alone
    double = x.detach().double().requires_grad_()
    expected = plain_gelu(double, weight.double(), bias.double()).square().sum()
    assert error_of(grad, torch.autograd.grad(expected, double)[0]) < 2e-6


def test_a_shortcut_in_another_dtype() -> None:
    *tensors, shortcut = inputs("mlp", (2, 5, 5), 24, 96, torch.bfloat16)
    shortcut = shortcut.detach().float().requires_grad_()
    out = mlp(*tensors, shortcut=shortcut)
    assert out.dtype == torch.float32
    grads = torch.autograd.grad(out, [*tensors, shortcut], torch.randn_like(out))
    assert [grad.dtype for grad in grads] == [torch.bfloat16] * 5 + [torch.float32]


@pytest.mark.parametrize("channels", [40, 264])  # one kernel for both layers, and one for each
def test_what_is_kept_for_the_gradients(channels: int) -> None:
    tensors, kept = inputs("mlp", (1, 3, 3), channels, 96, torch.float32), []
    for recompute in (False, True):
        shapes: list[torch.Size] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, to=shapes: to.append(t.shape) or t, lambda t: t):
            mlp(*tensors, recompute=recompute)
        kept.append([shape for shape in shapes if len(shape) == 4])
    maps = [(1, 3, 3, channels), (1, 3, 3, 96)]
    assert kept == [maps, maps[:1]]


def test_only_wanted_gradients_are_computed() -> None:
    x, weight1, bias1, *others = inputs("mlp", (2, 3, 3), 24, 96, torch.float32)
    frozen = [tensor.detach() for tensor in others]
    full = torch.autograd.grad(mlp(x, weight1, bias1, *frozen).sum(), [x, weight1, bias1])
    assert torch.equal(torch.autograd.grad(mlp(x, weight1.detach(), bias1.detach(), *frozen).sum(), x)[0], full[0])
    (grad,) = torch.autograd.grad(mlp(x.detach(), weight1.detach(), bias1, *frozen).sum(), bias1)
    assert torch.equal(grad, full[2])


def test_values_far_out() -> None:
    values = torch.tensor([-1e4, -9.0, -6.6, -6.4, -3.0, -0.5, 0.0, 0.5, 3.0, 6.4, 6.6, 9.0, 1e4, float("nan")])
    for dtype in TOLERANCES:
        x = F.pad(values[:, None], (0, 15)).to(DEVICE, dtype).requires_grad_()
        weight = torch.eye(16, device=DEVICE, dtype=dtype)
        y = linear_gelu(x, weight, torch.zeros(16, device=DEVICE))
        double = x.detach()[:, 0].double().requires_grad_()
        expected = F.gelu(double)
        torch.testing.assert_close(y[:, 0].double(), expected, rtol=1e-2, atol=1e-6, equal_nan=True)
        grad = torch.autograd.grad(y[:-1, 0].sum(), x)[0][:-1, 0].double()
        torch.testing.assert_close(grad, torch.autograd.grad(expected.sum(), double)[0][:-1], rtol=1e-2, atol=1e-5)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # opcheck's own
@pytest.mark.parametrize("store", [False, True])
@pytest.mark.parametrize("name", ["mlp", "linear_gelu", "linear_add"])
def test_operators_keep_torchs_rules(name: str, store: bool) -> None:
    x, weight1, bias1, weight2, bias2, shortcut = inputs("mlp", (2, 2, 3), 16, 32, torch.float32)
    keep, wide = keep_for(x), torch.randn(2, 2, 3, 32, device=DEVICE, requires_grad=True)
    scale = torch.randn(2, 32, device=DEVICE, requires_grad=True) if store else None
    operator, arguments = {
        "mlp": (whole.mlp_forward, (x, weight1, bias1, weight2, bias2, shortcut, keep, store)),
        "linear_gelu": (linear.linear_gelu_forward, (x, weight1, bias1, store, store)),
        "linear_add": (linear.linear_add_forward, (wide, weight2, bias2, shortcut, keep, scale)),
    }[name]
    torch.library.opcheck(operator, arguments)


def test_operators_of_gradients_keep_torchs_rules() -> None:
    x, weight1, bias1, weight2, *_ = (tensor.detach() for tensor in inputs("mlp", (2, 2, 3), 16, 32, torch.float32))
    wide, scale = torch.randn(2, 2, 3, 32, device=DEVICE), torch.randn(2, 32, device=DEVICE)
    torch.library.opcheck(whole.mlp_gradient, (x, x, weight1, bias1, weight2, keep_for(x), wide))
    torch.library.opcheck(linear.linear_gelu_gradient, (wide, scale, x, weight1, bias1, None))
    torch.library.opcheck(linear.linear_add_gradient, (x, wide, weight2, keep_for(x), scale))


@pytest.mark.parametrize("name", OPERATORS)
def test_compiled(name: str) -> None:
    tensors = inputs(name, (3, 3, 3), 24, 96, torch.float32)
    torch.compiler.reset()
    backend = "aot_eager" if interpreted() or DEVICE == "cpu" else "inductor"
    fast: Any = torch.compile(OPERATORS[name][0], fullgraph=True, backend=backend)
    check(name, tensors, 2e-6, fast)


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU")
@pytest.mark.parametrize("precision", ["ieee", "tf32", "bf16", "fp16"])
@pytest.mark.parametrize("channels", [96, 160, 384])
@pytest.mark.parametrize("name", OPERATORS)
def test_networks_sizes(name: str, channels: int, precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Maps large enough for each kernel and the larger tiles; compiled, the kernels are the same."""
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)
    monkeypatch.setattr(torch.backends.cuda.matmul, "fp32_precision", "tf32" if precision == "tf32" else "ieee")
    tensors = inputs(name, (3, 99, 101), channels, 4 * channels, dtype)
    tolerance = {"ieee": 1e-5, "tf32": 2e-3}.get(precision, TOLERANCES[dtype])
    check(name, tensors, tolerance)
    torch.compiler.reset()
    compiled: Any = torch.compile(OPERATORS[name][0], fullgraph=True)
    check(name, tensors, tolerance, compiled)


def test_shapes_that_do_not_fit() -> None:
    x, weight, bias = torch.randn(3, 4), torch.randn(8, 4), torch.randn(8)
    for call in (
        lambda: linear_gelu(x, weight.t(), bias),
        lambda: mlp(x, weight, bias[:4], weight.t(), bias[:4], x),
        lambda: mlp(x, weight, bias, weight.t(), bias[:4], x[:2]),
        lambda: mlp(x, weight, bias, weight.t(), bias[:4], x, torch.ones(2)),
        lambda: mlp(x, weight, bias, torch.randn(4, 9), bias[:4], x),
        lambda: linear_add(x, weight, bias, torch.randn(3, 8), None, torch.ones(3, 5)),
    ):
        with pytest.raises(UsageError, match="need"):
            call()


def test_the_tests_run_the_kernels() -> None:
    assert linear.runs(torch.empty(1, device=DEVICE))
    assert DEVICE == "cuda" or os.environ["TRITON_INTERPRET"] == "1"
