"""Preprocessing as data: timm's evaluation transform to the bit, and what is said of settings that are none."""

import math
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from timm.data import create_transform  # pyright: ignore[reportPrivateImportUsage]
from torchvision import models

from convnext.data.preprocessing import MOST_PIXELS, Preprocessing
from convnext.errors import UsageError

MODES = ("center", "squash", "border")
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")


def picture(width: int, height: int, mode: str = "RGB") -> Image.Image:
    """Noise, on which every pixel of a resize or a crop matters."""
    shape = (height, width, 3) if mode == "RGB" else (height, width)
    return Image.fromarray(np.random.default_rng(width * height).integers(0, 256, shape, np.uint8))


def timms(preprocessing: Preprocessing) -> Any:
    """timm's evaluation transform for the same settings."""
    settings = preprocessing.to_dict()
    shape = (preprocessing.channels, preprocessing.image_size, preprocessing.image_size)
    return create_transform(settings.pop("image_size") and shape, **settings)


def assert_timms(preprocessing: Preprocessing, image: Image.Image) -> None:
    ours, theirs = preprocessing(image), timms(preprocessing)(image)
    assert ours.dtype == theirs.dtype == torch.float32
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("size", [1, 7, 32, 160, 224, 288, 383, 384, 512])
@pytest.mark.parametrize(
    "shape", [(1, 1), (3, 200), (200, 3), (224, 224), (256, 256), (301, 479), (640, 427), (90, 77)]
)
def test_the_published_evaluation_is_timms(size: int, shape: tuple[int, int]) -> None:
    assert_timms(Preprocessing.published(size), picture(*shape))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("crop_pct", [0.875, 0.9, 0.95, 1.0, 1.15])
def test_every_mode_and_interpolation_is_timms(mode: Any, interpolation: Any, crop_pct: float) -> None:
    preprocessing = Preprocessing(48, crop_pct, mode, interpolation, (0.5, 0.4, 0.3), (0.5, 0.6, 0.7))
    for shape in ((70, 41), (41, 70), (48, 48), (20, 301), (55, 54)):
        assert_timms(preprocessing, picture(*shape))


@settings(max_examples=150, deadline=None)
@given(
    st.integers(1, 260),
    st.integers(1, 260),
    st.integers(1, 130),
    st.floats(0.3, 1.5),
    st.sampled_from(MODES),
    st.sampled_from(INTERPOLATIONS),
    st.booleans(),
)
def test_any_settings_are_timms(
    width: int, height: int, size: int, crop_pct: float, mode: Any, interpolation: Any, grey: bool
) -> None:
    channels = {"mean": (0.45,), "std": (0.2,)} if grey else {}
    preprocessing = Preprocessing(size, crop_pct, mode, interpolation, **channels)
    if size >= crop_pct and min(preprocessing.resized_to(width, height)) > 1:  # timm stops at a side of 0
        assert_timms(preprocessing, picture(width, height, "L" if grey else "RGB"))


def test_torchvisions_presets_by_their_resize_size() -> None:
    """Every network that torchvision publishes for ImageNet: resize sizes such as 230, 232, 236, 246 for 224."""
    seen, image = set(), picture(401, 299)
    for name in models.list_models(module=models):
        for weights in models.get_model_weights(name):  # pyright: ignore[reportGeneralTypeIssues]
            preset = weights.transforms()
            if type(preset).__name__ != "ImageClassification":
                continue
            key = (preset.crop_size[0], preset.resize_size[0], preset.interpolation.value, *preset.mean, *preset.std)
            if key in seen:
                continue
            seen.add(key)
            fields = {"interpolation": preset.interpolation.value, "mean": preset.mean, "std": preset.std}
            ours = Preprocessing.resized(key[0], key[1], **fields)
            assert ours.resize_size == key[1]
            assert torch.equal(ours(image), preset(image)), key
    assert {key[1] for key in seen if key[0] == 224} >= {224, 230, 232, 236, 246, 256}


@pytest.mark.parametrize("size", [1, 3, 176, 224, 299, 384, 600])
def test_a_resize_size_comes_back(size: int) -> None:
    for resize in range(size, 2 * size + 3):
        assert Preprocessing.resized(size, resize).resize_size == resize


def test_plain_data_there_and_back() -> None:
    for preprocessing in (
        Preprocessing.published(224),
        Preprocessing.published(384),
        Preprocessing.resized(224, 230, crop_mode="border", interpolation="lanczos", mean=(0.5,), std=(0.5,)),
    ):
        document = preprocessing.to_dict()
        assert list(document) == ["image_size", "crop_pct", "crop_mode", "interpolation", "mean", "std"]
        assert Preprocessing.from_dict(document) == preprocessing
        assert pickle.loads(pickle.dumps(preprocessing)) == preprocessing
    assert Preprocessing.published(383).crop_mode == "center"
    assert Preprocessing.published(384) == Preprocessing(384, 1, "squash")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_size": 0}, "image_size is 0"),
        ({"image_size": 224.0}, "image_size is 224.0"),
        ({"image_size": True}, "image_size is True"),
        ({"crop_pct": 0}, "crop_pct is 0"),
        ({"crop_pct": math.inf}, "crop_pct is inf"),
        ({"crop_pct": "0.9"}, "crop_pct is '0.9'"),
        ({"crop_mode": "centre"}, "crop_mode is 'centre'"),
        ({"interpolation": ["bicubic"]}, r"interpolation is \['bicubic'\]"),
        ({"mean": [0.5, 0.5]}, r"mean is \[0.5, 0.5\]"),
        ({"mean": [0.5, 0.5, math.nan]}, "mean is"),
        ({"std": [0.5, 0.5, 0]}, r"std is \[0.5, 0.5, 0\]"),
        ({"std": [0.5]}, r"std is \(0.5,\)"),
        ({"std": 0.5}, "std is 0.5"),
        ({"size": 3}, r"\(size\)"),
    ],
)
def test_wrong_values_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Preprocessing.from_dict(Preprocessing.published(224).to_dict() | change)


def test_what_is_no_preprocessing() -> None:
    for document, message in (
        ({"image_size": 224}, "crop_pct, crop_mode, interpolation, mean, std"),
        ([], "image_size"),
    ):
        with pytest.raises(UsageError, match=message):
            Preprocessing.from_dict(document)


def test_pictures_of_other_kinds_are_made_rgb() -> None:
    preprocessing = Preprocessing(8, 1.0)
    grey = Image.new("L", (20, 10), 124)
    assert torch.equal(preprocessing(grey), preprocessing(grey.convert("RGB")))
    deep = Image.fromarray(np.full((10, 20), 124 * 257, np.uint16))
    assert torch.equal(preprocessing(deep), preprocessing(grey))
    with pytest.raises(ValueError, match="floating point"):
        preprocessing(Image.new("F", (4, 4)))


def test_long_and_narrow_pictures_are_refused_before_they_fill_the_memory() -> None:
    preprocessing = Preprocessing.published(224)
    longest = MOST_PIXELS // 256**2
    assert preprocessing(Image.new("RGB", (200, 1))).shape == (3, 224, 224)
    with pytest.raises(ValueError, match=rf"{longest + 1} x 1"):
        preprocessing(Image.new("RGB", (longest + 1, 1)))
    squashed, bordered = Preprocessing(32, 1, "squash"), Preprocessing(32, 1, "border")
    assert squashed(Image.new("RGB", (longest + 1, 1))).shape == bordered(Image.new("RGB", (9999, 1))).shape


PICTURES = [(100, 60), (60, 100), (64, 64), (31, 200)]


@pytest.mark.parametrize("size", PICTURES)
@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
@pytest.mark.parametrize("crop_pct", [0.5, 0.875, 1.0, 1.6])
def test_what_is_seen_is_what_the_cut_leaves(size: tuple[int, int], crop_mode: Any, crop_pct: float) -> None:
    """A picture whose colour says where it is (red to the right, green downwards; blue is the picture itself): its
    place in the picture can be read off each pixel of the cut."""
    width, height = size
    pixels = np.full((height, width, 3), 255, np.uint8)
    pixels[..., 0] = np.round((np.arange(width) + 0.5) * 255 / width)
    pixels[..., 1] = np.round((np.arange(height) + 0.5) * 255 / height)[:, None]
    preprocessing = Preprocessing(64, crop_pct, crop_mode, "bilinear", mean=(0.5, 0.5, 0.0))
    cut = np.asarray(preprocessing.cut(Image.fromarray(pixels))).astype(float)
    left, top, right, bottom = preprocessing.seen(width, height)
    rows, columns = np.indices((64, 64)) + 0.5
    across, down = left + columns * (right - left) / 64, top + rows * (bottom - top) / 64
    inside = (across > 0) & (across < width) & (down > 0) & (down < height)
    assert np.array_equal(cut[..., 2] == 255, inside)  # and borders are what lies beyond the picture's edges
    margin = 1.5 * (right - left) / 64, 1.5 * (bottom - top) / 64  # where resizing meets the edge
    for place, colour, side, edge in ((across, 0, width, margin[0]), (down, 1, height, margin[1])):
        clear = inside & (place > edge + 1) & (place < side - edge - 1)
        assert clear.any()
        assert np.abs(cut[..., colour] * side / 255 - place)[clear].max() < 1 + side / 255


def test_what_is_seen_of_the_published_networks_pictures() -> None:
    assert Preprocessing.published(224).seen(256, 256) == (16, 16, 240, 240)
    assert Preprocessing.published(384).seen(100, 50) == (0, 0, 100, 50)
    assert Preprocessing(100, 1.0, "border").seen(200, 100) == (0, -50, 200, 150)
