"""Recipes: the paper's figures, choice by data, refusal of what cannot be."""

import json
from typing import Any

import pytest

from convnext.errors import UsageError
from convnext.training.recipe import Recipe
from convnext.training.recipes import RECIPES, recipe_for


def test_paper_1k() -> None:
    recipe = recipe_for("imagenet:/data/imagenet")
    assert (recipe.epochs, recipe.warmup_epochs, recipe.batch_size, recipe.peak_lr(4096)) == (300, 20, 4096, 4e-3)
    assert (recipe.betas, recipe.eps, recipe.weight_decay, recipe.min_lr) == ((0.9, 0.999), 1e-8, 0.05, 1e-6)
    assert (recipe.augment, recipe.random_erasing, recipe.label_smoothing) == ("rand_augment", 0.25, 0.1)
    assert (recipe.mixup, recipe.cutmix, recipe.drop_path, recipe.image_size) == (0.8, 1.0, 0.1, 224)


def test_learning_rate_is_scaled_by_the_batch() -> None:
    assert recipe_for("imagenet:x").peak_lr(1024) == pytest.approx(1e-3)


@pytest.mark.parametrize(("data", "name"), [("digits", "digits"), ("cifar10", "small"), ("photos", "small")])
def test_the_data_choose_a_recipe(data: str, name: str) -> None:
    assert recipe_for(data) == RECIPES[name](data)
    assert recipe_for(data).data == data


def test_unknown_recipe() -> None:
    with pytest.raises(UsageError, match="unknown recipe 'smal': did you mean small"):
        recipe_for("photos", "smal")


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_plain_data(name: str) -> None:
    recipe = RECIPES[name]("digits")
    read = json.loads(json.dumps(recipe.to_dict()))
    assert Recipe(**read | {"betas": tuple(read["betas"])}) == recipe


@pytest.mark.parametrize(
    "change",
    [
        {"epochs": 0},
        {"batch_size": 0},
        {"image_size": 0},
        {"lr": 0.0},
        {"mixup": -1.0},
        {"label_smoothing": 1.0},
        {"drop_path": -0.1},
        {"val_fraction": 1.0},
        {"seed": -1},
        {"lr": float("nan")},
        {"warmup_epochs": float("inf")},
        {"eps": 0.0},
        {"betas": (0.9, 1.0)},
    ],
)
def test_impossible_values_are_named(change: dict[str, Any]) -> None:
    (name,) = change
    with pytest.raises(UsageError, match=f"{name} is "):
        Recipe(**change)


def test_one_spelling_of_a_folder() -> None:
    assert Recipe(data="photos/").identity == Recipe(data="photos").identity
    assert Recipe(data="/").data == "/"
