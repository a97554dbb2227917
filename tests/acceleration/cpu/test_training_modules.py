"""Swapped blocks and layers in training: the plain ones' outputs and gradients, in every way of running them."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import convnext
from convnext.acceleration.cpu import depthwise, mlp, native, training_modules
from convnext.acceleration.cpu.native import available
from convnext.acceleration.swapping import is_swapped
from convnext.models.convnext import Block
from convnext.models.layers import DepthwiseConv2d, LayerNorm, PatchConv2d
from tests.acceleration.cpu.cases import LIBRARIES, brought_about, set_minimum, take_training_library

pytestmark = pytest.mark.skipif(not available(), reason="no C compiler here")

TOLERANCES = {"fp32": 1e-5, "bf16": 2e-2}  # of a whole block
OPERATORS = ("depthwise_conv2d", "layer_norm", "bias_gelu", "add_branch", "residual_mlp")


@pytest.fixture(autouse=True)
def _any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the operators for small feature maps too, and on every CPU."""
    monkeypatch.setattr(native, "SLOW_CONVOLUTIONS", True)
    set_minimum(0, monkeypatch)


def accelerated(module: Any) -> Any:
    """A copy of a module with its layers swapped."""
    return convnext.accelerate(copy.deepcopy(module), training=True)


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
    norm = torch.linalg.norm(reference.double()).clamp_min(1e-30)
    return (torch.linalg.norm(value.double() - reference.double()) / norm).item()


def max_error(fast: list[Tensor], slow: list[Tensor]) -> float:
    return max(error_of(*pair) for pair in zip(fast, slow, strict=True))


def block(**options: Any) -> tuple[Block, Tensor]:
    module = Block(19, 7, drop_path=0.5, **({"layer_scale_init_value": 0.5, "grn": False} | options))
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return module.train(), torch.randn(6, 19, 9, 8).contiguous(memory_format=torch.channels_last)


def operators_in(module: Any, x: Tensor) -> set[str]:
    """This package's operators that a module calls."""
    found: set[str] = set()

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func.namespace == "convnext":
                found.add(func._opname)
            return func(*args, **(kwargs or {}))

    with Recorder():
        module(x)
    return found


@pytest.mark.parametrize("precision", TOLERANCES)
@pytest.mark.parametrize("way", ["eager", "compiled", "checkpointed", "v2"])
def test_block_equals_the_plain_one(way: str, precision: str) -> None:
    module, x = block(layer_scale_init_value=None, grn=True) if way == "v2" else block()
    swapped = accelerated(module)
    torch._dynamo.reset()
    # Inductor would take its time with code that is not of interest here.
    called = torch.compile(swapped, fullgraph=True, backend="aot_eager") if way == "compiled" else swapped
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        fast, slow = gradients(called, x, way == "checkpointed"), gradients(module, x)
    assert 0 < max_error(fast, slow) < TOLERANCES[precision]  # two paths were compared


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("precision", TOLERANCES)
def test_block_trains_by_the_operators(library: str, precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    take_training_library(library, monkeypatch)
    module, x = block()
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    ends = {"residual_mlp"} if mlp.computes(dtype) else {"bias_gelu", "add_branch"}
    norm = {"layer_norm"} if precision == "bf16" else set()
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        assert operators_in(accelerated(module), x) == {"depthwise_conv2d"} | norm | ends
        assert not operators_in(module, x)
        assert 0 < max_error(gradients(accelerated(module), x), gradients(module, x)) < TOLERANCES[precision]


def test_export_of_training_and_evaluation() -> None:
    module, x = block()
    module, x = accelerated(module.bfloat16()), x.bfloat16()
    module.drop_path.rate = 0
    for mode in (True, False):
        module.train(mode)
        exported = torch.export.export(module, (x,))
        torch.testing.assert_close(exported.module()(x), module(x))
        nodes = " ".join(str(node.target) for node in exported.graph.nodes)
        ends = {"residual_mlp"} if mlp.computes(torch.bfloat16) else set(OPERATORS) - {"residual_mlp"}
        expected = {"depthwise_conv2d", "layer_norm"} | ends if mode else set()
        assert {name for name in OPERATORS if f"convnext.{name}." in nodes} == expected


@pytest.mark.parametrize("case", ["off", "evaluation", "no_grad", "frozen", "float64", "fp16 autocast", "small"])
def test_the_plain_forward_where_kernels_do_not_apply(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, x = block()
    swapped = accelerated(plain)
    (plain, x), (swapped, _) = brought_about(case, plain, x), brought_about(case, swapped, x)
    if case == "off":
        monkeypatch.setenv("CONVNEXT_KERNELS", "off")
    if case == "small":
        set_minimum(1e9, monkeypatch)
    with torch.set_grad_enabled(case != "no_grad"), torch.autocast("cpu", torch.float16, enabled="fp16" in case):
        assert not operators_in(swapped, x)
        torch.manual_seed(0)
        found = swapped(x)
        torch.manual_seed(0)
        assert torch.equal(found, plain(x))


@pytest.mark.parametrize("name", ["pwconv1", "act", "pwconv2", "drop_path", "norm", "dwconv"])
def test_hooks_inside_a_block_are_called(name: str) -> None:
    module, x = block()
    swapped, called = accelerated(module), []
    swapped.get_submodule(name).register_forward_hook(lambda *_: called.append(name))
    assert max_error(gradients(swapped, x), gradients(module, x)) < 1e-5
    assert called == [name]


def test_a_layer_that_was_replaced_is_computed_as_it_is() -> None:
    module, x = block()
    module.act = nn.GELU(approximate="tanh")
    assert max_error(gradients(accelerated(module), x), gradients(module, x)) < 1e-5


@pytest.mark.parametrize("whole", [True, False])
def test_a_model_in_bf16(whole: bool) -> None:
    module, x = block() if whole else (LayerNorm(6), torch.randn(3, 2, 4, 6))
    module, x = module.bfloat16().train(), x.bfloat16()
    assert max_error(gradients(accelerated(module), x), gradients(module, x)) < 3e-2


@pytest.mark.parametrize("name", ["convnext_atto", "convnextv2_atto", "roadmap_micro/separate_downsampling"])
def test_model_learns_the_same(name: str) -> None:
    """The losses of a few steps."""
    losses, weights = [], []
    for fast in (True, False):
        torch.manual_seed(1)
        options = {} if "v2" in name else {"layer_scale_init_value": 0.5}  # so that the branches matter
        model = convnext.create_model(name, num_classes=3, drop_path_rate=0.1, **options).train()  # pyright: ignore[reportArgumentType]
        if fast:
            convnext.accelerate(model, training=True)
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


@pytest.mark.parametrize("step", ["kernel_7", "gelu", "fewer_activations", "fewer_norms", "layer_norm"])
def test_the_roadmap_computes_the_same(step: str) -> None:
    model = convnext.create_model(f"roadmap_micro/{step}", width=8, depths=(1, 1, 1, 1), layer_scale_init_value=0.5)
    swapped, x = accelerated(model), torch.randn(2, 3, 32, 32)
    assert any(is_swapped(module) for module in swapped.modules())
    assert operators_in(swapped, x)
    swapped.load_state_dict(model.state_dict())  # BatchNorm's statistics have moved
    fast, slow = gradients(swapped, x), gradients(model, x)
    assert 0 < error_of(fast[0], slow[0]) < 1e-4
    assert error_of(torch.cat([g.flatten() for g in fast[2:]]), torch.cat([g.flatten() for g in slow[2:]])) < 1e-3


@pytest.mark.parametrize("shape", [(2, 3, 16, 16), (2, 5, 11, 14), (0, 3, 8, 8)], ids=["whole", "remainder", "empty"])
@pytest.mark.parametrize("size", [2, 4])
def test_patches(size: int, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = PatchConv2d(shape[1], 7, size).train(), torch.randn(shape)
    swapped, linear_layers = accelerated(layer), []
    linear = training_modules.F.linear
    monkeypatch.setattr(training_modules.F, "linear", lambda *args: linear_layers.append(1) or linear(*args))
    found = gradients(swapped, x.contiguous(memory_format=torch.channels_last))
    strided = gradients(swapped, x.transpose(2, 3).contiguous().transpose(2, 3))
    assert linear_layers == [1, 1]
    references = gradients(layer.double(), x.double())
    assert linear_layers == [1, 1]
    for value, other, reference in zip(found, strided, references, strict=True):
        allowed = 1e-5 * torch.linalg.norm(reference)  # 0 for an empty batch
        assert torch.linalg.norm(value - reference) <= allowed
        assert torch.linalg.norm(other - reference) <= allowed


@pytest.mark.parametrize("precision", TOLERANCES)
@pytest.mark.parametrize(
    ("way", "stride"), [("eager", 1), ("eager", 2), ("compiled", 1), ("compiled", 2), ("checkpointed", 1)]
)
def test_depthwise_equals_torchs(way: str, stride: int, precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, x = DepthwiseConv2d(19, 7, stride=stride), torch.randn(2, 19, 9, 8)
    x = x.contiguous(memory_format=torch.channels_last)
    swapped, calls, call = accelerated(module), [], depthwise.call
    torch._dynamo.reset()
    called = torch.compile(swapped, fullgraph=True, backend="aot_eager") if way == "compiled" else swapped
    monkeypatch.setattr(depthwise, "call", lambda *args: calls.append(args[0]) or call(*args))
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        fast, slow = gradients(called, x, way == "checkpointed"), gradients(module, x)
    assert calls == ["depthwise_gradient"]
    assert torch.equal(fast[0], slow[0])
    assert fast[0].dtype == (torch.bfloat16 if precision == "bf16" else torch.float32)
    assert max_error([value.float() for value in fast], [value.float() for value in slow]) < TOLERANCES[precision]


@pytest.mark.parametrize(
    ("size", "side", "stride", "slow", "taken"),
    [
        (3, 5, 1, True, False),
        (3, 2, 1, True, True),  # larger than the map
        (5, 8, 1, True, True),
        (5, 8, 2, True, True),
        (3, 5, 1, False, True),
        (5, 8, 2, False, False),
    ],
)
def test_depthwise_where_torchs_convolutions_are_slow_and_where_they_are_not(
    size: int, side: int, stride: int, slow: bool, taken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "SLOW_CONVOLUTIONS", slow)
    output = accelerated(DepthwiseConv2d(4, size, stride=stride))(torch.randn(2, 4, side, side))
    assert ("depthwise_conv2d" in type(output.grad_fn).__name__) == taken


@pytest.mark.filterwarnings("ignore:`torch.jit.trace:FutureWarning", "ignore:`torch.jit:DeprecationWarning")
def test_transforms_and_tracing_in_training() -> None:
    module, x = block()
    module.drop_path.rate = 0
    swapped = accelerated(module)

    def loss(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.functional_call(swapped, parameters, (x,)).square().sum()

    per_sample = torch.func.vmap(torch.func.grad(loss), (None, 0))(dict(swapped.named_parameters()), x[:, None])
    loss(dict(module.named_parameters()), x).backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None
        assert error_of(per_sample[name].sum(0), parameter.grad) < 1e-5
    traced = torch.jit.trace(swapped, x, check_trace=False)
    assert error_of(traced(x), swapped(x)) < 1e-6  # pyright: ignore[reportCallIssue]
