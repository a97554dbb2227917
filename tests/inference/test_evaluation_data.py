"""Which images are evaluated: the run's own held-out ones, other data's, and by which labels."""

import json
import shutil
from pathlib import Path

import pytest

from convnext.data import FileImages, load_data
from convnext.data.held_out import HeldOut
from convnext.errors import RunError, UsageError
from convnext.inference.evaluation_data import images_for
from convnext.inference.model import resolve
from tests.conftest import MakeFolder
from tests.runs import MakeRun


def files(held_out: HeldOut) -> set[str]:
    assert isinstance(held_out.images, FileImages)
    return {f"{path.parent.name}/{path.name}" for path in held_out.images.paths}


def labels_by_name(held_out: HeldOut) -> dict[str, int]:
    assert isinstance(held_out.images, FileImages)
    return {path.parent.name: label for path, label in zip(held_out.images.paths, held_out.images.labels, strict=True)}


def held_out_in(data: Path, val_fraction: float) -> set[str]:
    val = load_data(str(data), val_fraction=val_fraction).val
    assert isinstance(val, FileImages)
    return {f"{path.parent.name}/{path.name}" for path in val.paths}


def test_the_images_held_out_in_training_are_meant_by_default(make_folder: MakeFolder, make_run: MakeRun) -> None:
    data = make_folder({"cat": 10, "dog": 7})
    trained = resolve(make_run(data, val_fraction=0.3))
    expected = held_out_in(data, 0.3)
    assert files(images_for(trained, None)) == expected
    assert files(images_for(trained, f"{data}/")) == expected  # never those that were trained on
    shutil.copytree(data, data.parent / "copy")
    assert files(images_for(trained, str(data.parent / "copy"))) == expected
    moved = data.rename(data.parent / "moved")
    found = images_for(trained, str(moved))
    assert (files(found), found.part) == (expected, "images held out in training")
    assert found.notes == (f"{moved} has the files of {data}, which the run was trained on",)
    with pytest.raises(RunError, match=rf"trained on the folder {data}"):
        images_for(trained, None)


def test_other_images_of_the_same_names_are_evaluated_whole(make_folder: MakeFolder, make_run: MakeRun) -> None:
    data = make_folder({"a/cat": 10, "a/dog": 7, "b/cat": 10, "b/dog": 7})
    found = images_for(resolve(make_run(data / "a")), str(data / "b"))
    assert (len(found.images), found.part) == (17, "all its images")


def test_a_folder_that_has_changed_keeps_its_division(make_folder: MakeFolder, make_run: MakeRun) -> None:
    data = make_folder({"cat": 20, "dog": 20})
    trained = resolve(make_run(data))
    then = held_out_in(data, 0.2)
    for i in range(10):
        shutil.copy(data / "cat" / "0.jpg", data / "cat" / f"new{i}.jpg")
    gone = sorted(then)[0]
    (data / gone).unlink()
    assert held_out_in(data, 0.2) - then  # divided anew, it would be evaluated on what it was trained on
    found = images_for(trained, None)
    assert files(found) == then - {gone}
    assert "has changed since the training" in found.notes[0]
    assert "7 of 8 images held out then that are still there" in found.notes[0]
    for name in then - {gone}:
        (data / name).unlink()
    with pytest.raises(RunError, match="none of the 8 images"):
        images_for(trained, None)


def test_a_division_below_train_is_kept_as_well(make_folder: MakeFolder, make_run: MakeRun) -> None:
    data = make_folder({"train/cat": 5, "train/dog": 10})
    trained = resolve(make_run(data))
    then = held_out_in(data, 0.2)
    shutil.copy(data / "train" / "cat" / "0.jpg", data / "train" / "cat" / "new.jpg")
    assert files(images_for(trained, None)) == then


def test_other_folders(make_folder: MakeFolder, make_run: MakeRun, tmp_path: Path) -> None:
    data = make_folder({"train/cat": 4, "train/dog": 4, "val/cat": 2, "val/dog": 3, "own/dog": 1, "own/cat": 5})
    trained = resolve(make_run(data))
    assert files(images_for(trained, None)) == {"cat/0.jpg", "cat/1.jpg", "dog/0.jpg", "dog/1.jpg", "dog/2.jpg"}
    whole = images_for(trained, str(data / "own"))
    assert (len(whole.images), whole.part) == (6, "all its images")
    shutil.copytree(data, tmp_path / "other")
    shutil.copy(data / "own" / "cat" / "4.jpg", tmp_path / "other" / "val" / "cat" / "new.jpg")
    other = images_for(trained, str(tmp_path / "other"))
    assert (len(other.images), other.part) == (6, "images of val/")


def test_labels_are_matched_by_name(make_folder: MakeFolder, make_run: MakeRun) -> None:
    data = make_folder({"train/cat": 4, "train/dog": 4, "val/cat": 2, "val/dog": 2})
    run = make_run(data)
    (run / "classes.json").write_text(json.dumps(["dog", "cat"]))
    assert labels_by_name(images_for(resolve(run), None)) == {"dog": 0, "cat": 1}


def test_some_of_the_classes_are_enough(make_folder: MakeFolder, make_run: MakeRun) -> None:
    data = make_folder({"a/x": 3, "a/y": 3, "a/z": 3, "b/z": 2})
    found = images_for(resolve(make_run(data / "a")), str(data / "b"))
    assert labels_by_name(found) == {"z": 2}
    assert found.classes == ("x", "y", "z")
    assert found.notes == (f"{data / 'b'} has images of 1 of the 3 classes; none of x, y",)


def test_unknown_classes_are_listed(make_folder: MakeFolder, make_run: MakeRun) -> None:
    data = make_folder({"a/cat": 3, "a/dog": 3} | {f"b/bird{i:02}": 1 for i in range(12)} | {"b/cat": 1})
    trained = resolve(make_run(data / "a"))
    with pytest.raises(UsageError) as raised:
        images_for(trained, str(data / "b"))
    message = str(raised.value)
    assert "has 12 classes that" in message
    assert "does not know: bird00, bird01" in message
    assert "bird09 and 2 more; of its own 2 classes, the data lacks dog" in message


def test_data_in_memory(make_run: MakeRun) -> None:
    trained = resolve(make_run("digits"))
    assert len(images_for(trained, None).images) == len(images_for(trained, "digits").images) == 360


def test_digits_that_a_run_held_out_by_another_part(make_run: MakeRun) -> None:
    assert len(images_for(resolve(make_run("digits", val_fraction=0.5)), "digits").images) == 899
