"""Groups and schedule."""

import pytest
import torch
from torch import nn

import convnext
from convnext.training.optimizer import adamw, decay_groups, learning_rate
from convnext.training.recipe import Recipe


def test_no_decay_on_biases_norms_layer_scale_and_grn() -> None:
    for name in ("convnext_atto", "convnextv2_atto", "roadmap_micro/resnet"):
        model = convnext.create_model(name)
        names = {id(parameter): key for key, parameter in model.named_parameters()}
        decayed, exempt = decay_groups(model)
        assert len(decayed) + len(exempt) == len(names)
        assert all(names[id(p)].endswith("weight") and p.ndim > 1 for p in decayed)
        free = {names[id(p)].split(".")[-1] for p in exempt}
        assert free <= {"weight", "bias", "gamma", "beta"}
        if "v2" in name:
            assert any(p.ndim == 4 for p in exempt)


def test_adamw_has_the_recipes_values() -> None:
    optimizer = adamw(nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2)), Recipe(), lr=0.25)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.05, 0.0]
    assert [len(group["params"]) for group in optimizer.param_groups] == [1, 3]
    assert optimizer.param_groups[0]["lr"] == 0.25


def test_learning_rate_equals_the_published_schedule() -> None:
    """The paper's code: numpy's linspace over the warm-up, then a half cosine by step."""
    steps, warmup, peak, minimum = 100, 20, 4e-3, 1e-6
    rates = [learning_rate(step, steps, warmup, peak, minimum) for step in range(steps)]
    torch.testing.assert_close(torch.tensor(rates[:20]), torch.linspace(0, peak, 20))
    i = torch.arange(80)
    cosine = minimum + 0.5 * (peak - minimum) * (1 + torch.cos(torch.pi * i / 80))
    torch.testing.assert_close(torch.tensor(rates[20:]), cosine, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("warmup", [0, 1])
def test_no_warmup_starts_at_the_peak(warmup: int) -> None:
    assert learning_rate(warmup, 10, warmup, 1.0, 0.0) == 1.0
