"""A small run, and the files that it is exported as, made once."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

import convnext
from convnext.data import MemoryImages, load_data
from convnext.training.build import build_model
from convnext.training.checkpoint import RunFolder
from convnext.training.recipe import Recipe
from tests.conftest import use_cache

RECIPE = Recipe(
    data="digits", model="roadmap_micro/separate_downsampling", image_size=32, stem_stride=4, augment="none"
)


def lively(model: nn.Module) -> nn.Module:
    """The network with weights by which its outputs depend on its inputs, unlike those that a training begins with."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if name.endswith("gamma"):
            nn.init.constant_(parameter, 0.5)
        elif parameter.ndim > 1:
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5, generator=generator)
    return model.eval()


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on digits."""
    folder = RunFolder(tmp_path_factory.mktemp("export") / "run")
    data = load_data("digits", val_fraction=RECIPE.val_fraction)
    folder.begin(RECIPE, data)
    folder.save_best(lively(build_model(RECIPE, 10)).state_dict())
    return folder.dir


@pytest.fixture(scope="session")
def onnx(run: Path) -> convnext.ExportResult:
    """The run as ONNX."""
    return convnext.export(run, "onnx")


@pytest.fixture(scope="session")
def program(run: Path) -> convnext.ExportResult:
    """The run as a program of torch."""
    return convnext.export(run, "torch")


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache for these tests alone: which files were exported here is kept in the user's."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        use_cache(folder, patch)
        yield folder


def prepared(run: Path, count: int) -> torch.Tensor:
    """Digits as the run sees them, (count, 3, 32, 32)."""
    digits = load_data("digits").val
    assert isinstance(digits, MemoryImages)
    preprocessing = convnext.load(run).preprocessing
    return torch.stack([preprocessing(digits.read(index)[0]) for index in range(count)])
