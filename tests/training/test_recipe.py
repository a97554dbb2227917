"""Recipes: the papers' figures, and refusal of what cannot be."""

import dataclasses
import inspect
import json
from typing import Any

import pytest

import convnext
from convnext.errors import UsageError
from convnext.training.recipe import MACHINE_FIELDS, Recipe
from convnext.training.recipes import (
    RECIPES,
    from_scratch,
    paper_1k,
    paper_1k_384,
    paper_22k,
    paper_22k_to_1k,
    paper_isotropic,
    torchvision_600,
    v2_finetune,
)

DATA = "imagenet:/data"


def test_paper_1k() -> None:
    recipe = paper_1k(DATA)
    assert (recipe.epochs, recipe.warmup_epochs, recipe.batch_size, recipe.peak_lr(4096)) == (300, 20, 4096, 4e-3)
    assert (recipe.betas, recipe.eps, recipe.weight_decay, recipe.min_lr) == ((0.9, 0.999), 1e-8, 0.05, 1e-6)
    assert (recipe.augment, recipe.random_erasing, recipe.label_smoothing) == ("rand_augment", 0.25, 0.1)
    assert (recipe.mixup, recipe.cutmix, recipe.drop_path, recipe.image_size) == (0.8, 1.0, 0.1, 224)
    assert (recipe.ema_decay, recipe.layer_decay, recipe.head_init_scale, recipe.pipeline) == (0.9999, 1, 1, "exact")


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        (paper_1k_384(DATA), {"lr": 5e-5, "epochs": 30, "weight_decay": 1e-8, "layer_decay": 0.7, "image_size": 384}),
        (paper_1k_384(DATA), {"mixup": 0, "cutmix": 0, "weights": "in1k", "ema_decay": 0, "warmup_epochs": 0}),
        (paper_22k_to_1k(DATA), {"lr": 5e-5, "batch_size": 512, "layer_decay": 0.8, "weights": "in22k"}),
        (paper_22k_to_1k(DATA), {"mixup": 0, "cutmix": 0, "random_erasing": 0.25, "head_init_scale": 0.001}),
        (paper_22k(DATA), {"epochs": 90, "warmup_epochs": 5, "lr": 4e-3, "batch_size": 4096, "ema_decay": 0}),
        (paper_isotropic(DATA), {"warmup_epochs": 50, "epochs": 300, "layer_scale": None, "drop_path": 0.1}),
        (torchvision_600(DATA), {"epochs": 600, "image_size": 176, "eval_image_size": 224, "mixup": 0.2, "cutmix": 1}),
        (torchvision_600(DATA), {"augment": "trivial_augment", "repeated_augmentation": 4, "lr": 1e-3}),
        (v2_finetune(DATA, "convnextv2_atto"), {"epochs": 600, "weight_decay": 0.3, "label_smoothing": 0.2}),
        (v2_finetune(DATA, "convnextv2_base"), {"epochs": 100, "layer_decay": 0.6, "layer_groups": "group"}),
        (v2_finetune(DATA), {"epochs": 300, "layer_decay": 0.9, "layer_groups": "block", "drop_path": 0.2}),
    ],
)
def test_the_papers_tables(recipe: Recipe, expected: dict[str, Any]) -> None:
    assert {name: getattr(recipe, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("recipe", "rates"),
    [
        (paper_1k, {"tiny": 0.1, "small": 0.4, "base": 0.5, "large": 0.5}),
        (paper_1k_384, {"base": 0.8, "large": 0.95}),
        (paper_22k_to_1k, {"tiny": 0, "small": 0.1, "base": 0.2, "large": 0.3, "xlarge": 0.3}),
        (paper_22k, {"tiny": 0, "small": 0, "base": 0.1, "large": 0.1, "xlarge": 0.2}),
        (paper_isotropic, {"isotropic_small": 0.1, "isotropic_base": 0.2, "isotropic_large": 0.5}),
    ],
)
def test_drop_path_follows_the_network(recipe: Any, rates: dict[str, float]) -> None:
    assert {name: recipe(DATA, f"convnext_{name}").drop_path for name in rates} == rates


def test_learning_rate_is_scaled_by_the_batch() -> None:
    assert paper_1k(DATA).peak_lr(1024) == pytest.approx(1e-3)
    assert v2_finetune(DATA, "convnextv2_base").peak_lr(1024) == pytest.approx(2.5e-3)


@pytest.mark.parametrize(("data", "name"), [("digits", "digits"), ("cifar10", "small"), (DATA, "paper_1k")])
def test_from_scratch(data: str, name: str) -> None:
    assert from_scratch(data) == RECIPES[name](data)
    assert from_scratch(data).weights is None


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_plain_data_with_a_contract(name: str) -> None:
    recipe = RECIPES[name]("digits")
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe
    contract = inspect.getdoc(RECIPES[name]) or ""
    assert all(word in contract for word in ("Command:", "Hardware:", "xpected"))
    assert recipe.model in convnext.list_models()


def test_every_field_is_explained() -> None:
    text = inspect.getdoc(Recipe) or ""
    for field in dataclasses.fields(Recipe):
        assert f"{field.name}: " in text
    assert set(MACHINE_FIELDS) < {field.name for field in dataclasses.fields(Recipe)}


def test_a_recipe_of_another_version() -> None:
    with pytest.raises(UsageError, match="momentum"):
        Recipe.from_dict({"data": "digits", "momentum": 0.9})
    assert Recipe.from_dict({"lr": 0.5}) == Recipe(lr=0.5)


IMPOSSIBLE: dict[str, Any] = {"label_smoothing": 1.0, "drop_path": -0.1, "ema_decay": 1.0, "layer_decay": 0.0}
IMPOSSIBLE |= dict.fromkeys(("epochs", "batch_size", "accumulate", "image_size", "eval_image_size"), 0)
IMPOSSIBLE |= {"repeated_augmentation": 0, "eps": 0.0, "betas": (0.9, 1.0), "val_fraction": 1.0, "seed": -1}
IMPOSSIBLE |= {"mixup": -1.0, "clip_grad": -1.0, "checkpoint_minutes": -1.0, "warmup_epochs": float("inf")}


@pytest.mark.parametrize(("name", "value"), [*IMPOSSIBLE.items(), ("lr", 0.0), ("lr", float("nan"))])
def test_impossible_values_are_named(name: str, value: Any) -> None:
    with pytest.raises(UsageError, match=f"{name} is "):
        Recipe(**{name: value})


def test_one_spelling_of_a_folder() -> None:
    assert Recipe(data="photos/").identity == Recipe(data="photos").identity
    assert Recipe(data="/").data == "/"
