"""Each operation on arrays against Pillow's own, on a photograph."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps
from sklearn.datasets import load_sample_image

from convnext.data import pixel_operations as px

PHOTO = np.ascontiguousarray(load_sample_image("china.jpg")[100:324, 200:424])
PICTURE = Image.fromarray(PHOTO)
FILL = (124, 116, 104)
Operation = Callable[[Any], Any]


def with_amount(operation: Any, amount: float, picture: Any) -> Any:
    return operation(picture, amount)


def enhanced(enhancer: Any, factor: float) -> Operation:
    return lambda picture: enhancer(picture).enhance(factor)


def affine(*matrix: float, cubic: bool = True) -> Operation:
    resample = Image.Resampling.BICUBIC if cubic else Image.Resampling.BILINEAR
    return lambda picture: picture.transform(
        picture.size, Image.Transform.AFFINE, matrix, resample=resample, fillcolor=FILL
    )


def turned(degrees: float, resample: Image.Resampling) -> Operation:
    return lambda picture: picture.rotate(degrees, resample=resample, fillcolor=FILL)


COLOUR: list[tuple[str, Operation, Operation]] = [
    ("invert", px.invert, ImageOps.invert),
    ("auto_contrast", px.auto_contrast, ImageOps.autocontrast),
    ("equalize", px.equalize, ImageOps.equalize),
    *[
        (f"posterize {n}", lambda p, n=n: px.posterize(p, n), lambda p, n=n: ImageOps.posterize(p, n))
        for n in (1, 4, 8)
    ],
    *[
        (f"solarize {n}", lambda p, n=n: px.solarize(p, n), lambda p, n=n: ImageOps.solarize(p, n))
        for n in (0, 99, 256)
    ],
    *[
        (f"{name} {factor}", partial(with_amount, own, factor), enhanced(enhancer, factor))
        for name, own, enhancer in (
            ("brightness", px.brightness, ImageEnhance.Brightness),
            ("contrast", px.contrast, ImageEnhance.Contrast),
            ("color", px.color, ImageEnhance.Color),
            ("sharpness", px.sharpness, ImageEnhance.Sharpness),
        )
        for factor in (0.1, 0.7, 1.9)
    ],
]
GEOMETRIC: list[tuple[str, Operation, Operation]] = [
    ("shear_x", lambda p: px.shear_x(p, 0.27, FILL, cubic=True), affine(1, 0.27, 0, 0, 1, 0)),
    ("shear_y", lambda p: px.shear_y(p, -0.27, FILL, cubic=True), affine(1, 0, 0, -0.27, 1, 0)),
    ("shear_y 0.9", lambda p: px.shear_y(p, 0.9, FILL, cubic=False), affine(1, 0, 0, 0.9, 1, 0, cubic=False)),
    ("rotate", lambda p: px.rotate(p, 27, FILL, cubic=True), turned(27, Image.Resampling.BICUBIC)),
    ("rotate -130", lambda p: px.rotate(p, -130, FILL, cubic=False), turned(-130, Image.Resampling.BILINEAR)),
    ("translate_x", lambda p: px.translate_x(p, 60.3, FILL), affine(1, 0, 60.3, 0, 1, 0)),
    ("translate_x left", lambda p: px.translate_x(p, -60.3, FILL), affine(1, 0, -60.3, 0, 1, 0)),
    ("translate_y", lambda p: px.translate_y(p, 60.8, FILL), affine(1, 0, 0, 0, 1, 60.8)),
    ("translate_y by all", lambda p: px.translate_y(p, -224, FILL), affine(1, 0, 0, 0, 1, -224)),
    ("translate_x beyond", lambda p: px.translate_x(p, 300, FILL), affine(1, 0, 300, 0, 1, 0)),
]


def differences(own: Operation, pillows: Operation, pixels: np.ndarray[Any, Any] = PHOTO) -> np.ndarray[Any, Any]:
    result = own(pixels)
    assert result.dtype == np.uint8
    assert result.shape == pixels.shape
    return np.abs(result.astype(int) - np.asarray(pillows(Image.fromarray(pixels))))


@pytest.mark.parametrize(("own", "pillows"), [case[1:] for case in COLOUR], ids=[case[0] for case in COLOUR])
def test_colour_operations_are_pillows_within_a_level(own: Operation, pillows: Operation) -> None:
    assert differences(own, pillows).max() <= 1


@pytest.mark.parametrize(("own", "pillows"), [case[1:] for case in GEOMETRIC], ids=[case[0] for case in GEOMETRIC])
def test_geometric_operations_are_pillows_up_to_edges(own: Operation, pillows: Operation) -> None:
    """All but one value in a thousand within 12 levels of 255, the mean within 1.25."""
    error = differences(own, pillows)
    assert error.mean() < 1.25
    assert np.quantile(error, 0.999) <= 12


@pytest.mark.parametrize("value", [0, 77, 255])
def test_flat_images_stay_flat(value: int) -> None:
    """No contrast to stretch, one value in the histogram: nothing to divide by."""
    flat = np.full((16, 16, 3), value, np.uint8)
    assert np.array_equal(px.auto_contrast(flat), flat)
    assert np.array_equal(px.equalize(flat), flat)
    assert differences(px.equalize, ImageOps.equalize, flat).max() == 0


def test_equalize_on_few_pixels_is_pillows() -> None:
    """Fewer than 255 pixels leave a step of 0, a few more than that a remainder."""
    for side in (4, 15, 17, 20):
        patch = np.ascontiguousarray(PHOTO[:side, :side])
        assert differences(px.equalize, ImageOps.equalize, patch).max() == 0


def test_solarize_add_lightens_the_darker_half() -> None:
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, 2)
    lighter = px.solarize_add(ramp, 99)[..., 0].ravel()
    assert lighter[[0, 28, 29, 127, 128, 200]].tolist() == [99, 127, 128, 226, 128, 200]
    assert px.posterize(ramp, 0).max() == 0
