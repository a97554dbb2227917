"""Fused networks: outputs, gradients, names and training of the plain ones, with less kept for the backward pass."""

import copy
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import convnext
from convnext.acceleration.gpu.modules import FusedBlock, FusedDepthwiseConv2d, FusedDesignBlock
from convnext.acceleration.gpu.triton_runtime import has_triton, interpreted
from convnext.models.convnext import Block, ConvNeXt, ConvNeXtV2, IsotropicConvNeXt
from convnext.models.layers import DepthwiseConv2d
from convnext.training.blocks import blocks, checkpoint_blocks

DEVICE = "cuda" if torch.cuda.is_available() and not interpreted() else "cpu"
pytestmark = [pytest.mark.skipif(not has_triton(), reason="needs Triton")]
pytestmark += [pytest.mark.gpu] if DEVICE == "cuda" else []
SMALL: dict[str, Any] = {"num_classes": 3, "kernel_size": 3, "drop_path_rate": 0.3}
FAMILY: dict[str, Callable[[], nn.Module]] = {
    "v1": partial(ConvNeXt, depths=(1, 1, 1, 1), dims=(8, 16, 32, 64), layer_scale_init_value=0.5, **SMALL),
    "v2": partial(ConvNeXtV2, depths=(1, 1, 1, 1), dims=(8, 16, 32, 64), **SMALL),
    "isotropic": partial(IsotropicConvNeXt, depth=4, dim=8, **SMALL),
    "grn and LayerScale": partial(
        ConvNeXt, depths=(1, 1, 1, 1), dims=(8, 16, 32, 64), layer_scale_init_value=0.5, grn=True, **SMALL
    ),
}
QUICK = ("kernel_7", "fewer_norms", "layer_norm")
STEPS = [
    step.key if step.key in QUICK else pytest.param(step.key, marks=pytest.mark.slow)
    for step in convnext.roadmap("micro")
    if step.design.depthwise
]
# The modules that are swapped in a network of one block a stage, by the class of what they become.
BLOCKS_OF = {"fewer_norms": 4, "layer_norm": 4, "separate_downsampling": 4}


def fuse(model: nn.Module, **options: Any) -> convnext.TrainingReport:
    return convnext.acceleration_report(convnext.accelerate(model, training=True, experimental=True, **options))


@pytest.fixture(autouse=True)
def _ieee(monkeypatch: pytest.MonkeyPatch) -> None:
    """Convolutions in fp32 are no tf32."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def step_of(key: str) -> nn.Module:
    return convnext.create_model(
        f"roadmap_micro/{key}",
        width=8,
        depths=(1, 1, 1, 1),
        num_classes=3,
        layer_scale_init_value=0.5,
        drop_path_rate=0.3,
    )


def trained(build: Callable[[], nn.Module]) -> nn.Module:
    """A network whose every parameter is other than at the start."""
    model = build().to(DEVICE)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def images(count: int = 2, size: int = 32) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1)).to(DEVICE)


def results(model: Any, x: Tensor) -> list[Tensor]:
    """Output and every gradient, of the same draws each time."""
    torch.manual_seed(2)
    model.zero_grad()
    x = x.detach().requires_grad_()
    output = model(x)
    (output.float() * torch.linspace(-1, 1, output.numel(), device=x.device).view(output.shape)).sum().backward()
    return [output.detach(), x.grad, *(parameter.grad.clone() for parameter in model.parameters())]  # pyright: ignore


def error_of(found: list[Tensor], expected: list[Tensor]) -> float:
    """The largest of the values' errors; one that is next to nothing counts as a part of the others."""
    errors = []
    typical = sum(torch.linalg.norm(value.double()) for value in expected[1:]) / (len(expected) - 1)
    for value, reference in zip(found, expected, strict=True):
        assert value.dtype == reference.dtype
        assert value.shape == reference.shape
        difference = torch.linalg.norm(value.double() - reference.double())
        errors.append((difference / (torch.linalg.norm(reference.double()) + 0.01 * typical)).item())
    return max(errors)


@pytest.mark.parametrize("name", ["v1", "v2", "isotropic", pytest.param("grn and LayerScale", marks=pytest.mark.slow)])
def test_the_family_computes_the_same(name: str) -> None:
    model = trained(FAMILY[name])
    keys, parameters = list(model.state_dict()), list(model.parameters())
    expected = results(model, images())
    fusion = fuse(model)
    assert not fusion.left
    assert all(type(block) is FusedBlock for block in model.modules() if isinstance(block, Block))
    assert list(model.state_dict()) == keys
    assert all(one is other for one, other in zip(model.parameters(), parameters, strict=True))
    assert 0 < error_of(results(model, images()), expected) < 1e-5  # not 0: two paths were compared
    convnext.restore(model)
    assert error_of(results(model, images()), expected) == 0


@pytest.mark.parametrize("key", STEPS)
def test_the_roadmap_computes_the_same(key: str) -> None:
    model = trained(partial(step_of, key)).eval()  # BatchNorm of so few values would make much of every rounding
    expected = results(model, images())
    fusion = fuse(model)
    kinds = [type(module) for module in model.modules()]
    assert kinds.count(FusedDesignBlock) == BLOCKS_OF.get(key, 0)
    assert fusion.swapped
    if key not in ("layer_norm", "separate_downsampling"):
        assert kinds.count(FusedDepthwiseConv2d) == 1
        assert all(module.stride == (2, 2) for module in model.modules() if type(module) is DepthwiseConv2d)
    assert 0 < error_of(results(model, images()), expected) < 1e-5


def test_what_is_said() -> None:
    fusion = fuse(step_of("fewer_activations"))
    assert fusion.swapped["downsample_layers.0.0"] == "matrix product of patches"
    assert fusion.swapped["stages.0.0.dwconv"] == "convolution alone"
    assert fusion.left["stages.0.0"] == "pwnorm1 is BatchNorm2d"
    fusion = fuse(step_of("fewer_norms"))
    assert "but not the norm before it: norm is BatchNorm2d" in fusion.swapped["stages.0.0"]
    assert "its depthwise convolution strides" in fusion.swapped["stages.1.0"]
    fusion = fuse(step_of("resnet"))
    assert fusion.left["downsample_layers.0.0"] == "its patches overlap"
    assert "left: stages.0.0: its spatial convolution stands between the 1x1 layers" in str(fusion)
    assert "Linear" in fuse(nn.Linear(2, 2)).left[""]


@pytest.mark.parametrize(
    ("name", "dtype", "way"),
    [
        ("v1", torch.bfloat16, "autocast"),
        pytest.param("v2", torch.float16, "autocast", marks=pytest.mark.slow),
        ("isotropic", torch.float16, "whole"),
        pytest.param("v2", torch.bfloat16, "whole", marks=pytest.mark.slow),
    ],
)
def test_half_precision(name: str, dtype: torch.dtype, way: str) -> None:
    """Nearer to fp32 than twice what the plain network is, and of its dtypes."""
    model, x = trained(FAMILY[name]), images()
    expected = results(model, x)
    if way == "whole":
        model, x = model.to(dtype), x.to(dtype)
    with torch.autocast(DEVICE, dtype, enabled=way == "autocast"):
        plain = results(model, x)
        fuse(model)
        fused = results(model, x)
    assert [value.dtype for value in fused] == [value.dtype for value in plain]
    errors = [error_of([value.float() for value in values], expected) for values in (fused, plain)]
    assert 0 < errors[0] < max(2 * errors[1], 0.05)


def falls_back(case: str, model: nn.Module, x: Tensor, patch: pytest.MonkeyPatch) -> tuple[Any, Tensor]:
    """A call of a network in circumstances that the kernels do not know."""
    if case == "off":
        patch.setenv("CONVNEXT_KERNELS", "off")
    elif case == "float64":
        model, x = model.double(), x.double()
    elif case == "onnx":
        patch.setattr(torch.onnx, "is_in_onnx_export", lambda: True)
    elif case == "traced":
        return torch.jit.trace(model, x, check_trace=False), x
    elif case == "functional":
        return torch.func.grad(lambda x: model(x).sin().sum()), x
    return model, x


@pytest.mark.filterwarnings(
    "ignore:`torch.jit:FutureWarning", "ignore:`torch.jit:DeprecationWarning", "ignore::torch.jit.TracerWarning"
)
@pytest.mark.parametrize("case", ["off", "float64", "onnx", "traced", "functional"])
def test_the_plain_forward_where_kernels_do_not_run(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = trained(FAMILY["v1"]).eval()
    other = copy.deepcopy(model)
    fuse(other)
    with torch.no_grad():
        plain, x = falls_back(case, model, images(), monkeypatch)
        fused, _ = falls_back(case, other, images(), monkeypatch)
        assert torch.equal(fused(x), plain(x))


def test_hooks_are_called() -> None:
    model = trained(FAMILY["isotropic"]).eval()
    fuse(model)
    fused = model(images())
    called = []
    block = model.get_submodule("blocks.0")
    whole = block.register_forward_hook(lambda *_: called.append("block"))
    assert torch.equal(model(images()), fused)
    whole.remove()
    inside = block.get_submodule("pwconv1").register_forward_hook(lambda *_: called.append("pwconv1"))
    torch.testing.assert_close(model(images()), fused)  # by the layers one by one
    inside.remove()
    assert torch.equal(model(images()), fused)
    assert called == ["block", "pwconv1"]


def test_a_layer_that_was_replaced_is_computed_as_it_is() -> None:
    model = trained(FAMILY["isotropic"]).eval()
    fuse(model)
    block: Any = model.get_submodule("blocks.0")
    block.pwconv1 = nn.Sequential(block.pwconv1)
    fused = model(images())
    convnext.restore(model)
    torch.testing.assert_close(fused, model(images()))
    fusion = fuse(model)
    assert fusion.left == {"blocks.0": "pwconv1 is Sequential"}


@pytest.mark.parametrize("grn", [False, True])
def test_less_is_kept_where_more_is_recomputed(grn: bool) -> None:
    block: Any = trained(partial(Block, 8, 3, 0.0, None, grn))
    block.__class__ = FusedBlock
    x = torch.randn(2, 8, 4, 4, device=DEVICE).contiguous(memory_format=torch.channels_last)
    expected, kept = results(block, x), saved_bytes(block, x, torch.float32)
    block.recompute = True
    assert error_of(results(block, x), expected) < 1e-6
    assert saved_bytes(block, x, torch.float32) == kept - 4 * x.nbytes


def test_recomputing_is_chosen_for_every_block() -> None:
    model = FAMILY["isotropic"]()
    fuse(model, recompute=True)
    chosen: list[Any] = [module for module in model.modules() if isinstance(module, FusedBlock)]
    assert [block.recompute for block in chosen] == [True] * 4
    convnext.restore(model)
    assert not any("recompute" in vars(block) for block in chosen)


def test_copies_and_files() -> None:
    model = trained(FAMILY["isotropic"]).eval()
    fuse(model)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert type(other.get_submodule("blocks.0")) is FusedBlock
        assert torch.equal(other(images()), model(images()))


def test_recomputed_activations() -> None:
    model = trained(FAMILY["isotropic"])
    fuse(model)
    expected = results(model, images())
    checkpoint_blocks(model)
    assert error_of(results(model, images()), expected) == 0
    plain, fused = (trained(FAMILY["v1"]) for _ in range(2))
    fuse(fused)
    assert list(blocks(fused)) == list(blocks(plain))
    plain.get_submodule("stages.0.0").forward = lambda x: x
    assert fuse(plain).left["stages.0.0"] == "its forward was replaced"


def test_compiled_in_one_graph() -> None:
    whole: Any = trained(FAMILY["v1"])
    fuse(whole)
    model = nn.Sequential(whole.downsample_layers[1], whole.stages[1])
    x = torch.randn(2, 8, 4, 4, device=DEVICE).contiguous(memory_format=torch.channels_last)
    expected = results(model, x)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert error_of(results(compiled, x), expected) < 1e-5


def saved_bytes(module: nn.Module, x: Tensor, dtype: torch.dtype) -> int:
    """What a module keeps for its backward pass beside its parameters, each piece of memory once."""
    parameters = {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}
    kept: dict[int, tuple[int, Tensor]] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes(), tensor  # which stays alive, so that no other takes its place
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast(DEVICE, dtype, enabled=dtype != torch.float32),
    ):
        module(x.requires_grad_())
    return sum(count for count, _ in kept.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("grn", [False, True])
def test_less_is_kept_for_the_backward_pass(grn: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    from timm.models.convnext import ConvNeXtBlock

    scale = None if grn else 1e-6
    fused = Block(8, 3, 0.0, scale, grn).to(DEVICE)
    plain = copy.deepcopy(fused)
    timm = ConvNeXtBlock(8, kernel_size=3, use_grn=grn, ls_init_value=scale, conv_mlp=False).to(DEVICE)
    fused.__class__ = FusedBlock
    x = torch.randn(2, 8, 16, 16, device=DEVICE).contiguous(memory_format=torch.channels_last)
    ours = saved_bytes(fused, x, dtype)
    monkeypatch.setenv("CONVNEXT_KERNELS", "off")
    for peer in (plain, timm):
        assert ours <= 0.6 * saved_bytes(peer, x, dtype)


def losses(seed: int, fused: bool, steps: int) -> Tensor:
    """The losses of a training on what two classes of noise differ by."""
    torch.manual_seed(seed)
    model = IsotropicConvNeXt(
        depth=2, dim=8, num_classes=2, layer_scale_init_value=1e-6, drop_path_rate=0.1, kernel_size=3
    ).to(DEVICE)
    if fused:
        fuse(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    found = []
    for _ in range(steps):
        labels = torch.arange(4, device=DEVICE) % 2
        x = torch.randn(4, 3, 32, 32).to(DEVICE)
        x[:, 0] += 0.3 * labels[:, None, None]
        loss = F.cross_entropy(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.detach().cpu())
    return torch.stack(found)


@pytest.mark.slow
def test_training_follows_the_plain_one_within_the_noise_of_its_seeds() -> None:
    plain = torch.stack([losses(seed, False, 80) for seed in range(4)]).unfold(1, 20, 20).mean(-1)  # (seeds, 4)
    fused = losses(0, True, 80).unfold(0, 20, 20).mean(-1)
    noise = plain.std(0).mean()
    assert plain[:, -1].mean() < 0.8 * plain[:, 0].mean()  # something is learned
    assert 0 < (fused - plain[0]).abs().mean() < noise


DISTRIBUTED = """
import sys, torch, torch.distributed as dist, convnext
from convnext.models.convnext import ConvNeXt
rank, file = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
torch.manual_seed(0)
model = ConvNeXt(depths=(1, 1, 1, 1), dims=(8, 16, 32, 64), num_classes=3, layer_scale_init_value=0.5, kernel_size=3)
convnext.accelerate(model, training=True, experimental=True)
x, labels = torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 0])
torch.nn.functional.cross_entropy(model(x), labels).backward()
alone = [parameter.grad.clone() for parameter in model.parameters()]
model.zero_grad()
network = torch.nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=True)
half = slice(2 * rank, 2 * rank + 2)
torch.nn.functional.cross_entropy(network(x[half]), labels[half]).backward()
for parameter, expected in zip(model.parameters(), alone):
    torch.testing.assert_close(parameter.grad, expected, rtol=1e-4, atol=1e-5)
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_have_the_gradients_of_one(tmp_path: Any) -> None:
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    words = [[sys.executable, "-c", DISTRIBUTED, str(rank), str(tmp_path / "meet")] for rank in range(2)]
    processes = [subprocess.Popen(line, env=environment) for line in words]
    assert [process.wait(timeout=300) for process in processes] == [0, 0]
