"""Groups and schedule."""

import dataclasses

import pytest
import torch
from torch import nn

import convnext
from convnext.errors import UsageError
from convnext.training.blocks import blocks
from convnext.training.optimizer import adamw, decayed_parameters, layer_groups, learning_rate, parameter_groups
from convnext.training.recipe import Recipe


def on_meta(name: str) -> nn.Module:
    with torch.device("meta"):
        return convnext.create_model(name, num_classes=10)


@pytest.mark.parametrize("name", ["convnext_atto", "convnextv2_atto", "roadmap_micro/resnet", "timm/test_vit"])
def test_no_decay_on_biases_norms_layer_scale_and_grn(name: str) -> None:
    model = on_meta(name)
    decayed = decayed_parameters(model)
    assert all(key.endswith("weight") and p.ndim > 1 for key, p in model.named_parameters() if key in decayed)
    assert {key for key, p in model.named_parameters() if key.endswith("weight") and p.ndim > 1} == decayed
    if "v2" in name:
        assert any(p.ndim == 4 for key, p in model.named_parameters() if "grn" in key)


def test_adamw_has_the_recipes_values() -> None:
    optimizer = adamw(nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2)), Recipe(), lr=0.25)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.05, 0.0]
    assert [len(group["params"]) for group in optimizer.param_groups] == [1, 3]
    assert [group["lr_scale"] for group in optimizer.param_groups] == [1, 1]
    assert optimizer.param_groups[0]["lr"] == 0.25


def published_group(name: str) -> int:
    """The rule of paper.md, for (3, 3, 27, 3)."""
    words = name.split(".")
    if words[0] == "downsample_layers":
        return {"0": 0, "1": 2, "2": 3, "3": 12}[words[1]]
    if words[0] == "stages":
        return 3 + int(words[2]) // 3 if words[1] == "2" else {"0": 1, "1": 2, "3": 12}[words[1]]
    return 13


@pytest.mark.parametrize("name", ["convnext_small", "convnext_base", "convnextv2_base", "roadmap_base/kernel_7"])
def test_layer_groups_equal_the_published_rule(name: str) -> None:
    model = on_meta(name)
    assert layer_groups(model, "group") == {name: published_group(name) for name, _ in model.named_parameters()}


@pytest.mark.parametrize("name", [name for name in convnext.list_models() if not name.startswith("roadmap")])
@pytest.mark.parametrize("by", ["group", "block"])
def test_every_depth_has_groups_that_grow_from_stem_to_head(name: str, by: str) -> None:
    model = on_meta(name)
    groups = layer_groups(model, by)
    by_depth = [groups[f"{block}.dwconv.weight"] for block in blocks(model)]
    assert by_depth == sorted(by_depth)
    assert groups["head.weight"] == max(groups.values()) == groups["norm.weight"]
    assert min(groups.values()) <= 1
    if by == "block" or "isotropic" in name:
        assert len(set(by_depth)) == len(by_depth)


def test_block_groups_put_a_downsampling_layer_with_the_block_behind_it() -> None:
    groups = layer_groups(on_meta("convnextv2_atto"), "block")
    assert [groups[f"downsample_layers.{i}.0.weight"] for i in range(4)] == [1, 3, 5, 11]
    assert [groups[f"stages.{i}.0.norm.weight"] for i in range(4)] == [1, 3, 5, 11]
    assert groups["head.bias"] == 13


@pytest.mark.parametrize("name", ["timm/convnext_tiny", "timm/resnet18", "timm/test_vit", "timm/convnextv2_atto"])
def test_groups_of_timms_networks_are_timms_own(name: str) -> None:
    from timm.optim import param_groups_layer_decay  # pyright: ignore[reportPrivateImportUsage]

    model = on_meta(name)
    exempt = model.no_weight_decay() if hasattr(model, "no_weight_decay") else ()  # pyright: ignore
    theirs = param_groups_layer_decay(model, 0.05, no_weight_decay_list=exempt, layer_decay=0.8)
    ours = parameter_groups(model, dataclasses.replace(Recipe(), layer_decay=0.8, model=name))

    for kind in ("weight_decay", "lr_scale"):
        rates = [{id(p): group[kind] for group in groups for p in group["params"]} for groups in (ours, theirs)]
        assert rates[0] == pytest.approx(rates[1])


@pytest.mark.parametrize("name", ["torchvision/resnet18", "torchvision/convnext_tiny", "torchvision/swin_t"])
def test_references_get_a_group_for_each_block(name: str) -> None:
    model = on_meta(name)
    groups = layer_groups(model, "group")
    names = [name for name, _ in model.named_parameters()]
    assert [groups[name] for name in names] == sorted(groups[name] for name in names)
    assert groups[names[-1]] > len(blocks(model)) > 7


def test_layer_decay_without_layers_is_refused() -> None:
    with pytest.raises(UsageError, match=r"layer_decay is 0.8 and torchvision/vgg11"):
        parameter_groups(on_meta("torchvision/vgg11"), Recipe(model="torchvision/vgg11", layer_decay=0.8))


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
