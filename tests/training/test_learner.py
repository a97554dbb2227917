"""The learner: recomputed activations change nothing but memory."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from convnext.training.distributed import Processes
from convnext.training.learner import Learner
from convnext.training.recipe import Recipe

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


def learner(**change: Any) -> Learner:
    """A learner of five classes, with the same initial weights for the same network."""
    torch.manual_seed(0)
    made = Learner(dataclasses.replace(PLAIN, **change), 5, CPU, Processes())
    made.set_rate(1e-3)
    made.model.train()
    return made


def batch(count: int = 8, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Images (N, 3, 32, 32) and labels (N,)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, 32, 32, generator=generator), torch.randint(5, (count,), generator=generator)


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def kept_bytes(learner: Learner) -> int:
    """Bytes that a forward pass keeps for the backward one; parameters do not count. Takes the whole step."""
    own = {parameter.untyped_storage().data_ptr() for parameter in learner.model.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    images, labels = batch()
    torch.manual_seed(2)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logits = learner.network(images)
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
    learners = [learner(model=model, drop_path=drop_path, checkpoint_activations=on) for on in (False, True)]
    for made in learners:
        torch.manual_seed(2)
        made.add_gradients(*batch(), weight=1, last=True)
    plain, recomputed = (gradients(made.model) for made in learners)
    assert len(plain) == len(list(learners[0].model.parameters()))
    assert plain.keys() == recomputed.keys()
    assert [name for name in plain if not torch.equal(plain[name], recomputed[name])] == []
    buffers = [dict(made.model.named_buffers()) for made in learners]
    assert [name for name in buffers[0] if not torch.equal(buffers[0][name], buffers[1][name])] == []

    full, least = (kept_bytes(made) for made in learners)
    assert least < 0.6 * full  # ResNet's stem, which is no block, is most of what is left
