"""`train` with a model, datasets and a loss passed as objects, and with the name of some data."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

import convnext
from convnext.errors import UsageError
from convnext.training.build import Objects
from convnext.training.fit import fit
from convnext.training.recipe import Recipe
from convnext.training.run import train
from tests.conftest import MakeFolder

RECIPE = Recipe(image_size=16, epochs=2, batch_size=4, lr=1e-2, lr_batch_size=4, warmup_epochs=0, workers=0)
RECIPE = dataclasses.replace(RECIPE, mixup=0, cutmix=0, checkpoint_minutes=0, weights="in22k", model="convnext_atto")


class Net(nn.Module):
    """A model of the user's own."""

    def __init__(self, classes: int = 2, channels: int = 3, width: int = 8) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(channels, width, 3, padding=1), nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(x).relu().mean((2, 3)))


def net(**options: int) -> Net:
    torch.manual_seed(0)
    return Net(**options)


class Colours(Dataset[Any]):
    """Dark and light images, in one of the kinds that a dataset may return."""

    def __init__(self, kind: str, count: int = 12) -> None:
        self.kind, self.count = kind, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Any, int]:
        label = index % 2
        pixels = np.random.default_rng(index).integers(0, 100, (20, 20, 3)).astype(np.uint8) + 150 * label
        kinds = {
            "pil": lambda: Image.fromarray(pixels),
            "array": lambda: pixels,
            "grey": lambda: pixels[..., 0],
            "uint8": lambda: torch.from_numpy(pixels).permute(2, 0, 1),
            "float": lambda: torch.from_numpy(pixels).permute(2, 0, 1)[:, :16, :16] / 255,
        }
        return kinds[self.kind](), label


def smooth_loss(logits: Tensor, targets: Tensor) -> Tensor:
    return F.mse_loss(logits.softmax(1), F.one_hot(targets, logits.shape[1]).float())


def tensors(folder: Path) -> dict[str, Tensor]:
    return torch.load(folder / "last.pt", weights_only=True)["learner"]["model"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a user's model on a user's datasets with a user's loss."""
    folder = tmp_path_factory.mktemp("objects") / "run"
    options: dict[str, Any] = {"train_data": Colours("pil"), "val_data": Colours("pil", 4), "loss": smooth_loss}
    return train(RECIPE, folder, model=net(), **options).dir


def test_a_run_of_objects_names_them_and_resumes_with_them_alone(whole: Path, tmp_path: Path) -> None:
    recipe = json.loads((whole / "recipe.json").read_text())
    assert recipe["model"] == f"object:{__name__}.Net"
    assert recipe["data"] == f"object:{__name__}.Colours"
    assert recipe["loss"] == f"object:{__name__}.smooth_loss"
    assert recipe["weights"] is None
    assert json.loads((whole / "classes.json").read_text()) == ["0", "1"]

    model, cut = net(), tmp_path / "cut"
    objects = Objects(model, Colours("pil"), Colours("pil", 4), smooth_loss)
    updates = fit(objects.named_in(RECIPE), cut, objects=objects)
    next(progress for progress in updates if (progress.epoch, progress.step) == (1, 1))
    updates.close()
    options: dict[str, Any] = {"train_data": Colours("pil"), "val_data": Colours("pil", 4)}
    for change, named in (
        ({}, "data"),
        ({"model": net(), **options}, "loss"),
        ({"model": net(width=9), "loss": smooth_loss, **options}, "module"),
        ({"model": net(), "loss": smooth_loss, **options, "train_data": Colours("pil", 16)}, "images"),
    ):
        with pytest.raises(UsageError, match=rf"another recipe \({named} is"):
            train(RECIPE, cut, **change)
    resumed = net()
    train(RECIPE, cut, model=resumed, loss=smooth_loss, **options)
    assert all(torch.equal(value, tensors(whole)[name]) for name, value in tensors(cut).items())
    assert all(torch.equal(value, tensors(whole)[name]) for name, value in resumed.state_dict().items())


@pytest.mark.parametrize("use", [convnext.load, lambda run: train(Recipe.from_dict(read(run)), run)])
def test_a_run_of_a_model_object_says_that_it_needs_it(whole: Path, use: Any) -> None:
    with pytest.raises(UsageError, match=r"Net.*model=|Colours.*pass"):
        use(whole)


def read(run: Path) -> dict[str, Any]:
    return json.loads((run / "recipe.json").read_text())


@pytest.mark.parametrize("pipeline", ["exact", "fast"])
@pytest.mark.parametrize("kind", ["pil", "array", "grey", "uint8", "float"])
def test_a_dataset_may_return_any_kind_of_image(kind: str, pipeline: str, tmp_path: Path) -> None:
    recipe = dataclasses.replace(RECIPE, epochs=1, augment="crop_flip", pipeline=pipeline)
    run = train(recipe, tmp_path / "run", model=net(), train_data=Colours(kind), val_data=Colours(kind, 4))
    assert run.metrics[0]["images"] == 4


def test_float_tensors_are_used_as_they_are(tmp_path: Path) -> None:
    """Also with other channels than three, for a model that takes them."""
    data = TensorDataset(torch.randn(8, 1, 12, 12), torch.arange(8) % 3)
    seen: list[Tensor] = []
    model = net(classes=3, channels=1)
    model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
    recipe = dataclasses.replace(RECIPE, epochs=1, batch_size=8, random_erasing=0)
    train(recipe, tmp_path / "run", model=model, train_data=data, val_data=data)
    given = sorted(image.sum().item() for image in data.tensors[0])
    assert sorted(image.sum().item() for image in seen[1]) == pytest.approx(given, abs=1e-5)


def test_a_named_model_on_a_dataset_with_classes(tmp_path: Path) -> None:
    data, val = Colours("pil"), Colours("pil", 4)
    recipe = dataclasses.replace(RECIPE, model="timm/test_vit", weights=None, image_size=32, epochs=1)
    with pytest.raises(UsageError, match="`classes`"):
        train(recipe, tmp_path / "run", train_data=data, val_data=val)
    data.classes = ["dark", "light"]  # pyright: ignore[reportAttributeAccessIssue]
    run = train(recipe, tmp_path / "run", train_data=data, val_data=val)
    assert convnext.load(run.dir).classes == ("dark", "light")


class Strings(Colours):
    """Items that are no images."""

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return "a.jpg", index % 2


@pytest.mark.parametrize(
    ("objects", "named"),
    [
        ({"train_data": Colours("pil")}, "val_data"),
        ({"train_data": iter(()), "val_data": Colours("pil")}, "map-style"),
        ({"train_data": Colours("pil", 0), "val_data": Colours("pil")}, "train_data has 0"),
        ({"train_data": Strings("pil"), "val_data": Colours("pil")}, "item 0 of Strings"),
        ({"train_data": Colours("pil"), "val_data": Colours("pil"), "model": nn.Conv2d(3, 4, 1)}, "logits"),
        ({}, "2 logits.*10 classes"),
    ],
)
def test_objects_that_do_not_fit_are_named(objects: dict[str, Any], named: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {"model": net()} | objects
    with pytest.raises(UsageError, match=named):
        train(RECIPE, tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def test_the_name_of_some_data_chooses_the_recipe(
    make_folder: MakeFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = make_folder({"cat": 6, "dog": 6})
    monkeypatch.chdir(data.parent)
    chosen = convnext.recipe_for(str(data))
    short = dataclasses.replace(chosen, epochs=1, workers=0, model="roadmap_micro/kernel_7", batch_size=4)
    monkeypatch.setattr("convnext.training.recipe_choice.small", lambda *_: short)
    run = convnext.train(data, tmp_path / "run")
    assert (run.recipe.data, run.recipe.image_size) == (str(data), chosen.image_size)
    assert capsys.readouterr().err.startswith("Recipe small: ")
