"""Normalised patches: the LayerNorm and the convolution that they stand for, in float64, with every gradient."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from convnext.acceleration.gpu import patches_operator as patches
from convnext.acceleration.gpu.patches_operator import norm_patches, norm_patches_gradient
from convnext.acceleration.gpu.triton_runtime import has_triton, interpreted

DEVICE = "cuda" if torch.cuda.is_available() and not interpreted() else "cpu"
pytestmark = [pytest.mark.skipif(not has_triton(), reason="needs Triton")]
pytestmark += [pytest.mark.gpu] if DEVICE == "cuda" else []
TOLERANCES = {torch.float32: 2e-6, torch.bfloat16: 1e-2, torch.float16: 2e-3}
# (N, H, W, C) and k: several programs, rows that are left over, one position, none, one channel, a wide map
SHAPES = [
    ((2, 6, 4, 40), 2),
    ((1, 13, 17, 24), 2),
    ((3, 7, 7, 96), 4),
    ((1, 2, 2, 2816), 2),
    ((2, 5, 3, 17), 1),
    ((1, 1, 1, 8), 2),
    ((0, 4, 4, 8), 2),
    ((2, 4, 4, 1), 2),
]


def error_of(value: Tensor, reference: Tensor) -> float:
    """Of a value, as a part of the largest of the reference."""
    assert value.shape == reference.shape
    if not value.numel():
        return 0.0
    scale = max(1e-30, reference.abs().max().item())
    return (value.double().cpu() - reference.cpu()).abs().max().item() / scale


def example(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A map whose mean is far from zero."""
    return (torch.randn(shape) * torch.rand(shape[-1]) + 2).to(DEVICE, dtype).requires_grad_()


def reference(x: Tensor, size: int, eps: float) -> Tensor:
    """LayerNorm, then the patches that torch's own unfold finds, in float64."""
    normalised = F.layer_norm(x.double(), x.shape[-1:], eps=eps)
    samples, height, width, channels = x.shape
    rows, columns = height // size, width // size
    if not samples * rows * columns:
        return normalised.new_zeros((samples, rows, columns, size * size * channels))
    cut = F.unfold(normalised.permute(0, 3, 1, 2), size, stride=size)  # (N, C * k * k, patches)
    cut = cut.unflatten(1, (channels, size * size)).permute(0, 3, 2, 1)
    return cut.reshape(samples, rows, columns, size * size * channels)


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize(("shape", "size"), SHAPES)
def test_patches_and_gradient_equal_float64(shape: tuple[int, ...], size: int, dtype: torch.dtype) -> None:
    x = example(shape, dtype)
    found, scale = norm_patches(x, size, 1e-6, dtype)
    expected = reference(x, size, 1e-6)
    assert found.dtype == dtype
    assert scale.dtype == torch.float32
    assert not scale.requires_grad
    tolerance = TOLERANCES[dtype]
    assert error_of(found, expected) < tolerance
    grad = torch.randn_like(found)
    (gradient,) = torch.autograd.grad(found, x, grad)
    wanted = x.detach().double().requires_grad_()
    assert gradient.dtype == dtype
    if found.numel() and shape[-1] > 1:
        (expected,) = torch.autograd.grad(reference(wanted, size, 1e-6), wanted, grad.double())
        assert error_of(gradient, expected) < 4 * tolerance
    else:  # nothing reaches the map; of one channel, every gradient is zero
        assert gradient.shape == x.shape
        assert gradient.abs().sum().item() < 1e-3


def test_the_kernels_ran(monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison above is not of the plain reference with itself."""
    monkeypatch.setattr(patches, "plain", None)
    monkeypatch.setattr(patches, "plain_gradient", None)
    x = example((1, 4, 4, 8), torch.float32)
    norm_patches(x, 2, 1e-6, torch.float32)[0].sum().backward()
    monkeypatch.setenv("CONVNEXT_KERNELS", "off")
    with pytest.raises(TypeError, match="not callable"):
        norm_patches(x, 2, 1e-6, torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_plain_reference(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """float64 has no kernel."""
    monkeypatch.setenv("CONVNEXT_KERNELS", "off")
    x = example((2, 5, 7, 12), dtype)
    found, scale = norm_patches(x, 2, 1e-6, dtype)
    assert scale.dtype == dtype
    torch.testing.assert_close(found.double(), reference(x, 2, 1e-6), rtol=1e-5, atol=1e-5)
    if dtype == torch.float64:
        assert torch.autograd.gradcheck(lambda x: norm_patches(x, 2, 1e-6, dtype)[0], (x,))


def test_a_map_in_fp32_gives_patches_in_bf16() -> None:
    """As autocast has it; the gradient comes back in fp32."""
    x = example((2, 4, 4, 16), torch.float32)
    found, _ = norm_patches(x, 2, 1e-6, torch.bfloat16)
    assert found.dtype == torch.bfloat16
    found.float().square().sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == torch.float32


def test_every_value_is_written_and_the_same_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    x = example((2, 6, 7, 40), torch.float32)
    new_empty, empty = torch.Tensor.new_empty, torch.empty
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda *a, **k: new_empty(*a, **k).fill_(float("nan")))
    monkeypatch.setattr(torch, "empty", lambda *a, **k: empty(*a, **k).fill_(float("nan")))
    outputs = [norm_patches(x, 2, 1e-6, torch.float32) for _ in range(2)]
    gradients = [torch.autograd.grad(found.sin().sum(), x)[0] for found, _ in outputs]
    for first, second in (*zip(*outputs, strict=True), gradients):
        assert first.isfinite().all()
        assert torch.equal(first, second)
    assert not gradients[0][:, :, 6].any()  # the column beyond the last whole patch


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # opcheck's own
def test_operators_pass_torchs_checks() -> None:
    x = example((2, 5, 4, 6), torch.float32)
    torch.library.opcheck(norm_patches, (x, 2, 1e-6, torch.float32))
    found, scale = norm_patches(x.detach(), 2, 1e-6, torch.float32)
    torch.library.opcheck(norm_patches_gradient, (found, found, scale, [2, 5, 4, 6], torch.float32))


def test_compiled_whole() -> None:
    x = example((2, 4, 4, 6), torch.float32)
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: norm_patches(x, 2, 1e-6, x.dtype)[0], fullgraph=True, backend="aot_eager")
    gradients = [torch.autograd.grad(call(x).sin().sum(), x)[0] for call in (compiled, compiled)]
    (expected,) = torch.autograd.grad(norm_patches(x, 2, 1e-6, x.dtype)[0].sin().sum(), x)
    assert torch.equal(gradients[0], expected)
