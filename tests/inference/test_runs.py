"""A run folder opened, and what is said of one that cannot be."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch

import convnext
from convnext.data.preprocessing import Preprocessing
from convnext.errors import RunError, UsageError
from convnext.inference.model import resolve
from tests.conftest import MakeFolder
from tests.runs import MakeRun


def test_a_run_opens_with_its_best_weights(make_run: MakeRun) -> None:
    folder = make_run("digits", eval_image_size=40)
    trained = resolve(folder)
    assert trained.classes == tuple("0123456789")
    assert trained.preprocessing == Preprocessing.whole(40)
    assert not trained.module.training
    best = safetensors.torch.load_file(folder / "best.safetensors")
    assert all(torch.equal(best[name], tensor) for name, tensor in trained.module.state_dict().items())


def test_preprocessing_goes_with_a_run(make_folder: MakeFolder, make_run: MakeRun) -> None:
    """Photographs are cropped, images in memory are not: as they were while the run was trained."""
    photos = make_run(make_folder({"cat": 4, "dog": 4}), name="photos", image_size=64)
    for folder, expected in ((photos, Preprocessing.published(64)), (make_run("digits"), Preprocessing.whole(32))):
        path = folder / "preprocessing.json"
        assert json.loads(path.read_text()) == expected.to_dict()
        path.unlink()
        assert resolve(folder).preprocessing == expected  # a run of before this was recorded
    changed = Preprocessing(48, 0.9, "border", "lanczos", (0.5,) * 3, (0.5,) * 3)
    (photos / "preprocessing.json").write_text(json.dumps(changed.to_dict()))
    assert resolve(photos).preprocessing == changed


def test_a_run_of_an_older_version_lacks_what_evaluation_does_not_need(make_run: MakeRun) -> None:
    folder = make_run("digits")
    recipe = json.loads((folder / "recipe.json").read_text())
    del recipe["cutmix"]
    (folder / "recipe.json").write_text(json.dumps(recipe))
    assert resolve(folder).recipe is not None


def change_recipe(folder: Path, **changes: object) -> None:
    path = folder / "recipe.json"
    recipe = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in recipe.items() if value != "gone"}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda run: (run / "best.safetensors").unlink(), r"has no finished epoch yet \(no best.safetensors\)"),
        (lambda run: (run / "best.safetensors").write_bytes(b"\0" * 50), r"best.safetensors, it is damaged"),
        (lambda run: (run / "recipe.json").write_text("{"), r"cannot read .*recipe.json"),
        (lambda run: change_recipe(run, warp=3), rf"\(warp\): it was written by convnext {convnext.__version__}"),
        (lambda run: change_recipe(run, model="gone"), "recipe.json lacks model"),
        (lambda run: change_recipe(run, image_size="large"), "recipe.json is damaged"),
        (lambda run: change_recipe(run, model="roadmap_micro/resnet"), "roadmap_micro/resnet with 10 classes"),
        (lambda run: (run / "classes.json").write_text('["a", "b"]'), "does not fit .* with 2 classes"),
        (lambda run: (run / "classes.json").write_text('{"a": 1}'), "classes.json is damaged"),
        (lambda run: (run / "classes.json").write_bytes(b"\xff"), "cannot read .*classes.json"),
        (lambda run: (run / "classes.json").unlink(), "cannot read .*classes.json"),
        (lambda run: (run / "preprocessing.json").write_text("["), "cannot read .*preprocessing.json"),
        (lambda run: (run / "preprocessing.json").write_text('{"image_size": 32}'), "preprocessing.json.*crop_pct"),
    ],
)
def test_what_is_wrong_with_a_run(make_run: MakeRun, damage: Callable[[Path], None], message: str) -> None:
    folder = make_run("digits")
    damage(folder)
    with pytest.raises(RunError, match=message):
        resolve(folder)


def test_what_is_no_run(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("digits", name="flowers")
    with pytest.raises(UsageError, match=r"flower: there is .*flowers"):
        resolve(tmp_path / "flower")
    with pytest.raises(UsageError, match=r"recipe.json is missing"):
        resolve(tmp_path)
    with pytest.raises(UsageError, match="no run folder"):
        resolve(tmp_path / "no" / "where")


@pytest.mark.parametrize("name", convnext.list_models())
def test_networks_have_no_tensors_beside_their_weights(name: str) -> None:
    """Which is what lets a run be opened without drawing initial weights."""
    with torch.device("meta"):
        model = convnext.create_model(name)
    tensors = [name for name, _ in (*model.named_parameters(), *model.named_buffers())]
    assert sorted(tensors) == sorted(model.state_dict())
