"""What a training survives: kills at any moment, signals, vanishing data, numbers that are not finite."""

import dataclasses
import multiprocessing
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from convnext.errors import DivergedError, RunError
from convnext.training.fit import fit
from convnext.training.recipe import Recipe
from convnext.training.recipes import small
from convnext.training.run import train
from convnext.training.stop_signals import PreemptedError
from convnext.training.train_state import TrainState
from tests.conftest import MakeFolder, write_folder
from tests.training.runs import assert_same_end, cut_off, log, position, state, tensors, wait_for_checkpoint

COUNTS = {"train/cat": 16, "train/dog": 16, "val/cat": 3, "val/dog": 3}


@pytest.fixture
def data(make_folder: MakeFolder) -> Path:
    return make_folder(COUNTS)


def recipe(data: Path, **change: Any) -> Recipe:
    """Everything that draws random numbers or keeps state; four steps an epoch, a checkpoint after each."""
    values: dict[str, Any] = {
        "model": "roadmap_micro/kernel_7",
        "image_size": 32,
        "stem_stride": 4,
        "epochs": 2,
        "batch_size": 8,
        "accumulate": 2,
        "workers": 0,
    }
    values |= {"augment": "rand_augment", "random_erasing": 0.5, "mixup": 0.8, "cutmix": 1.0, "drop_path": 0.3}
    values |= {"ema_decay": 0.9, "clip_grad": 1.0, "repeated_augmentation": 2, "checkpoint_minutes": 0.0}
    return dataclasses.replace(small(str(data)), **values | change)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run of `recipe`, on images of the same content and names."""
    root = tmp_path_factory.mktemp("whole")
    return train(recipe(write_folder(root / "images", COUNTS)), root / "run").dir


@pytest.mark.parametrize(
    "stop", [(1, 2), *(pytest.param(stop, marks=pytest.mark.slow) for stop in ((0, 1), (0, 4), (1, 0), (1, 3)))]
)
def test_a_run_cut_off_in_mid_epoch_resumes_to_the_same_bits(
    data: Path, whole: Path, tmp_path: Path, stop: tuple[int, int]
) -> None:
    cut_off(recipe(data), tmp_path / "cut", stop)
    assert position(tmp_path / "cut") == stop
    first = next(fit(recipe(data), tmp_path / "cut"))
    assert (first.epoch, first.step) == stop
    train(recipe(data), tmp_path / "cut")
    assert_same_end(tmp_path / "cut", whole)


def test_the_optimizer_resumes_too(data: Path, tmp_path: Path) -> None:
    """One step before the end, when all its state is still in the checkpoint."""
    for name, stops in (("whole", [(1, 3)]), ("cut", [(0, 2), (1, 1), (1, 3)])):
        for stop in stops:
            cut_off(recipe(data), tmp_path / name, stop)
    whole, cut = (state(tmp_path / name)["learner"] for name in ("whole", "cut"))
    assert set(whole) == {"model", "average", "optimizer", "scaler"}
    assert all(torch.equal(one, other) for one, other in zip(tensors(whole), tensors(cut), strict=True))


def start(recipe: Recipe, folder: Path) -> subprocess.Popen[str]:
    code = f"""
import sys
from convnext.errors import ConvNeXtError
from convnext.training.recipe import Recipe
from convnext.training.run import train
try:
    train(Recipe.from_dict({recipe.to_dict()!r}), {str(folder)!r})
except ConvNeXtError as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_status)
"""
    return subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)


def train_with_forked_workers(recipe: Recipe, folder: Path) -> None:
    """Train in a process of a fork server, whose dataloader workers are forked as in any other process."""
    multiprocessing.set_start_method("fork", force=True)
    train(recipe, folder)


@pytest.mark.slow
def test_twenty_kills_change_no_bit(data: Path, tmp_path: Path) -> None:
    """Killed (-9) at random moments of training, checkpointing, evaluation and start, with a dataloader worker."""
    long = recipe(data, epochs=40, workers=1)
    moments, killed, last = random.Random(0), 0, 0
    train(long, tmp_path / "whole")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["convnext.training.run", "timm.data"])  # once, rather than at each start
    while killed < 20:
        process = context.Process(target=train_with_forked_workers, args=(long, tmp_path / "killed"))
        process.start()
        if moments.random() < 0.9:  # else while it starts
            wait_for_checkpoint(tmp_path / "killed", last, process.is_alive)
        time.sleep(moments.uniform(0, 0.5))
        assert process.is_alive(), "the training ended before it was killed twenty times: give it more epochs"
        process.kill()
        process.join()
        killed += 1
        if (tmp_path / "killed" / "last.pt").exists():
            last = (tmp_path / "killed" / "last.pt").stat().st_mtime_ns
    assert position(tmp_path / "killed")[0] < 40
    train(long, tmp_path / "killed")
    assert_same_end(tmp_path / "killed", tmp_path / "whole")


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGINT"])
def test_a_signal_after_the_last_step_leaves_a_finished_run(
    whole: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("convnext.training.run.write_curves", lambda *_: signal.raise_signal(getattr(signal, name)))
    assert train(recipe(whole.parent / "images"), whole).metrics


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
def test_preemption_saves_and_asks_to_be_started_again(data: Path, tmp_path: Path, name: str) -> None:
    long, folder = recipe(data, epochs=200, workers=1, checkpoint_minutes=60), tmp_path / "run"
    process = start(long, folder)
    wait_for_checkpoint(folder, 0, lambda: process.poll() is None)
    time.sleep(0.3)
    process.send_signal(getattr(signal, name))
    _, said = process.communicate(timeout=60)
    assert process.returncode == PreemptedError.exit_status == 75, said
    assert f"stopped by {name} in epoch" in said
    assert str(folder) in said
    first = next(fit(long, folder))
    assert (first.epoch, first.step) == position(folder)
    assert first.epoch >= 1


def test_data_that_vanish_stop_the_run_and_lose_nothing(data: Path, whole: Path, tmp_path: Path) -> None:
    """The whole folder, then the folders of its classes alone."""
    rare = recipe(data, checkpoint_minutes=60)
    for stop, moved in (((0, 2), [data]), ((1, 1), [data / "train" / "cat", data / "train" / "dog"])):
        updates = fit(rare, tmp_path / "cut")
        next(progress for progress in updates if (progress.epoch, progress.step) == stop)
        for i, folder in enumerate(moved):
            folder.rename(tmp_path / f"away-{i}")
        with pytest.raises(RunError, match=r"images of .* are gone"):
            list(updates)
        assert position(tmp_path / "cut") == stop
        for i, folder in enumerate(moved):
            (tmp_path / f"away-{i}").rename(folder)
    train(rare, tmp_path / "cut")
    assert_same_end(tmp_path / "cut", whole)


def test_a_run_cut_off_while_it_began_begins_again(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("convnext.training.checkpoint.environment", lambda: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(recipe(data), tmp_path / "run")
    train(recipe(data), tmp_path / "run")
    assert position(tmp_path / "run") == (2, 0)


def test_an_image_damaged_in_mid_epoch_is_skipped_and_named(data: Path, tmp_path: Path) -> None:
    updates = fit(recipe(data), tmp_path / "run")
    next(progress for progress in updates if (progress.epoch, progress.step) == (0, 2))
    for path in (data / "train" / "cat").iterdir():
        path.write_bytes(path.read_bytes()[:300])
    said = [warning for progress in updates for warning in progress.warnings]
    assert said
    assert all(f"{data}/train/cat/" in warning for warning in said)
    assert len(set(said)) == len(said)
    assert log(tmp_path / "run")[-1]["unreadable"] > 0


PLANTED = "stages.1.0.pwconv1"


def plant(monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """Make a weight NaN after the step ``at`` (from 1) has updated the weights."""
    step, done = TrainState.step, []

    def planted(self: TrainState, skip: Tensor) -> None:
        step(self, skip)
        done.append(1)
        if len(done) == at:
            with torch.no_grad():
                self.model.get_submodule(PLANTED).weight[0, 0] = float("nan")  # pyright: ignore

    monkeypatch.setattr(TrainState, "step", planted)


@pytest.mark.parametrize("precision", ["fp32", pytest.param("fp16", marks=pytest.mark.slow)])
def test_a_planted_nan_is_found_named_and_not_saved(
    data: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    planned = recipe(data, checkpoint_minutes=60, precision=precision)
    with monkeypatch.context() as patch:
        plant(patch, at=6)
        with pytest.raises(DivergedError) as raised:
            train(planned, tmp_path / "run")
    said = str(raised.value)
    assert all(part in said for part in ("epoch 2, step 3, learning rate", PLANTED, "--precision bf16", "--lr"))
    assert "whose weights are not finite" in said
    assert position(tmp_path / "run") == (1, 0)
    train(planned, tmp_path / "run")
    if precision == "fp16":
        train(planned, tmp_path / "fp16")
        whole = tmp_path / "fp16"
    assert_same_end(tmp_path / "run", whole)


def test_weights_that_are_not_finite_do_not_replace_a_checkpoint(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch, at=3)  # with a checkpoint after each step, it is the saving that would come first
    with pytest.raises(DivergedError, match=r"epoch 1, step 4|after epoch") as raised:
        train(recipe(data), tmp_path / "run")
    assert "not finite" in str(raised.value)
    assert all(tensor.isfinite().all() for tensor in tensors(state(tmp_path / "run")["learner"]["model"]))


def test_images_that_are_not_finite_are_told_from_weights(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("convnext.data.loader.Batches.prepare", lambda _, batch, __: batch.images / 0)
    with pytest.raises(DivergedError, match="images themselves"):
        train(recipe(data), tmp_path / "run")
