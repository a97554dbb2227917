"""The recipe that the data choose, and why."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import convnext
from convnext.errors import UsageError
from convnext.training import recipe_choice as choice
from convnext.training.recipe_choice import choose_recipe, recipe_for, typical_side
from convnext.training.recipes import digits, finetune, paper_1k


@pytest.fixture(autouse=True)
def _no_weights_at_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TORCH_HOME", "XDG_CACHE_HOME", "CONVNEXT_WEIGHTS"):
        monkeypatch.setenv(name, str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))


def folder(root: Path, size: tuple[int, int], count: int = 4) -> str:
    for label in ("a", "b"):
        (root / label).mkdir(parents=True)
        for i in range(count):
            pixels = np.random.default_rng(i).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / label / f"{i}.png")
    return str(root)


def test_embedded_data_and_imagenet() -> None:
    assert recipe_for("digits") == digits()
    assert recipe_for("imagenet:/data", model="convnext_small") == paper_1k("imagenet:/data", "convnext_small")
    assert choose_recipe("cifar10").name == "small"


@pytest.mark.parametrize(("size", "pixels", "stride"), [((28, 32), 32, 1), ((64, 80), 64, 2)])
def test_small_images_get_a_finer_stem(tmp_path: Path, size: tuple[int, int], pixels: int, stride: int) -> None:
    chosen = choose_recipe(folder(tmp_path / "data", size))
    assert (chosen.name, chosen.recipe.image_size, chosen.recipe.stem_stride) == ("small", pixels, stride)
    assert f"8 images in 2 classes, about {min(size)} px" in chosen.why


def test_photographs_without_and_with_weights_at_hand(tmp_path: Path) -> None:
    data = folder(tmp_path / "data", (160, 120))
    without = choose_recipe(data)
    assert without.name == "small"
    assert without.recipe.weights is None
    assert "no published weights at hand" in str(without)
    (tmp_path / "cache").mkdir()
    torch.save(
        {"model": convnext.create_model("convnext_tiny").state_dict()}, tmp_path / "cache/convnext_tiny_1k_224_ema.pth"
    )
    found = choose_recipe(data)
    assert found.name == "finetune"
    assert found.recipe.weights == "in1k"
    assert found.recipe.model == "convnext_tiny"
    assert "convnext_tiny (in1k) are at hand" in found.why
    assert choose_recipe(data, model="convnext_base").name == "small"  # nothing at hand for that one


@pytest.mark.parametrize(("device", "size", "epochs"), [("cpu", 96, 60), ("cuda", 128, 100)])
def test_photographs_without_a_gpu_are_taken_smaller(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str, size: int, epochs: int
) -> None:
    monkeypatch.setattr(choice, "choose_device", lambda _: torch.device(device))
    recipe = recipe_for(folder(tmp_path / "data", (160, 120)))
    assert (recipe.image_size, recipe.epochs) == (size, epochs)


def test_many_photographs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = folder(tmp_path / "data", (160, 120))
    monkeypatch.setattr(choice, "MANY", 8)
    assert choose_recipe(data).name == "paper_1k"


def test_a_named_recipe_is_not_second_guessed(tmp_path: Path) -> None:
    assert choose_recipe("nowhere", "finetune", "convnext_base").recipe == finetune("nowhere", "convnext_base")
    with pytest.raises(UsageError, match=r"'smal'.*small"):
        choose_recipe("digits", "smal")
    with pytest.raises(UsageError, match=str(tmp_path)):
        choose_recipe(str(tmp_path / "nothing"))


def test_files_that_cannot_be_read_are_passed_over(tmp_path: Path) -> None:
    data = Path(folder(tmp_path / "data", (50, 40)))
    (data / "a" / "0.png").write_bytes(pickle.dumps("no image"))
    assert typical_side(tuple(sorted(data.glob("*/*.png")))) == 40
    assert typical_side((data / "a" / "0.png",)) == 0
