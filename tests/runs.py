"""Run folders as a training leaves them, without the training."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from convnext.data import load_data
from convnext.training.build import build_model
from convnext.training.checkpoint import RunFolder
from convnext.training.recipe import Recipe

MakeRun = Callable[..., Path]
TINY = Recipe(model="roadmap_micro/kernel_7", image_size=32, augment="none", epochs=1, batch_size=8, workers=0)


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """Write a run folder on some data, with the weights that the network begins with."""

    def make(data: str | Path, name: str = "run", **changes: object) -> Path:
        recipe = dataclasses.replace(TINY, data=str(data), **changes)  # pyright: ignore[reportArgumentType]
        loaded = load_data(recipe.data, val_fraction=recipe.val_fraction)
        run = RunFolder(tmp_path / name)
        run.begin(recipe, loaded)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)  # not the seed of untrained models
            run.save_best(build_model(recipe, len(loaded.classes)).state_dict())
        return run.dir

    return make
