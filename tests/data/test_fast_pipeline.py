"""The fast pipeline against the exact one: the same draws, pixels within a few levels, statistics within the noise."""

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_image
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

from convnext.data.augmentation import MEAN, STD, training_transform
from convnext.data.decoding import open_picture
from convnext.data.fast_pipeline import fast_transform, trivial_augment
from convnext.data.images import read_picture
from convnext.data.preprocessing import Preprocessing
from convnext.errors import UsageError
from convnext.randomness import seed_everything

AUGMENTS = ["crop_flip", "rand_augment", "trivial_augment"]
Draw = Callable[[int], Tensor]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """As in the processes that read images; more threads only wait for each other on images as small."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A photograph that is to 112 pixels what ImageNet's are to 224."""
    path = tmp_path_factory.mktemp("photo") / "china.jpg"
    Image.fromarray(load_sample_image("china.jpg")).resize((250, 188)).save(path, quality=90)
    return path


def levels(image: Tensor) -> Tensor:
    """A normalised image (3, H, W) in levels from 0 to 255."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    return ((image * std + mean) * 255).round()


def draws(path: Path, augment: str, size: int = 112) -> tuple[Draw, Draw]:
    """The exact and the fast pipeline's variation of a file by its seed."""
    exact, fast = training_transform(size, augment), fast_transform(size, augment, training=True)

    def exactly(seed: int) -> Tensor:
        seed_everything(seed)
        return levels(exact(read_picture(path)))

    def fastly(seed: int) -> Tensor:
        seed_everything(seed)
        image = fast(open_picture(path))
        assert image.dtype == torch.uint8
        assert image.shape == (3, size, size)
        return image.float()

    return exactly, fastly


@pytest.mark.parametrize("augment", AUGMENTS)
def test_a_seed_draws_the_same_in_both(photo: Path, augment: str) -> None:
    """Another crop, side or operation would be tens of levels off."""
    exactly, fastly = draws(photo, augment)
    errors = torch.stack([(exactly(seed) - fastly(seed)).abs().mean() for seed in range(60)])
    assert errors.mean() < 0.5
    assert errors.max() < 3


@pytest.mark.parametrize("augment", AUGMENTS)
def test_statistics_agree_within_sampling_noise(photo: Path, augment: str) -> None:
    """Over 300 independent draws each: every statistic's mean within 4 standard errors, and its mean rank.

    The draws being the same seed for seed, their difference says more: it shifts no statistic by more than a tenth of
    its standard deviation.
    """
    count = 300
    exactly, fastly = draws(photo, augment)
    exact = torch.stack([statistics(exactly(seed)) for seed in range(count)])
    independent = torch.stack([statistics(fastly(seed)) for seed in range(count, 2 * count)])
    paired = torch.stack([statistics(fastly(seed)) for seed in range(count)])
    noise = ((exact.var(0) + independent.var(0)) / count).sqrt()
    assert ((exact.mean(0) - independent.mean(0)).abs() < 4 * noise).all()
    pooled = torch.cat([exact, independent]).argsort(0).argsort(0)[:count].float().mean(0)  # ranks: Wilcoxon's test
    assert ((pooled - (2 * count - 1) / 2).abs() < 4 * ((2 * count + 1) / 12) ** 0.5).all()
    assert ((exact - paired).mean(0).abs() < 0.1 * exact.std(0)).all()


def statistics(image: Tensor) -> Tensor:
    """What networks' first layers look at: (20,) colour, contrast, detail, histogram and position statistics."""
    grey = image.mean(0)
    across, down = grey.diff(dim=1), grey.diff(dim=0)
    quadrants = torch.stack([grey[rows][:, columns].mean() for rows in HALVES for columns in HALVES])
    histogram = torch.histc(grey, 6, 0, 255) / grey.numel()
    spread = image.amax(0) - image.amin(0)  # 0 for grey
    detail = torch.stack([across.abs().mean(), down.abs().mean(), across.std(), down.std()])
    return torch.cat([image.mean((1, 2)), grey.std()[None], spread.mean()[None], detail, quadrants, histogram])


HALVES = (slice(0, 56), slice(56, 112))


def test_rand_augment_draws_each_operation_alike_and_as_often() -> None:
    """Operations and strengths of both pipelines, seed by seed, and their share: half of two draws among 15."""
    count = 1500
    exact: Any = training_transform(16, "rand_augment")
    fast: Any = fast_transform(16, "rand_augment", training=True)
    recorded = []
    for policy in (next(part for part in exact.transforms if hasattr(part, "ops")), fast.vary):
        calls: list[tuple[Any, ...]] = []
        for operation in policy.ops:
            operation.aug_fn, operation.kwargs = Recorder(operation.name, calls), {}
        for seed in range(count):
            seed_everything(seed)
            policy("picture")
        recorded.append(calls)
    assert recorded[0] == recorded[1]
    times = Counter(name for name, *_ in recorded[1])
    assert len(times) == 15
    assert all(abs(number - count / 15) < 4 * (count / 15) ** 0.5 for number in times.values())
    degrees = np.array([strengths[0] for name, *strengths in recorded[1] if name == "Rotate"])
    assert abs((degrees > 0).mean() - 0.5) < 4 * 0.5 / len(degrees) ** 0.5
    assert abs(np.abs(degrees).mean() - 27) < 4 * 1.5 / len(degrees) ** 0.5  # magnitude 9 +- 0.5 of 10, of 30 degrees


class Recorder:
    """An operation that notes what it is called with."""

    def __init__(self, name: str, calls: list[tuple[Any, ...]]) -> None:
        self.name, self.calls = name, calls

    def __call__(self, picture: Any, *strengths: float) -> Any:
        self.calls.append((self.name, *strengths))
        return picture


def test_trivial_augment_is_torchvisions_draw_for_draw() -> None:
    """Every operation at its strength and sign; the share of those without any is one of 14."""
    pixels = np.ascontiguousarray(load_sample_image("china.jpg")[100:228, 200:328])
    picture, torchvisions = Image.fromarray(pixels), v2.TrivialAugmentWide(interpolation=InterpolationMode.BILINEAR)
    unchanged = 0
    for seed in range(420):
        torch.manual_seed(seed)
        expected = np.asarray(torchvisions(picture)).astype(int)
        torch.manual_seed(seed)
        varied = trivial_augment(pixels)
        assert np.abs(varied - expected).mean() < 2
        unchanged += np.array_equal(varied, pixels)
    assert unchanged > 420 / 14 - 4 * (420 / 14) ** 0.5


@pytest.mark.parametrize("size", [224, 384])
@pytest.mark.parametrize("shape", [(500, 375), (300, 431), (224, 900)])
def test_evaluation_is_the_exact_one(tmp_path: Path, size: int, shape: tuple[int, int]) -> None:
    path = tmp_path / "a.jpg"
    Image.fromarray(load_sample_image("china.jpg")).resize(shape).save(path, quality=90)
    error = (levels(Preprocessing.published(size)(read_picture(path))) - evaluated(path, size)).abs()
    assert error.mean() < 0.2
    assert error.max() <= 8


@pytest.mark.parametrize("shape", [(1500, 1125), (3000, 2250)])
def test_large_photographs_are_decoded_smaller(tmp_path: Path, shape: tuple[int, int]) -> None:
    """At a half and a quarter of their size, for a resize to 256: the same picture but for a level or so."""
    path = tmp_path / "a.jpg"
    Image.fromarray(load_sample_image("china.jpg")).resize(shape, Image.Resampling.BICUBIC).save(path, quality=90)
    error = (levels(Preprocessing.published(224)(read_picture(path))) - evaluated(path, 224)).abs()
    assert 0 < error.mean() < 1
    exactly, fastly = draws(path, "crop_flip", size=160)
    assert max((exactly(seed) - fastly(seed)).abs().mean() for seed in range(3)) < 4


def evaluated(path: Path, size: int) -> Tensor:
    return fast_transform(size, "none", training=False)(open_picture(path)).float()


@pytest.mark.parametrize("augment", AUGMENTS)
def test_small_pictures_of_other_kinds(tmp_path: Path, augment: str) -> None:
    """Smaller than the translations are far, and not decoded by libjpeg-turbo."""
    path = tmp_path / "a.png"
    Image.fromarray(load_sample_image("china.jpg")[100:120, 200:230]).save(path)
    exactly, fastly = draws(path, augment, size=24)
    errors = torch.stack([(exactly(seed) - fastly(seed)).abs().mean() for seed in range(60)])
    assert errors.mean() < 2  # a border of a pixel is a twentieth here


def test_no_fast_form() -> None:
    with pytest.raises(UsageError, match="affine"):
        fast_transform(32, "affine", training=True)
