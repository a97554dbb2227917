"""The training operators: outputs and every gradient against the references in float64, on shapes that fit nothing."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.nn.functional import gelu
from torch.utils.flop_counter import FlopCounterMode

from convnext.acceleration.cpu import add_branch, bias_gelu, depthwise, layer_norm, mlp, native
from convnext.acceleration.cpu.native import available
from convnext.errors import UsageError
from tests.acceleration.cpu.cases import LIBRARIES, take_training_library

pytestmark = pytest.mark.skipif(not available(), reason="no C compiler here")
FP32, BF16 = torch.float32, torch.bfloat16
TOLERANCES = {FP32: 1e-5, BF16: 1e-2}
Shape = tuple[int, ...]


class Case(NamedTuple):
    """An operator on tensors of some shapes; maps are in the dtype that is tested, parameters in fp32."""

    fast: Callable[..., Tensor]
    reference: Callable[..., Tensor]
    maps: tuple[Shape, ...]
    parameters: tuple[Shape, ...]
    parameters_are_fp32: bool = True

    def tensors(self, dtype: torch.dtype) -> list[Tensor]:
        torch.manual_seed(3)
        parameter_dtype = FP32 if self.parameters_are_fp32 else dtype
        maps = [2 * torch.randn(shape, dtype=dtype) + 0.5 for shape in self.maps]
        parameters = [torch.randn(shape) / shape[-1] ** (0.5 if len(shape) == 2 else 0) for shape in self.parameters]
        return [tensor.requires_grad_() for tensor in maps + [tensor.to(parameter_dtype) for tensor in parameters]]


def factors(x: Tensor) -> Tensor:
    """Stochastic depth's, some of them 0."""
    return (torch.arange(1, len(x) + 1) % 3 * 0.75).to(x.dtype)


def norm_case(shape: Shape) -> Case:
    def fast(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return layer_norm.layer_norm(x, weight, bias, 1e-6, x.dtype)[0]

    return Case(fast, partial(layer_norm.reference, eps=1e-6), (shape,), (shape[-1:],) * 2)


def gelu_case(shape: Shape) -> Case:
    return Case(bias_gelu.bias_gelu, bias_gelu.reference, (shape,), (shape[-1:],))


def branch_case(shape: Shape, dropped: bool) -> Case:
    def fast(shortcut: Tensor, x: Tensor, bias: Tensor) -> Tensor:
        return add_branch.add_branch(shortcut, x, bias, factors(bias.new_empty(len(x))) if dropped else None, x.dtype)

    def reference(shortcut: Tensor, x: Tensor, bias: Tensor) -> Tensor:
        return add_branch.reference(shortcut, x, bias, factors(x) if dropped else None)

    return Case(fast, reference, (shape, shape), (shape[-1:],))


def mlp_case(shape: Shape, hidden: int, outputs: int, dropped: bool, scaled: bool) -> Case:
    def arguments(tensors: tuple[Tensor, ...], dtype: torch.dtype) -> tuple[Any, ...]:
        keep = factors(torch.empty(shape[0], dtype=dtype)) if dropped else None
        return (*tensors, *(() if scaled else (None,)), keep)

    def fast(*tensors: Tensor) -> Tensor:
        dtype = tensors[1].dtype
        return mlp.residual_mlp(*arguments(tensors, FP32), dtype, tensors[0].dtype)[0]

    def reference(*tensors: Tensor) -> Tensor:
        return mlp.reference(*arguments(tensors, tensors[0].dtype))

    parameters = (hidden, shape[-1]), (hidden,), (outputs, hidden), (outputs,), (outputs,)
    return Case(fast, reference, ((*shape[:-1], outputs), shape), parameters[: 5 if scaled else 4])


def depthwise_case(
    shape: Shape, size: int, stride: int = 1, biased: bool = True, layout: str = "channels_last"
) -> Case:
    def laid_out(x: Tensor) -> Tensor:
        if layout == "strided":
            return x.repeat_interleave(2, 1).repeat_interleave(3, 3)[:, ::2, :, ::3]
        return x.contiguous(memory_format=torch.channels_last) if layout == "channels_last" else x

    def fast(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return depthwise.depthwise_conv2d(laid_out(x), weight, bias, stride)

    def reference(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return depthwise.reference(laid_out(x), weight, bias, stride)

    parameters = (shape[1], 1, size, size), (shape[1],)
    return Case(fast, reference, (shape,), parameters[: 1 + biased], parameters_are_fp32=False)


ROWS = [(2, 5, 3, 17), (3, 7, 18), (200, 3, 35), (1, 16), (2, 0, 8), (0, 3, 19), (3000, 33)]
MLPS = [  # (N, ..., B), D, C: sizes that fit registers, lines and tasks, and such as fit nothing
    ((2, 7, 96), 64, 96),
    ((3, 5, 5, 17), 33, 17),
    ((16, 3), 9, 2),
    ((400, 19), 35, 18),
    ((3, 67, 530), 70, 515),
    ((0, 4, 8), 32, 8),
    ((2, 0, 8), 32, 8),
]
MAPS = [  # (N, C, H, W), k
    ((2, 32, 12, 12), 7),
    ((3, 17, 9, 11), 5),  # a channel more than a vector
    ((2, 18, 6, 13), 9),  # two more
    ((2, 35, 5, 4), 3),  # three more
    ((1, 3, 8, 8), 11),
    ((2, 16, 7, 7), 1),
    ((2, 8, 2, 3), 7),  # a map smaller than the kernel
    ((1, 1, 4, 4), 3),
    ((150, 2, 3, 3), 3),  # more samples than tasks
    ((1, 5, 30, 400), 11),  # maps packed in several parts, and a kernel's row summed in several
    ((0, 8, 4, 4), 3),
]
CASES = {f"layer_norm {shape}": norm_case(shape) for shape in ROWS}
CASES |= {f"bias_gelu {shape}": gelu_case(shape) for shape in ROWS}
CASES |= {f"add_branch {shape} {drop}": branch_case(shape, drop) for shape in ROWS for drop in (True, False)}
CASES |= {
    f"mlp {sizes} {dropped} {scaled}": mlp_case(*sizes, dropped=dropped, scaled=scaled)
    for sizes in MLPS
    for dropped, scaled in ((True, True), (False, False), (True, False))
}
CASES |= {f"depthwise {shape} {size}": depthwise_case(shape, size) for shape, size in MAPS}
CASES |= {f"depthwise stride {s} {m}": depthwise_case(*MAPS[m], stride=s) for s in (2, 3) for m in (0, 1, 6, 10)}
CASES |= {f"depthwise {layout}": depthwise_case(*MAPS[1], layout=layout) for layout in ("contiguous", "strided")}
CASES |= {"depthwise without bias": depthwise_case(*MAPS[1], biased=False)}
FEW = ("layer_norm (2, 5, 3, 17)", "bias_gelu (3, 7, 18)", "add_branch (3, 7, 18) True", f"mlp {MLPS[1]} True True")


@pytest.fixture(autouse=True)
def _slow_convolutions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the C code for the gradient of the depthwise convolution's input on any CPU."""
    monkeypatch.setattr(native, "SLOW_CONVOLUTIONS", True)


def error_of(value: Tensor, expected: Tensor) -> float:
    assert value.shape == expected.shape
    return (torch.linalg.norm(value.double() - expected) / torch.linalg.norm(expected).clamp_min(1e-30)).item()


def check(case: Case, tensors: list[Tensor]) -> None:
    """Output and gradients against float64."""
    tolerance = TOLERANCES[tensors[0].dtype]
    doubles = [tensor.detach().double().requires_grad_() for tensor in tensors]
    output, expected = case.fast(*tensors), case.reference(*doubles)
    assert output.dtype == tensors[0].dtype
    assert error_of(output, expected) <= tolerance
    grad = torch.randn_like(output)
    values = torch.autograd.grad(output, tensors, grad)
    for tensor, value, right in zip(
        tensors, values, torch.autograd.grad(expected, doubles, grad.double()), strict=True
    ):
        assert value.dtype == tensor.dtype
        assert error_of(value, right) <= tolerance


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("name", CASES)
def test_output_and_gradients(name: str, dtype: torch.dtype, library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    take_training_library(library, monkeypatch)
    if name.startswith("mlp") and not mlp.computes(dtype):
        assert library == "here"  # the portable code has every precision
        pytest.skip("the CPU multiplies no bf16")
    check(CASES[name], CASES[name].tensors(dtype))


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize(("shape", "size"), MAPS)
@pytest.mark.parametrize("slow", [True, False])
def test_depthwise_output_is_torchs_to_the_bit(
    shape: Shape, size: int, slow: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "SLOW_CONVOLUTIONS", slow)
    case = depthwise_case(shape, size)
    x, weight, bias = case.tensors(dtype)
    x = x.detach().contiguous(memory_format=torch.channels_last)
    expected = torch.nn.functional.conv2d(x, weight, bias, padding=size // 2, groups=shape[1])
    output = case.fast(x, weight, bias)
    assert torch.equal(output, expected)
    assert output.stride() == expected.stride()
    check(case, [x.requires_grad_(), weight, bias])


@pytest.mark.parametrize("name", FEW)
def test_strided_inputs(name: str) -> None:
    strided = [t.detach().repeat_interleave(2, -1)[..., ::2].requires_grad_() for t in CASES[name].tensors(FP32)]
    check(CASES[name], strided)


def test_a_whole_mlp_in_bf16() -> None:
    if not mlp.computes(BF16):
        pytest.skip("the CPU multiplies no bf16")
    case = mlp_case(*MLPS[1], dropped=False, scaled=True)._replace(parameters_are_fp32=False)
    check(case, case.tensors(BF16))


@pytest.mark.parametrize("name", [*FEW, "depthwise (3, 17, 9, 11) 5"])
def test_any_number_of_threads_gives_the_same_bits(name: str) -> None:
    tensors, threads, results = CASES[name].tensors(FP32), torch.get_num_threads(), []
    try:
        for count in (1, 2, 5, 2):
            torch.set_num_threads(count)
            output = CASES[name].fast(*tensors)
            results.append([output, *torch.autograd.grad(output.sin().sum(), tensors)])
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        assert all(torch.equal(*pair) for pair in zip(result, results[0], strict=True))


@pytest.mark.parametrize("wanted", [(True, False, False), (False, True, False), (False, False, True)])
def test_depthwise_computes_only_what_is_wanted(wanted: tuple[bool, ...]) -> None:
    tensors = depthwise_case((2, 8, 6, 6), 3).tensors(FP32)
    tensors = [tensor.detach().requires_grad_(want) for tensor, want in zip(tensors, wanted, strict=True)]
    depthwise.depthwise_conv2d(*tensors, 1).sum().backward()
    assert [tensor.grad is not None for tensor in tensors] == list(wanted)


def test_long_sums_keep_their_digits() -> None:
    x, grad = (torch.rand(1, 2, 400, 500) for _ in range(2))
    weight = torch.zeros(2, 1, 3, 3)
    doubles = weight.double().requires_grad_()
    (expected,) = torch.autograd.grad(depthwise.reference(x.double(), doubles), doubles, grad.double())
    assert error_of(depthwise.depthwise_gradient(x, weight, grad, wants_x=False)[1], expected) < 1e-6


def test_gelu_of_values_far_out() -> None:
    x = torch.tensor([[-1e4, -6.0, -5.5, 0.0, 5.5, 6.0, 1e4, float("nan")]])
    for dtype in TOLERANCES:
        values = bias_gelu.bias_gelu(x.to(dtype), torch.zeros(8)).float()
        gradients, _ = bias_gelu.bias_gelu_gradient(torch.ones(1, 8, dtype=dtype), x.to(dtype), torch.zeros(8))
        for value, expected in zip(values[0], gelu(x)[0], strict=True):
            torch.testing.assert_close(value, expected, rtol=1e-2, atol=1e-3, equal_nan=True)
        assert torch.equal(gradients[0, :7].float().round(), torch.tensor([0.0, 0, 0, 0, 1, 1, 1]))
        assert gradients[0, 7].isnan()


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # opcheck's own
@pytest.mark.parametrize("dtype", TOLERANCES)
def test_operators_keep_torchs_rules(dtype: torch.dtype) -> None:
    opcheck: Any = torch.library.opcheck
    x, weight, bias = norm_case((2, 3, 5)).tensors(dtype)
    opcheck(layer_norm.layer_norm, (x, weight, bias, 1e-6, dtype))
    opcheck(bias_gelu.bias_gelu, (x, bias))
    opcheck(add_branch.add_branch, (x, torch.randn_like(x).requires_grad_(), bias, factors(bias[:2]), dtype))
    x, weight, bias = (tensor.detach() for tensor in (x, weight, bias))
    grad, statistics = torch.randn_like(x), layer_norm.layer_norm(x, weight, bias, 1e-6, dtype)[1]
    opcheck(layer_norm.layer_norm_gradient, (grad, x, weight, statistics))
    opcheck(bias_gelu.bias_gelu_gradient, (grad, x, bias))
    opcheck(add_branch.add_branch_gradient, (grad, factors(bias[:2]), dtype, FP32))
    x, weight, bias = depthwise_case((2, 5, 6, 7), 3).tensors(dtype)
    for arguments in ((x, weight, bias, 1), (x, weight, None, 2)):
        opcheck(depthwise.depthwise_conv2d, arguments)
    for wants_x in (True, False):
        opcheck(depthwise.depthwise_gradient, (x.detach(), weight.detach(), torch.randn_like(x).detach(), wants_x))
    if mlp.computes(dtype):
        tensors = mlp_case((2, 3, 5), 7, 6, dropped=True, scaled=True).tensors(dtype)
        keep = torch.tensor([0.75, 0.0])
        opcheck(mlp.residual_mlp, (*tensors, keep, dtype, dtype))
        opcheck(mlp.residual_mlp, (*tensors[:-1], None, None, dtype, dtype))
        tensors = [tensor.detach() for tensor in tensors]
        out, hidden = mlp.residual_mlp(*tensors, keep, dtype, dtype)  # pyright: ignore[reportCallIssue]
        opcheck(mlp.residual_mlp_gradient, (out, *tensors[1:], keep, hidden))
        opcheck(mlp.residual_mlp_gradient, (out, *tensors[1:-1], None, keep, hidden))


def test_products_are_counted() -> None:
    case = mlp_case((2, 3, 4), 5, 6, dropped=False, scaled=True)
    with FlopCounterMode(display=False) as counter:
        output = case.fast(*case.tensors(FP32))
        assert counter.get_total_flops() == 2 * 6 * (4 * 5 + 5 * 6)
        output.sum().backward()
    assert counter.get_total_flops() == 3 * 2 * 6 * (4 * 5 + 5 * 6)
    case = depthwise_case((2, 18, 9, 7), 5)
    with FlopCounterMode(display=False) as counter:
        case.fast(*case.tensors(FP32)).sum().backward()
    assert counter.get_total_flops() == 3 * 2 * 2 * 18 * 9 * 7 * 5**2  # forward and two gradients


@pytest.mark.parametrize("name", [*FEW, "depthwise (3, 17, 9, 11) 5"])
def test_gradients_of_gradients_are_refused(name: str) -> None:
    tensors = CASES[name].tensors(FP32)
    (grad,) = torch.autograd.grad(CASES[name].fast(*tensors).sin().sum(), tensors[-1], create_graph=True)
    with pytest.raises(RuntimeError, match="convnext"):
        grad.sum().backward()


def test_shapes_and_dtypes_that_do_not_fit() -> None:
    x, short = torch.randn(2, 4), torch.randn(3)
    mlp_tensors = [tensor.detach() for tensor in mlp_case((2, 3, 4), 5, 4, dropped=False, scaled=True).tensors(FP32)]
    for operator, call in {
        "layer_norm": lambda: layer_norm.layer_norm(x, short, short, 1e-6, x.dtype),
        "bias_gelu": lambda: bias_gelu.bias_gelu(x, short),
        "add_branch": lambda: add_branch.add_branch(x, x, short, None, x.dtype),
        "residual_mlp": lambda: mlp.residual_mlp(*mlp_tensors[:-1], short, None, FP32, FP32),  # pyright: ignore
        "depthwise_conv2d": lambda: depthwise.depthwise_conv2d(torch.randn(1, 4, 8, 8), x.view(4, 1, 1, 2), None, 1),
        "float64": lambda: bias_gelu.bias_gelu(x.double(), x[0].double()),
    }.items():
        with pytest.raises(UsageError, match=operator):
            call()
