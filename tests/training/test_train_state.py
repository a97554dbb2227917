"""A step: recomputed activations, precisions, losses, the EMA, clipping and accumulation."""

import copy
import dataclasses
import shutil
from typing import Any

import pytest
import torch
from timm.loss.binary_cross_entropy import BinaryCrossEntropy
from torch import Tensor, nn

from convnext import device as machine
from convnext.device import autocast_for
from convnext.errors import UsageError
from convnext.training.build import build_loss, build_model, build_state
from convnext.training.recipe import Recipe
from convnext.training.train_state import TrainState

CPU = torch.device("cpu")
PLAIN = Recipe(
    model="roadmap_micro/separate_downsampling",
    image_size=32,
    precision="fp32",
    device="cpu",
    mixup=0,
    cutmix=0,
    drop_path=0,
    layer_scale=1.0,
)


def state(**change: Any) -> TrainState:
    """The state of a training of five classes, with the same initial weights for the same model."""
    torch.manual_seed(0)
    made = build_state(dataclasses.replace(PLAIN, **change), 5, CPU)
    made.set_learning_rate(1e-3)
    made.model.train()
    return made


def batch(count: int = 8, seed: int = 1, size: int = 32) -> tuple[Tensor, Tensor]:
    """Images (N, 3, size, size) and labels (N,)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, size, size, generator=generator), torch.randint(5, (count,), generator=generator)


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def kept_bytes(made: TrainState) -> int:
    """Bytes that a forward pass keeps for the backward one; parameters do not count. Takes the whole step."""
    own = {parameter.untyped_storage().data_ptr() for parameter in made.model.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    images, labels = batch()
    torch.manual_seed(2)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logits = made.network(images)
    nn.functional.cross_entropy(logits, labels).backward()
    return sum(tensor.untyped_storage().nbytes() for start, tensor in kept.items() if start not in own)


@pytest.mark.parametrize(
    "model",
    [
        "convnext_atto",
        "convnextv2_atto",
        "convnext_isotropic_small",
        "roadmap_micro/resnet",
        "torchvision/resnet18",
        "timm/convnext_atto",
        "timm/resnet18",
    ],
)
def test_recomputed_activations_change_nothing_but_memory(model: str) -> None:
    drop_path = 0.0 if "/" in model else 0.5
    states = [state(model=model, drop_path=drop_path, checkpoint_activations=on) for on in (False, True)]
    for made in states:
        torch.manual_seed(2)
        made.backward(*batch(), weight=1, is_last=True)
    plain, recomputed = (gradients(made.model) for made in states)
    assert len(plain) == len(list(states[0].model.parameters()))
    assert plain.keys() == recomputed.keys()
    assert [name for name in plain if not torch.equal(plain[name], recomputed[name])] == []
    buffers = [dict(made.model.named_buffers()) for made in states]
    assert [name for name in buffers[0] if not torch.equal(buffers[0][name], buffers[1][name])] == []

    full, least = (kept_bytes(made) for made in states)
    assert least < 0.6 * full  # ResNet's stem, which is no block, is most of what is left


def test_a_network_without_blocks_cannot_recompute() -> None:
    with pytest.raises(UsageError, match=r"VGG.*--checkpoint-activations"):
        state(model="torchvision/vgg11", checkpoint_activations=True)


def step(made: TrainState, seed: int = 1) -> None:
    made.backward(*batch(seed=seed), weight=1, is_last=True)
    made.step(skip=torch.zeros(()))


def test_fp16_lowers_its_scale_on_overflow_and_goes_on_with_it() -> None:
    made = state(precision="fp16", ema_decay=0.9)
    step(made)
    before = {name: value.clone() for name, value in made.model.state_dict().items()}
    assert made.scaler.state_dict()["_growth_tracker"] == 1
    made.backward(*batch(), weight=1e30, is_last=True)
    made.step(skip=torch.zeros(()))
    assert all(torch.equal(value, before[name]) for name, value in made.model.state_dict().items())
    step(made, seed=2)

    scaling = made.scaler.state_dict()
    assert (scaling["scale"], scaling["_growth_tracker"]) == (2**15, 1)
    other = state(precision="fp16", ema_decay=0.9)
    other.load_state_dict(copy.deepcopy(made.state_dict(is_finished=False)))
    assert other.scaler.state_dict() == scaling
    for one in (made, other):
        step(one, seed=3)
    torch.testing.assert_close(other.state_dict(is_finished=False), made.state_dict(is_finished=False), rtol=0, atol=0)


def test_fp32_scales_nothing() -> None:
    assert not state().scaler.is_enabled()


def test_bf16_is_refused_where_the_processor_lacks_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "has_cpu_bf16", lambda: False)
    with pytest.raises(UsageError, match=r"bf16.*fp32"):
        state(precision="bf16")
    state(precision="auto")
    monkeypatch.setattr(machine, "has_cpu_bf16", lambda: True)
    with state(precision="bf16").autocast:
        assert torch.is_autocast_enabled("cpu")
        assert torch.get_autocast_dtype("cpu") == torch.bfloat16
    with autocast_for("auto", CPU):
        assert not torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_bce_equals_timms(smoothing: float) -> None:
    loss = build_loss(dataclasses.replace(PLAIN, loss="bce", label_smoothing=smoothing))
    theirs = BinaryCrossEntropy(smoothing)
    logits, labels = torch.randn(8, 5), torch.randint(5, (8,))
    torch.testing.assert_close(loss(logits, labels), theirs(logits, labels))
    soft = torch.randn(8, 5).softmax(1)
    torch.testing.assert_close(loss(logits, soft), theirs(logits, soft))
    assert loss(logits, soft.bfloat16()).dtype == torch.float32


def test_an_odd_batch_can_be_mixed() -> None:
    images, targets = state(mixup=0.8, cutmix=1.0).mix(torch.randn(5, 3, 8, 8), torch.arange(5))
    assert (images.shape, targets.shape) == ((4, 3, 8, 8), (4, 5))
    torch.testing.assert_close(targets.sum(1), torch.ones(4))


def test_layer_scale_zero_is_none() -> None:
    model = build_model(dataclasses.replace(PLAIN, layer_scale=0), 10)
    assert not any(name.endswith("gamma") for name, _ in model.named_parameters())


def test_head_init_scale_reaches_the_network() -> None:
    heads = []
    for scale in (1.0, 0.001):
        torch.manual_seed(0)
        heads.append(build_model(dataclasses.replace(PLAIN, head_init_scale=scale), 5).get_parameter("head.weight"))
    assert heads[0].std() > 0.01
    torch.testing.assert_close(heads[1], 0.001 * heads[0])


def test_the_average_is_that_of_every_weight_and_statistic() -> None:
    made = state(model="roadmap_micro/resnet", ema_decay=0.7)
    average = {name: value.clone() for name, value in made.model.state_dict().items()}
    for seed in range(3):
        step(made, seed)
        for name, value in made.model.state_dict().items():
            average[name] = 0.7 * average[name] + 0.3 * value if value.is_floating_point() else value.clone()
    assert any("running_var" in name for name in average)
    assert {value.item() for name, value in average.items() if "num_batches" in name} == {3}
    torch.testing.assert_close(dict(made.evaluated.state_dict()), average)
    assert not torch.allclose(average["head.weight"], made.model.state_dict()["head.weight"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_clip_grad_limits_the_norm_of_the_whole_gradient(precision: str) -> None:
    def norm_taken(clip_grad: float) -> float:
        """Of the gradient that AdamW took in its first step, from the average that it keeps of it."""
        made = state(precision=precision, clip_grad=clip_grad)
        step(made)
        averages = [state["exp_avg"] for state in made.optimizer.state.values()]
        return torch.nn.utils.get_total_norm(averages).item() / (1 - PLAIN.betas[0])

    whole = norm_taken(0)
    assert norm_taken(0.5 * whole) == pytest.approx(0.5 * whole, rel=1e-3)
    assert norm_taken(2 * whole) == pytest.approx(whole, rel=1e-3)


def test_parts_add_up_to_the_gradient_of_the_whole_batch() -> None:
    whole, parts = state(), state()
    images, labels = batch()
    whole.backward(images, labels, weight=1, is_last=True)
    for part in (slice(0, 2), slice(2, 8)):  # of two and six images
        parts.backward(images[part], labels[part], weight=len(labels[part]) / 8, is_last=part.stop == 8)
    torch.testing.assert_close(gradients(parts.model), gradients(whole.model), rtol=0, atol=1e-6)
    assert max(gradient.abs().max() for gradient in gradients(whole.model).values()) > 1e-2


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_compiled_steps_have_the_same_loss() -> None:
    plain, compiled = state(drop_path=0.0), state(compile=True)
    for seed, size in enumerate((32, 64)):
        losses = []
        for made in (plain, compiled):
            losses.append(made.backward(*batch(seed=seed, size=size), weight=1, is_last=True).item())
            made.step(skip=torch.zeros(()))
        assert losses[1] == pytest.approx(losses[0], rel=0, abs=1e-4)
    # AdamW takes a step of 1e-3 by a gradient's sign alone, also where that is rounding.
    torch.testing.assert_close(dict(compiled.model.state_dict()), dict(plain.model.state_dict()), rtol=0, atol=3e-4)


@pytest.mark.slow
def test_fused_blocks_learn_the_same() -> None:
    losses = []
    for fuse in (False, True):
        made = state(checkpoint_activations=True, ema_decay=0.5, fuse=fuse)
        for _ in range(2):
            losses.append(made.backward(*batch(2), weight=1, is_last=True))
            made.step(skip=torch.zeros(()))
        assert ("FusedDesignBlock" in repr(made.evaluated)) == fuse
    torch.testing.assert_close(losses[:2], losses[2:], rtol=1e-4, atol=1e-4)


def test_fusing_is_refused_where_it_would_do_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="ResNet"):
        state(model="torchvision/resnet18", fuse=True)
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(UsageError, match=r"cpu.*--fuse"):
        state(fuse=True)
