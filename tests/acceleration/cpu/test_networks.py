"""Whole blocks and networks in training: with the C code as without it, in every way of running them."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import convnext
from convnext.acceleration.cpu import add_branch, bias_gelu, depthwise, layer_norm, mlp
from convnext.acceleration.cpu.native import available
from convnext.models import layers
from convnext.models.convnext import Block
from convnext.models.layers import LayerNorm, PatchConv2d
from tests.acceleration.cpu.cases import brought_about

pytestmark = pytest.mark.skipif(not available(), reason="no C compiler here")

TOLERANCES = {"fp32": 1e-5, "bf16": 2e-2}  # of a whole block
OPERATORS = ("depthwise_conv2d", "layer_norm", "bias_gelu", "scale_rows", "add_branch", "residual_mlp")


@pytest.fixture(autouse=True)
def _any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the fast path for small maps too."""
    monkeypatch.setattr(depthwise, "LEAST_PRODUCTS", 0)
    monkeypatch.setattr(layers, "SLOW_CONVOLUTIONS", True)
    for module in (layer_norm, bias_gelu, add_branch, mlp, layers):
        monkeypatch.setattr(module, "LEAST_VALUES", 0)


def gradients(module: Any, x: Tensor, checkpointed: bool = False) -> list[Tensor]:
    """Output and gradients of a training step, the same draws each time."""
    torch.manual_seed(4)
    module.zero_grad()
    x = x.detach().requires_grad_()
    output = checkpoint(module, x, use_reentrant=False) if checkpointed else module(x)
    output.float().sin().mean().backward()  # pyright: ignore[reportOptionalMemberAccess]
    return [output, x.grad, *(parameter.grad for parameter in module.parameters())]  # pyright: ignore[reportReturnType]


def error_of(value: Tensor, reference: Tensor) -> float:
    assert value.dtype == reference.dtype
    assert value.shape == reference.shape
    return (torch.linalg.norm(value.double() - reference.double()) / torch.linalg.norm(reference.double())).item()


def block(**options: Any) -> tuple[Block, Tensor]:
    module = Block(19, 7, drop_path=0.5, **({"layer_scale": 0.5, "grn": False} | options))
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return module.train(), torch.randn(6, 19, 9, 8).contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("precision", TOLERANCES)
@pytest.mark.parametrize("way", ["eager", "compiled", "checkpointed", "v2"])
def test_block_equals_torchs(way: str, precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, x = block(layer_scale=None, grn=True) if way == "v2" else block()
    torch._dynamo.reset()
    # Inductor would take its time with code that is not of interest here.
    called = torch.compile(module, fullgraph=True, backend="aot_eager") if way == "compiled" else module
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        fast = gradients(called, x, way == "checkpointed")
        monkeypatch.setenv("CONVNEXT_KERNELS", "off")
        slow = gradients(module, x)
    errors = [error_of(*pair) for pair in zip(fast, slow, strict=True)]
    assert 0 < max(errors) < TOLERANCES[precision]  # two paths were compared


def test_export_of_training_and_evaluation() -> None:
    module, x = block()
    module, x = module.bfloat16(), x.bfloat16()
    module.drop_path.rate = 0
    for mode in (True, False):
        module.train(mode)
        exported = torch.export.export(module, (x,))
        torch.testing.assert_close(exported.module()(x), module(x))
        nodes = " ".join(str(node.target) for node in exported.graph.nodes)
        ends = {"residual_mlp"} if mlp.computes(torch.bfloat16) else set(OPERATORS) - {"residual_mlp"}
        expected = {"depthwise_conv2d", "layer_norm"} | ends if mode else set()
        assert {name for name in OPERATORS if f"convnext.{name}." in nodes} == expected


@pytest.mark.parametrize("case", ["evaluation", "no_grad", "frozen", "float64", "fp16 autocast", "small"])
def test_torchs_operators_where_nothing_is_gained(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, x = block()
    calls = []
    for kernel in (depthwise, layer_norm, bias_gelu, add_branch, mlp):
        monkeypatch.setattr(kernel, "library", lambda: calls.append(1))
    module, x = brought_about(case, module, x)
    if case == "small":
        monkeypatch.setattr(depthwise, "LEAST_PRODUCTS", 1e9)
        for kernel in (layer_norm, bias_gelu, add_branch, mlp):
            monkeypatch.setattr(kernel, "LEAST_VALUES", 1e9)
    with torch.set_grad_enabled(case != "no_grad"), torch.autocast("cpu", torch.float16, enabled="fp16" in case):
        assert module(x).shape == x.shape
    assert not calls


@pytest.mark.parametrize("whole", [True, False])
def test_a_model_in_bf16(whole: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    module, x = block() if whole else (LayerNorm(6), torch.randn(3, 4, 6))
    module, x = module.bfloat16().train(), x.bfloat16()
    fast = gradients(module, x)
    monkeypatch.setenv("CONVNEXT_KERNELS", "off")
    assert max(error_of(*pair) for pair in zip(fast, gradients(module, x), strict=True)) < 3e-2


@pytest.mark.parametrize("name", ["convnext_atto", "convnextv2_atto", "roadmap_micro/separate_downsampling"])
def test_network_learns_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The losses of a few steps."""
    losses, weights = [], []
    for word in ("on", "off"):
        monkeypatch.setenv("CONVNEXT_KERNELS", word)
        torch.manual_seed(1)
        options = {} if "v2" in name else {"layer_scale": 0.5}  # so that the branches matter
        model = convnext.create_model(name, num_classes=3, drop_path=0.1, **options).train()  # pyright: ignore[reportArgumentType]
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        images, labels = torch.randn(4, 3, 64, 64), torch.tensor([0, 1, 2, 0])
        for _ in range(4):
            loss = nn.functional.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        weights.append(nn.utils.parameters_to_vector(model.parameters()))
    torch.testing.assert_close(losses[:4], losses[4:], rtol=1e-3, atol=1e-3)
    assert not torch.equal(*weights)  # two paths were compared
    assert losses[3] != losses[0]


@pytest.mark.parametrize("shape", [(2, 3, 16, 16), (2, 5, 11, 14), (0, 3, 8, 8)], ids=["whole", "remainder", "empty"])
@pytest.mark.parametrize("size", [2, 4])
def test_patches(size: int, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = PatchConv2d(shape[1], 7, size).train(), torch.randn(shape)
    linear_layers = []
    monkeypatch.setattr(layers.F, "linear", lambda *args, of=layers.F.linear: linear_layers.append(1) or of(*args))
    found = gradients(layer, x.contiguous(memory_format=torch.channels_last))
    strided = gradients(layer, x.transpose(2, 3).contiguous().transpose(2, 3))
    assert linear_layers == [1, 1]
    monkeypatch.setenv("CONVNEXT_KERNELS", "off")
    references = gradients(layer.double(), x.double())
    assert linear_layers == [1, 1]
    for value, other, reference in zip(found, strided, references, strict=True):
        allowed = 1e-5 * torch.linalg.norm(reference)  # 0 for an empty batch
        assert torch.linalg.norm(value - reference) <= allowed
        assert torch.linalg.norm(other - reference) <= allowed


def test_patches_of_evaluation_are_torchs() -> None:
    layer, x = PatchConv2d(3, 8, 4).eval(), torch.randn(2, 3, 16, 16)
    assert torch.equal(layer(x), torch.nn.functional.conv2d(x, layer.weight, layer.bias, stride=4))
