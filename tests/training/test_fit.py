"""The loop: it learns, repeats itself to the bit, resumes after a kill, and stops with a reason."""

import dataclasses
import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

import convnext
from convnext.errors import DivergedError, RunError, UsageError
from convnext.training import checkpoint
from convnext.training.checkpoint import Checkpoints
from convnext.training.fit import fit
from convnext.training.recipe import Recipe
from convnext.training.recipe_choice import recipe_for
from convnext.training.recipes import digits, small
from convnext.training.run import default_folder, train
from tests.conftest import MakeFolder
from tests.training.runs import assert_same_end, log, position, state

TINY = dataclasses.replace(digits(), epochs=2, batch_size=480, model="roadmap_micro/kernel_7", image_size=32)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run of `TINY`, not to be changed."""
    return train(TINY, tmp_path_factory.mktemp("whole") / "run").dir


@pytest.fixture
def finished(whole: Path, tmp_path: Path) -> Path:
    """A copy of it, to change."""
    return shutil.copytree(whole, tmp_path / "finished")


def interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


@pytest.mark.usefixtures("curves")
def test_a_run_leaves_everything_behind(finished: Path) -> None:
    run = train(TINY, finished)
    names = {"classes.json", "data.json", "environment.json", "preprocessing.json", "recipe.json"}
    names |= {"best.safetensors", "last.pt", "metrics.jsonl", "curves.png", "curves.svg"}
    assert {path.name for path in run.dir.iterdir() if not path.name.startswith(".")} == names
    assert json.loads((run.dir / "classes.json").read_text()) == [str(i) for i in range(10)]
    assert json.loads((run.dir / "recipe.json").read_text())["model"] == "roadmap_micro/kernel_7"
    assert [metrics["epoch"] for metrics in run.metrics] == [1, 2]
    assert run.best["top1"] == max(metrics["top1"] for metrics in run.metrics)
    assert all(metrics["images"] == 360 and metrics["unreadable"] == 0 for metrics in run.metrics)
    best = safetensors.torch.load_file(run.dir / "best.safetensors")
    convnext.create_model(TINY.model, num_classes=10).load_state_dict(best)
    if run.best["epoch"] == 2:
        learned = state(run.dir)["learner"]["model"]
        assert list(best) == list(learned)
        assert all(torch.equal(value, learned[name]) for name, value in best.items())


def test_two_runs_are_equal_to_the_bit_and_another_seed_is_not(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        recipe = dataclasses.replace(TINY, epochs=1, seed=seed, mixup=0.2, cutmix=1.0, random_erasing=0.2)
        train(recipe, tmp_path / name)
    assert_same_end(tmp_path / "a", tmp_path / "b")
    heads = [state(tmp_path / name)["learner"]["model"]["head.weight"] for name in "ac"]
    assert not torch.equal(*heads)


@pytest.mark.parametrize(("place", "name"), [(Checkpoints, "save"), (checkpoint, "append_line")])
def test_a_kill_around_the_checkpoint_of_an_epoch_loses_nothing(
    whole: Path, tmp_path: Path, place: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before it; and between it and the log."""
    with monkeypatch.context() as patch:
        patch.setattr(place, name, interrupt)
        with pytest.raises(KeyboardInterrupt):
            train(TINY, tmp_path / "cut")
    train(TINY, tmp_path / "cut")
    assert_same_end(tmp_path / "cut", whole)


def test_a_finished_run_is_not_trained_again(finished: Path) -> None:
    before = (finished / "last.pt").stat().st_mtime_ns
    (progress,) = fit(TINY, finished)
    assert progress.epoch == 2
    assert (finished / "last.pt").stat().st_mtime_ns == before


def test_another_recipe_or_other_files_are_refused(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"lr is 0.006.*0.5"):
        train(dataclasses.replace(TINY, lr=0.5), finished)
    train(dataclasses.replace(TINY, workers=3), finished)  # the machine is no part of it
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").write_text("years of work")
    with pytest.raises(UsageError, match=r"thesis.*--out"):
        train(TINY, tmp_path / "thesis")
    assert [path.name for path in (tmp_path / "thesis").iterdir()] == ["thesis.tex"]


def folder_recipe(data: Path, **change: Any) -> Recipe:
    return dataclasses.replace(
        small(str(data)), image_size=32, epochs=1, batch_size=4, workers=0, **{"pipeline": "exact"} | change
    )


def test_one_folder_however_it_is_spelled_unless_its_images_changed(
    make_folder: MakeFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = make_folder({"cat": 6, "dog": 6})
    monkeypatch.chdir(data.parent)
    for name in ("images", "./images/", str(data)):
        train(folder_recipe(Path(name)), tmp_path / "run")
    (data / "cat" / "0.jpg").rename(data / "cat" / "new.jpg")
    with pytest.raises(UsageError, match=r"images is"):
        train(folder_recipe(data), tmp_path / "run")


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        ('{"data": 3}', RunError, r"recipe\.json is damaged"),
        ('{"momentum": 3}', UsageError, r"recipe\.json: .*momentum"),
    ],
)
def test_a_recipe_that_cannot_be_read(tmp_path: Path, text: str, kind: type[Exception], message: str) -> None:
    (tmp_path / "recipe.json").write_text(text)
    with pytest.raises(kind, match=message):
        train(TINY, tmp_path)


def test_damaged_and_missing_files_of_a_finished_run(whole: Path, finished: Path) -> None:
    with (finished / "metrics.jsonl").open("a") as file:  # cut off in writing: it is mended
        file.write('{"epoch": 3, "lo')
    assert len(train(TINY, finished).metrics) == 2
    assert (finished / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    (finished / "best.safetensors").unlink()
    with pytest.raises(RunError, match=r"best\.safetensors is gone"):
        train(TINY, finished)
    (finished / "last.pt").write_bytes(b"damaged")
    with pytest.raises(RunError, match=r"last\.pt"):
        train(TINY, finished)


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    with pytest.raises(DivergedError, match=r"epoch 1, .*learning rate .*--lr"):
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
        with pytest.raises(RunError, match="disk is full"):
            train(TINY, tmp_path / "run")
    assert position(tmp_path / "run") == (1, 0)
    train(TINY, tmp_path / "run")
    assert_same_end(tmp_path / "run", whole)


def test_the_learning_rate_is_that_of_the_batch_there_is(tmp_path: Path) -> None:
    recipe = dataclasses.replace(TINY, batch_size=100_000, epochs=1, warmup_epochs=0)
    first = next(progress for progress in fit(recipe, tmp_path) if progress.step == 1)
    assert first.lr == pytest.approx(recipe.lr * 1437 / recipe.lr_batch_size)


@pytest.mark.parametrize("augment", ["none", "affine", "crop_flip", "rand_augment"])
def test_a_folder_of_images_is_trained_on(make_folder: MakeFolder, tmp_path: Path, augment: str) -> None:
    data = make_folder({"cat": 10, "dog": 10})
    run = train(folder_recipe(data, augment=augment), tmp_path / "run")
    assert run.metrics[0]["images"] == 4
    assert json.loads((tmp_path / "run" / "classes.json").read_text()) == ["cat", "dog"]
    split = json.loads((tmp_path / "run" / "data.json").read_text())["split"]
    assert (len(split["train"]), len(split["val"])) == (16, 4)


def test_unreadable_images_are_skipped_named_and_counted(make_folder: MakeFolder, tmp_path: Path) -> None:
    data = make_folder({"train/cat": 8, "train/dog": 8, "val/cat": 3, "val/dog": 3})
    for name in ("train/cat/3.jpg", "val/dog/1.jpg"):
        (data / name).write_text("no image")
    updates = list(fit(folder_recipe(data), tmp_path / "run"))
    first, second = [warning for progress in updates for warning in progress.warnings]
    assert "train/cat/3.jpg" in first
    assert "val/dog/1.jpg" in second
    (metrics,) = log(tmp_path / "run")
    assert (metrics["images"], metrics["unreadable"]) == (5, 2)

    for path in (data / "train").glob("*/*.jpg"):
        path.write_text("")
    with pytest.raises(RunError, match=r"none of.*\.jpg"):
        train(folder_recipe(data), tmp_path / "none")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "convnext_tinny"}, "convnext_tinny"),
        ({"model": "convnext_atto", "image_size": 24}, "image size 24 .*convnext_atto .*--image-size 32"),
        ({"device": "quantum"}, "'quantum'"),
        ({"device": "meta"}, "'meta'"),
        ({"data": "nowhere"}, "'nowhere'"),
        ({"data": ""}, "no data.*digits"),
        ({"val_fraction": 0.001}, "val_fraction is 0.001"),
        ({"batch_size": 1}, "BatchNorm.*--batch-size"),
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


def test_default_folder() -> None:
    assert default_folder(recipe_for("digits")) == Path("runs/roadmap_micro-separate_downsampling-digits")
    assert default_folder(small("some/photos/")) == Path("runs/convnext_atto-photos")


@pytest.mark.slow
def test_digits_reach_what_the_recipe_promises(tmp_path: Path) -> None:
    assert train(digits(), tmp_path).metrics[-1]["top1"] >= 98.5
