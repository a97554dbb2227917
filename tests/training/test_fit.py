"""The loop: it learns, repeats itself to the bit, goes on after a kill, and stops with a reason."""

import dataclasses
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

import convnext
from convnext.data import FileImages, load_data
from convnext.errors import DivergedError, RunError, UsageError
from convnext.training import checkpoint
from convnext.training.build import build_model, build_state
from convnext.training.checkpoint import Checkpoints
from convnext.training.fit import fit
from convnext.training.recipe import Recipe
from convnext.training.recipe_choice import recipe_for
from convnext.training.recipes import digits, small
from convnext.training.run import default_folder, train
from tests.conftest import MakeFolder

TINY = dataclasses.replace(digits(), epochs=2, batch_size=480, model="roadmap_micro/kernel_7", image_size=32)


def weights(folder: Path) -> dict[str, Tensor]:
    return torch.load(folder / "last.pt", weights_only=True)["learner"]["model"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of `TINY` that nothing disturbed, to look at."""
    return train(TINY, tmp_path_factory.mktemp("whole") / "run").dir


@pytest.fixture
def finished(whole: Path, tmp_path: Path) -> Path:
    """A copy of it, to change."""
    return shutil.copytree(whole, tmp_path / "finished")


def interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def log(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def assert_equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert list(first) == list(second)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.usefixtures("curves")
def test_a_run_leaves_everything_behind(finished: Path) -> None:
    run = train(TINY, finished)
    names = [
        "best.safetensors",
        "classes.json",
        "curves.png",
        "curves.svg",
        "data.json",
        "environment.json",
        "last.pt",
        "metrics.jsonl",
        "preprocessing.json",
        "recipe.json",
    ]
    assert sorted(path.name for path in run.dir.iterdir() if not path.name.startswith(".")) == names
    assert json.loads((run.dir / "classes.json").read_text()) == [str(i) for i in range(10)]
    assert json.loads((run.dir / "recipe.json").read_text())["model"] == "roadmap_micro/kernel_7"
    assert [metrics["epoch"] for metrics in run.metrics] == [1, 2]
    assert run.best["top1"] == max(metrics["top1"] for metrics in run.metrics)
    assert all(metrics["images"] == 360 and metrics["unreadable"] == 0 for metrics in run.metrics)
    best = safetensors.torch.load_file(run.dir / "best.safetensors")
    convnext.create_model(TINY.model, num_classes=10).load_state_dict(best)
    if run.best["epoch"] == 2:
        assert_equal(best, weights(run.dir))


def test_two_runs_are_equal_to_the_bit_and_another_seed_is_not(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        recipe = dataclasses.replace(TINY, epochs=1, seed=seed, mixup=0.2, cutmix=1.0, random_erasing=0.2)
        train(recipe, tmp_path / name)
    assert_equal(weights(tmp_path / "a"), weights(tmp_path / "b"))
    assert not torch.equal(weights(tmp_path / "a")["head.weight"], weights(tmp_path / "c")["head.weight"])


@pytest.mark.parametrize(
    "stop",
    [
        pytest.param("in the first epoch", marks=pytest.mark.slow),
        pytest.param("in the second epoch", marks=pytest.mark.slow),
        "after the log, before the checkpoint",
    ],
)
def test_a_run_that_was_cut_off_goes_on_to_the_same_end(
    whole: Path, tmp_path: Path, stop: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if stop.startswith("in"):
        updates = fit(TINY, tmp_path / "cut")
        for progress in updates:
            if progress.epoch == (1 if "second" in stop else 0) and progress.step == 2:
                break
        updates.close()
    else:
        with monkeypatch.context() as patch:
            patch.setattr(Checkpoints, "save", interrupt)
            with pytest.raises(KeyboardInterrupt):
                train(TINY, tmp_path / "cut")
    run = train(TINY, tmp_path / "cut")
    assert_equal(weights(tmp_path / "cut"), weights(whole))
    assert [metrics["epoch"] for metrics in run.metrics] == [1, 2]


@pytest.mark.slow
def test_a_killed_process_goes_on_to_the_same_end(tmp_path: Path) -> None:
    recipe = dataclasses.replace(TINY, epochs=15)
    train(recipe, tmp_path / "whole")
    code = f"""
from convnext.training.recipe import Recipe
from convnext.training.run import train
train(Recipe(**{recipe.to_dict()!r}), {str(tmp_path / "run")!r})
"""
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    log = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 60
    while (not log.exists() or len(log.read_text().splitlines()) < 2) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    updates = fit(recipe, tmp_path / "run")
    assert 1 <= next(updates).epoch < 15
    updates.close()
    train(recipe, tmp_path / "run")
    assert_equal(weights(tmp_path / "run"), weights(tmp_path / "whole"))


def test_a_finished_run_is_not_trained_again(finished: Path) -> None:
    before = (finished / "last.pt").stat().st_mtime_ns
    (progress,) = fit(TINY, finished)
    assert progress.epoch == 2
    assert (finished / "last.pt").stat().st_mtime_ns == before


def test_another_recipe_or_other_files_are_refused(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"another recipe \(lr is 0.006 there, 0.5 here\)"):
        train(dataclasses.replace(TINY, lr=0.5), finished)
    train(dataclasses.replace(TINY, workers=3), finished)  # the machine is no part of it
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").write_text("years of work")
    with pytest.raises(UsageError, match="has files but no run"):
        train(TINY, tmp_path / "thesis")
    assert [path.name for path in (tmp_path / "thesis").iterdir()] == ["thesis.tex"]


def test_one_folder_however_it_is_spelled(
    make_folder: MakeFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = make_folder({"cat": 6, "dog": 6})
    monkeypatch.chdir(data.parent)
    for name in ("images", "./images/", str(data)):
        train(folder_recipe(Path(name)), tmp_path / "run")


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        ('{"data": 3}', RunError, "recipe.json is damaged"),
        ('{"momentum": 3}', UsageError, r"recipe.json: the recipe has fields .* momentum: choose another"),
    ],
)
def test_a_recipe_that_cannot_be_read(tmp_path: Path, text: str, kind: type[Exception], message: str) -> None:
    (tmp_path / "recipe.json").write_text(text)
    with pytest.raises(kind, match=message):
        train(TINY, tmp_path)


def test_a_finished_run_without_its_best_weights(finished: Path) -> None:
    (finished / "best.safetensors").unlink()
    with pytest.raises(RunError, match=r"best\.safetensors is gone"):
        train(TINY, finished)


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    with pytest.raises(DivergedError, match=r"not finite \(epoch 1, .*learning rate .*a lower --lr"):
        train(dataclasses.replace(TINY, lr=1e30, warmup_epochs=0), tmp_path)
    assert (tmp_path / "recipe.json").exists()


def test_a_full_disk_keeps_the_last_good_checkpoint(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_after_the_first_epoch(_: int) -> None:
        if (tmp_path / "run" / "last.pt").exists():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full_after_the_first_epoch)
        with pytest.raises(RunError, match="the disk is full"):
            train(TINY, tmp_path / "run")
    assert torch.load(tmp_path / "run" / "last.pt", weights_only=True)["epoch"] == 1
    train(TINY, tmp_path / "run")
    assert_equal(weights(tmp_path / "run"), weights(whole))


def test_a_kill_between_checkpoint_and_log_loses_nothing(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "append_line", interrupt)
        with pytest.raises(KeyboardInterrupt):
            train(TINY, tmp_path / "cut")
    run = train(TINY, tmp_path / "cut")
    assert [metrics["top1"] for metrics in run.metrics] == [metrics["top1"] for metrics in log(whole)]


def test_the_learning_rate_is_that_of_the_batch_there_is(tmp_path: Path) -> None:
    recipe = dataclasses.replace(TINY, batch_size=100_000, epochs=1, warmup_epochs=0)
    first = next(progress for progress in fit(recipe, tmp_path) if progress.step == 1)
    assert first.lr == pytest.approx(recipe.lr * 1437 / recipe.lr_batch_size)


def test_batch_norm_refuses_batches_of_one(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"BatchNorm.*--batch-size"):
        train(dataclasses.replace(TINY, batch_size=1), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_log_cut_off_in_the_writing_is_mended(whole: Path, finished: Path) -> None:
    with (finished / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 3, "lo')
    assert train(TINY, finished).metrics == log(whole)
    assert (finished / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()


def test_a_damaged_checkpoint_is_named(finished: Path) -> None:
    (finished / "last.pt").write_bytes(b"damaged")
    with pytest.raises(RunError, match=r"cannot read .*last\.pt.*move it away"):
        train(TINY, finished)


def folder_recipe(data: Path, **change: Any) -> Recipe:
    return dataclasses.replace(
        small(str(data)), image_size=32, epochs=1, batch_size=4, workers=0, **{"pipeline": "exact"} | change
    )


@pytest.mark.parametrize("augment", ["none", "affine", "crop_flip", "rand_augment"])
def test_a_folder_of_images_is_trained_on(make_folder: MakeFolder, tmp_path: Path, augment: str) -> None:
    data = make_folder({"cat": 10, "dog": 10})
    run = train(folder_recipe(data, augment=augment), tmp_path / "run")
    assert run.metrics[0]["images"] == 4
    assert json.loads((tmp_path / "run" / "classes.json").read_text()) == ["cat", "dog"]
    split = json.loads((tmp_path / "run" / "data.json").read_text())["split"]
    assert (len(split["train"]), len(split["val"])) == (16, 4)


def test_a_folder_that_changed_is_not_gone_on_with(make_folder: MakeFolder, tmp_path: Path) -> None:
    data = make_folder({"cat": 6, "dog": 6})
    train(folder_recipe(data), tmp_path / "run")
    (data / "cat" / "0.jpg").rename(data / "cat" / "new.jpg")
    with pytest.raises(UsageError, match=r"another recipe \(images is"):
        train(folder_recipe(data), tmp_path / "run")


def test_unreadable_images_are_skipped_named_and_counted(make_folder: MakeFolder, tmp_path: Path) -> None:
    data = make_folder({"train/cat": 8, "train/dog": 8, "val/cat": 3, "val/dog": 3})
    for name in ("train/cat/3.jpg", "val/dog/1.jpg"):
        (data / name).write_text("no image")
    updates = list(fit(folder_recipe(data), tmp_path / "run"))
    said = [warning for progress in updates for warning in progress.warnings]
    assert len(said) == 2
    assert "skipped, cannot be read" in said[0]
    assert "train/cat/3.jpg" in said[0]
    assert "val/dog/1.jpg" in said[1]
    (metrics,) = log(tmp_path / "run")
    assert (metrics["images"], metrics["unreadable"]) == (5, 2)


def test_nothing_readable_is_an_error(make_folder: MakeFolder, tmp_path: Path) -> None:
    data = make_folder({"train/cat": 4, "train/dog": 4, "val/cat": 2, "val/dog": 2})
    train_images = load_data(str(data)).train
    assert isinstance(train_images, FileImages)
    for path in train_images.paths:
        path.write_text("")
    with pytest.raises(RunError, match=r"none of the training images can be read; the first: .*0\.jpg"):
        train(folder_recipe(data), tmp_path / "run")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "convnext_tinny"}, "unknown model"),
        (
            {"model": "convnext_atto", "image_size": 24},
            r"image size 24 is too small for convnext_atto \(needs at least 32\)",
        ),
        ({"device": "quantum"}, "device 'quantum' cannot be used here"),
        ({"device": "meta"}, "device 'meta' cannot be used here"),
        ({"data": "nowhere"}, "unknown data"),
        ({"data": ""}, "no data: name digits"),
        ({"val_fraction": 0.001}, "val_fraction is 0.001: both parts of the digits need"),
    ],
)
def test_slips_leave_no_folder(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        train(dataclasses.replace(TINY, **change), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "model",
    [
        pytest.param("torchvision/resnet18", marks=pytest.mark.slow),
        "timm/test_vit",
        pytest.param("convnextv2_atto", marks=pytest.mark.slow),
        pytest.param("convnext_atto", marks=pytest.mark.slow),
    ],
)
def test_references_and_family_train(model: str, tmp_path: Path) -> None:
    run = train(dataclasses.replace(TINY, model=model, epochs=1), tmp_path)
    assert run.metrics[0]["images"] == 360


def test_layer_scale_zero_is_none() -> None:
    model = build_model(dataclasses.replace(TINY, layer_scale=0), 10)
    assert not any(name.endswith("gamma") for name, _ in model.named_parameters())


def test_an_odd_batch_can_be_mixed() -> None:
    state = build_state(dataclasses.replace(TINY, mixup=0.8, cutmix=1.0), 10, torch.device("cpu"))
    images, targets = state.mix(torch.randn(5, 3, 8, 8), torch.arange(5))
    assert (images.shape, targets.shape) == ((4, 3, 8, 8), (4, 10))
    torch.testing.assert_close(targets.sum(1), torch.ones(4))


def test_default_folder() -> None:
    assert default_folder(recipe_for("digits")) == Path("runs/roadmap_micro-separate_downsampling-digits")
    assert default_folder(small("some/photos/")) == Path("runs/convnext_atto-photos")


@pytest.mark.slow
def test_digits_reach_what_the_recipe_promises(tmp_path: Path) -> None:
    assert train(digits(), tmp_path).metrics[-1]["top1"] >= 98.5
