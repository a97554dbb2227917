"""The operations of RandAugment and TrivialAugment on uint8 arrays (H, W, 3), by OpenCV.

Each gives what Pillow's own gives within a level or two, several times faster. Only turn and shear differ by more, at
the edges of things: OpenCV's cubic has a = -0.75 where Pillow's has -1.
"""

import math
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from convnext.data.images import Pixels

Colour = tuple[int, int, int]

LEVELS = np.arange(256)
SMOOTH = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float32) / 13


def look_up(pixels: Pixels, table: NDArray[np.generic]) -> Pixels:
    """Replace each value by its entry in a table (256,), or (1, 256, 3) with a column a channel."""
    return cv2.LUT(pixels, table.clip(0, 255).astype(np.uint8))


def blend(pixels: Pixels, other: Pixels, factor: float) -> Pixels:
    """``other`` for factor 0, ``pixels`` for 1, and beyond; rounded down, as Pillow does."""
    return cv2.addWeighted(pixels, factor, other, 1 - factor, -0.5)


def grey(pixels: Pixels) -> Pixels:
    """Luminance (H, W)."""
    return cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)


def invert(pixels: Pixels) -> Pixels:
    """Swap light and dark."""
    return cv2.bitwise_not(pixels)


def brightness(pixels: Pixels, factor: float) -> Pixels:
    """Black for factor 0, unchanged for 1."""
    return look_up(pixels, np.floor(LEVELS * factor))


def contrast(pixels: Pixels, factor: float) -> Pixels:
    """The mean grey for factor 0, unchanged for 1."""
    middle = int(cv2.mean(grey(pixels))[0] + 0.5)
    return look_up(pixels, np.floor(middle + factor * (LEVELS - middle)))


def color(pixels: Pixels, factor: float) -> Pixels:
    """Greyscale for factor 0, unchanged for 1."""
    return blend(pixels, cv2.cvtColor(grey(pixels), cv2.COLOR_GRAY2RGB), factor)


def sharpness(pixels: Pixels, factor: float) -> Pixels:
    """Smoothed for factor 0, unchanged for 1; the outermost pixels stay."""
    sharpened = blend(pixels, cv2.filter2D(pixels, -1, SMOOTH), factor)
    for edge in (np.s_[0], np.s_[-1], np.s_[:, 0], np.s_[:, -1]):
        sharpened[edge] = pixels[edge]
    return sharpened


def posterize(pixels: Pixels, bits: int) -> Pixels:
    """Keep the highest bits of each value."""
    return look_up(pixels, LEVELS & (0xFF << (8 - bits)))


def solarize(pixels: Pixels, threshold: float) -> Pixels:
    """Invert what is at or above the threshold."""
    return look_up(pixels, np.where(threshold > LEVELS, LEVELS, 255 - LEVELS))


def solarize_add(pixels: Pixels, amount: int) -> Pixels:
    """Make the darker half of the values lighter."""
    return look_up(pixels, np.where(LEVELS < 128, LEVELS + amount, LEVELS))


def auto_contrast(pixels: Pixels) -> Pixels:
    """Stretch each channel to the full range."""
    tables = []
    for channel in cv2.split(pixels):
        low, high, _, _ = cv2.minMaxLoc(channel)
        tables.append(np.floor((LEVELS - low) * (255 / (high - low))) if high > low else LEVELS)
    return look_up(pixels, np.stack(tables, 1)[None])


def equalize(pixels: Pixels) -> Pixels:
    """Make each channel's histogram flat."""
    tables = []
    for channel in range(3):
        counts = cv2.calcHist([pixels], [channel], None, [256], [0, 256]).ravel().astype(np.int64)
        step = int(counts.sum() - counts[counts.nonzero()[0][-1]]) // 255
        below = counts.cumsum() - counts
        tables.append((step // 2 + below) // step if step else LEVELS)
    return look_up(pixels, np.stack(tables, 1)[None])


def warp(pixels: Pixels, matrix: tuple[float, ...], fill: Colour, cubic: bool) -> Pixels:
    """Take each pixel (x, y) from (a x + b y + c, d x + e y + f), counted from the image's corner as Pillow does."""
    a, b, c, d, e, f = matrix
    centred = np.array([[a, b, c + (a + b - 1) / 2], [d, e, f + (d + e - 1) / 2]])
    height, width = pixels.shape[:2]
    empty, everywhere = canvas(height, width, fill)
    kernel = cv2.INTER_CUBIC if cubic else cv2.INTER_LINEAR
    inverse, edge = cv2.WARP_INVERSE_MAP, cv2.BORDER_REPLICATE
    warped = cv2.warpAffine(pixels, centred, (width, height), flags=inverse | kernel, borderMode=edge)
    inside = cv2.warpAffine(everywhere, centred, (width, height), flags=inverse | cv2.INTER_NEAREST)
    return cv2.copyTo(warped, inside, empty.copy())  # a sharp border, as Pillow's is


@lru_cache(maxsize=8)
def canvas(height: int, width: int, fill: Colour) -> tuple[Pixels, Pixels]:
    """Nothing but fill (H, W, 3), and a mask (H, W) that is set everywhere; neither is to be written to."""
    return np.full((height, width, 3), fill, np.uint8), np.full((height, width), 255, np.uint8)


def shear_x(pixels: Pixels, factor: float, fill: Colour, cubic: bool) -> Pixels:
    """Shift each row by its distance from the top times the factor."""
    return warp(pixels, (1, factor, 0, 0, 1, 0), fill, cubic)


def shear_y(pixels: Pixels, factor: float, fill: Colour, cubic: bool) -> Pixels:
    """Shift each column by its distance from the left times the factor."""
    return warp(pixels, (1, 0, 0, factor, 1, 0), fill, cubic)


def rotate(pixels: Pixels, degrees: float, fill: Colour, cubic: bool) -> Pixels:
    """Turn anticlockwise about the centre."""
    x, y = pixels.shape[1] / 2, pixels.shape[0] / 2
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return warp(pixels, (cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y), fill, cubic)


def translate_x(pixels: Pixels, distance: float, fill: Colour) -> Pixels:
    """Shift to the left by a number of pixels; between pixels, with Pillow's own cubic, rounded down."""
    whole, nearest = math.floor(distance), math.floor(distance + 0.5)
    t = distance - whole
    if t > 0:
        taps = np.array([[-t + 2 * t**2 - t**3, 1 - 2 * t**2 + t**3, t + t**2 - t**3, -(t**2) + t**3]])
        anchor = (1 + nearest - whole, 0)
        pixels = cv2.filter2D(pixels, -1, taps, anchor=anchor, delta=-0.5, borderType=cv2.BORDER_REPLICATE)
    width = pixels.shape[1]
    left, right = min(max(-nearest, 0), width), min(max(nearest, 0), width)
    kept = pixels[:, right : width - left]
    return cv2.copyMakeBorder(kept, 0, 0, left, right, cv2.BORDER_CONSTANT, value=fill)


def translate_y(pixels: Pixels, distance: float, fill: Colour) -> Pixels:
    """Shift up by a number of pixels."""
    return cv2.transpose(translate_x(cv2.transpose(pixels), distance, fill))
