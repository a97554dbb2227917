"""The GPU's depthwise kernels against float64: output, statistics and every gradient, on shapes that fit nothing."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from convnext.acceleration.gpu import depthwise_operator as gpu
from convnext.acceleration.gpu.depthwise_operator import depthwise, depthwise_norm
from convnext.acceleration.gpu.triton_runtime import interpreted
from convnext.errors import UsageError

EPS = 1e-6
# The interpreter cuts bf16 off where a GPU rounds.
TOLERANCES = {torch.float32: 1e-6, torch.bfloat16: 1e-2 if interpreted() else 6e-3, torch.float16: 1e-3}
PLAIN = "plain", "plain_norm", "plain_norm_gradient", "plain_weight_gradient"


@pytest.fixture
def kernels(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """Where they run, and they alone: the plain path fails."""

    def unexpected(*_: Any) -> Any:
        raise AssertionError("the plain path was taken")

    for name in PLAIN:
        monkeypatch.setattr(gpu, name, unexpected)
    return device


def reference(x: Tensor, weight: Tensor, bias: Tensor | None, *, norm: bool) -> Tensor:
    z = F.conv2d(x.permute(0, 3, 1, 2), weight, bias, padding=weight.shape[-1] // 2, groups=len(weight))
    z = z.permute(0, 2, 3, 1)
    return F.layer_norm(z, z.shape[-1:], eps=EPS) if norm else z


def reference_scale(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    x, weight, bias = (tensor.cpu().double() for tensor in (x, weight, bias))
    return (reference(x, weight, bias, norm=False).var(-1, correction=0) + EPS).rsqrt()


def of(norm: bool) -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
    return (lambda *inputs: depthwise_norm(*inputs, EPS)[0]) if norm else depthwise


def inputs(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, layout: str = "NHWC") -> list[Tensor]:
    """x, weight and bias, for shape N, H, W, C, k."""
    n, h, w, c, k = shape
    if layout == "NCHW":
        x = torch.randn(n, c, h, w).to(device, dtype).permute(0, 2, 3, 1)
    elif layout == "strided":
        x = torch.randn(n, 2 * h, w, 3 * c).to(device, dtype)[:, ::2, :, ::3]
    else:
        x = torch.randn(n, h, w, c).to(device, dtype)
    tensors = x, torch.randn(c, 1, k, k).to(device, dtype), torch.randn(c).to(device, dtype)
    return [tensor.requires_grad_() for tensor in tensors]


def error_of(value: Tensor | None, expected: Tensor | None) -> float:
    assert value is not None
    assert expected is not None
    assert value.shape == expected.shape
    value = value.detach().cpu().double()
    return (torch.linalg.norm(value - expected) / torch.linalg.norm(expected).clamp_min(1e-30)).item()


def check(tensors: list[Tensor], *, norm: bool, grad: Tensor | None = None) -> None:
    """Output and gradients against float64 on the CPU."""
    doubles = [tensor.detach().cpu().double().requires_grad_() for tensor in tensors]
    output, expected = of(norm)(*tensors), reference(*doubles, norm=norm)
    assert output.is_contiguous()
    assert output.dtype == tensors[0].dtype
    tolerance = TOLERANCES[tensors[0].dtype]
    assert error_of(output, expected) <= tolerance
    grad = torch.randn(output.shape).to(output) if grad is None else grad
    output.backward(grad)
    expected.backward(grad.cpu().double())
    for tensor, double in zip(tensors, doubles, strict=True):
        assert tensor.grad is not None
        assert tensor.grad.dtype == tensor.dtype
        assert error_of(tensor.grad, double.grad) <= 2 * tolerance


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("norm", [False, True], ids=["conv", "norm"])
@pytest.mark.parametrize(
    "shape",
    [  # N, H, W, C, k
        (2, 7, 7, 40, 7),
        (1, 13, 17, 33, 3),  # strips of rows, columns of several programs
        (3, 2, 3, 96, 5),  # three blocks of channels, and a map smaller than the kernel
        (1, 3, 4, 352, 3),
        (1, 4, 5, 17, 9),  # the kernel's rows in two parts
        (2, 3, 1, 48, 11),  # in three
        (1, 1, 1, 1, 3),
    ],
    ids=str,
)
def test_output_and_gradients(shape: tuple[int, ...], norm: bool, kernels: torch.device) -> None:
    check(inputs(shape, torch.float32, kernels), norm=norm)


@pytest.mark.usefixtures("poisoned")
def test_the_widest(kernels: torch.device) -> None:
    check(inputs((1, 1, 1, 2816, 3), torch.float32, kernels), norm=True)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(2, 7, 3, 40, 7), (1, 5, 4, 96, 3)], ids=str)
def test_short_floats(shape: tuple[int, ...], dtype: torch.dtype, kernels: torch.device) -> None:
    check(inputs(shape, dtype, kernels), norm=True)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: too many values to interpret")
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("size", [(56, 96), (28, 192), (14, 384), (7, 768), (57, 128), (3, 2816)], ids=str)
def test_maps_of_a_network(size: tuple[int, int], dtype: torch.dtype, kernels: torch.device) -> None:
    check(inputs((16, size[0], size[0] + 1, size[1], 7), dtype, kernels), norm=True)


@pytest.mark.parametrize("norm", [False, True], ids=["conv", "norm"])
def test_fp32_weights_of_bf16_maps(norm: bool, kernels: torch.device) -> None:
    x, weight, bias = inputs((1, 4, 4, 40, 3), torch.float32, kernels)
    check([x.detach().bfloat16().requires_grad_(), weight, bias], norm=norm)


@pytest.mark.parametrize("layout", ["NCHW", "strided"])
def test_other_layouts(layout: str, kernels: torch.device) -> None:
    tensors = inputs((2, 4, 5, 33, 3), torch.float32, kernels, layout)
    assert not tensors[0].is_contiguous()
    check(tensors, norm=True, grad=torch.randn(2, 33, 4, 5, device=kernels).permute(0, 2, 3, 1))


def test_scale_is_that_of_the_norm(kernels: torch.device) -> None:
    x, weight, bias = (tensor.detach() for tensor in inputs((2, 3, 5, 40, 3), torch.float32, kernels))
    _, scale = depthwise_norm(x, weight, bias, EPS)
    assert scale.dtype == torch.float32
    assert not scale.requires_grad
    assert error_of(scale, reference_scale(x, weight, bias)) < 1e-6


@pytest.mark.parametrize("channels", [32, 96])  # in one block, in several
def test_a_large_mean_leaves_the_variance_its_digits(channels: int, kernels: torch.device) -> None:
    x, weight, bias = (t.detach() for t in inputs((1, 3, 3, channels, 3), torch.float32, kernels))
    values = depthwise_norm(x, weight, bias + 3000, EPS)[1]
    assert error_of(values, reference_scale(x, weight, bias + 3000)) < 1e-3


def test_bits_repeat(kernels: torch.device) -> None:
    def step() -> list[Tensor]:
        torch.manual_seed(1)
        tensors = inputs((2, 8, 2, 33, 3), torch.bfloat16, kernels)
        output = depthwise_norm(*tensors, EPS)[0]
        output.square().sum().backward()
        return [output, *(tensor.grad for tensor in tensors)]  # pyright: ignore[reportReturnType]

    for one, two in zip(step(), step(), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("wanted", [(True, False, False), (False, True, False), (False, False, True)], ids=str)
@pytest.mark.parametrize("norm", [False, True], ids=["conv", "norm"])
def test_only_what_is_wanted(norm: bool, wanted: tuple[bool, ...], kernels: torch.device) -> None:
    tensors = inputs((1, 3, 3, 8, 3), torch.float32, kernels)
    tensors = [tensor.detach().requires_grad_(want) for tensor, want in zip(tensors, wanted, strict=True)]
    of(norm)(*tensors).square().sum().backward()
    assert [tensor.grad is not None for tensor in tensors] == list(wanted)


def test_without_bias(kernels: torch.device) -> None:
    x, weight, bias = inputs((1, 4, 3, 40, 3), torch.float32, kernels)
    zeros = torch.zeros_like(bias)
    assert torch.equal(depthwise(x, weight, None), depthwise(x, weight, zeros))
    assert torch.equal(depthwise_norm(x, weight, None, EPS)[0], depthwise_norm(x, weight, zeros, EPS)[0])


@pytest.mark.parametrize("norm", [False, True], ids=["conv", "norm"])
def test_no_images(norm: bool, device: torch.device) -> None:
    tensors = inputs((0, 7, 7, 40, 7), torch.float32, device)
    output = of(norm)(*tensors)
    output.sum().backward()
    assert output.shape == (0, 7, 7, 40)
    assert all(tensor.grad is not None and not tensor.grad.any() for tensor in tensors[1:])


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # opcheck's own
@pytest.mark.parametrize("biased", [True, False])
def test_operators_keep_torchs_rules(biased: bool, kernels: torch.device) -> None:
    x, weight, bias = inputs((1, 2, 3, 5, 3), torch.float32, kernels)
    given = x, weight, bias if biased else None
    torch.library.opcheck(depthwise, given)
    torch.library.opcheck(depthwise_norm, (*given, EPS))


def test_operators_of_the_gradients_keep_torchs_rules(kernels: torch.device) -> None:
    x, weight, _ = (tensor.detach() for tensor in inputs((1, 2, 3, 5, 3), torch.float32, kernels))
    torch.library.opcheck(gpu.input_gradient, (x, weight))
    torch.library.opcheck(gpu.weight_gradient, (x, x, 3))
    torch.library.opcheck(gpu.norm_gradient, (x, x, x[..., 0]))


def test_compiled_in_one_graph(kernels: torch.device) -> None:
    torch._dynamo.reset()
    backend = "inductor" if kernels.type == "cuda" else "aot_eager"
    tensors = inputs((1, 4, 4, 32, 3), torch.float32, kernels)
    eager = of(True)(*tensors)
    eager.square().sum().backward()
    expected = [eager, *(tensor.grad for tensor in tensors)]
    for tensor in tensors:
        tensor.grad = None
    compiled = torch.compile(of(True), fullgraph=True, backend=backend)(*tensors)
    compiled.square().sum().backward()
    for value, wanted in zip([compiled, *(tensor.grad for tensor in tensors)], expected, strict=True):
        assert error_of(value, wanted.detach().cpu().double()) < 1e-5  # pyright: ignore[reportOptionalMemberAccess]


def test_no_gradients_of_gradients(kernels: torch.device) -> None:
    x, weight, bias = inputs((1, 3, 3, 8, 3), torch.float32, kernels)
    (grad,) = torch.autograd.grad(depthwise(x, weight, bias).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="gpu_depthwise_input_gradient"):
        grad.sum().backward()


@pytest.mark.parametrize("norm", [False, True], ids=["conv", "norm"])
def test_formulas_of_the_plain_path(norm: bool) -> None:
    assert torch.autograd.gradcheck(of(norm), tuple(inputs((2, 3, 4, 5, 3), torch.float64, torch.device("cpu"))))


def test_turned_off(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONVNEXT_KERNELS", "off")
    x, weight, bias = inputs((1, 3, 3, 8, 3), torch.float32, device)
    assert torch.equal(depthwise_norm(x, weight, bias, EPS)[0], gpu.plain_norm(x, weight, bias, EPS)[0])


@pytest.mark.parametrize("shape", [(4, 1, 3, 5), (4, 1, 4, 4), (4, 2, 3, 3), (5, 1, 3, 3)], ids=str)
def test_weights_of_another_shape(shape: tuple[int, ...]) -> None:
    for call in depthwise, lambda *values: depthwise_norm(*values, EPS):
        with pytest.raises(UsageError, match="k odd"):
            call(torch.randn(1, 8, 8, 4), torch.randn(shape), None)
