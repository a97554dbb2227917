"""The fast pipeline: the exact pipeline's draws, on pixels decoded no larger than needed.

A seed gives the same crop, flip and operations as in ``augmentation``; the pixels agree within a few levels. The device
normalises.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from convnext.data import pixel_operations as px
from convnext.data.augmentation import training_transform
from convnext.data.decoding import DecodedPicture, Picture, open_picture
from convnext.data.images import FileImages, Images, Pixels
from convnext.data.preprocessing import Preprocessing, centred
from convnext.errors import UsageError

Vary = Callable[[Pixels], Pixels]
Box = tuple[int, int, int, int]  # top, left, height, width

FAST_AUGMENTS = ("none", "crop_flip", "rand_augment", "trivial_augment")
BINS = 31  # strengths of an operation in TrivialAugment


class FastEvaluation:
    """Resize and crop as ``Preprocessing.published`` does, to uint8 (3, image_size, image_size)."""

    def __init__(self, image_size: int) -> None:
        self.exact = Preprocessing.published(image_size)

    def __call__(self, picture: Picture) -> Tensor:
        size = self.exact.image_size
        width, height = self.exact.resized_to(picture.width, picture.height)
        top, left = centred(height, size), centred(width, size)
        pixels = resized_crop(picture, (0, 0, picture.height, picture.width), height, width)
        return as_image(pixels[top : top + size, left : left + size])


class FastTraining:
    """Crop, flip and augment as ``training_transform`` does, to uint8 (3, image_size, image_size)."""

    def __init__(self, image_size: int, augment: str) -> None:
        from timm.data.transforms import RandomResizedCropAndInterpolation

        self.image_size = image_size
        exact: Any = training_transform(image_size, augment)
        crop = next(part for part in exact.transforms if isinstance(part, RandomResizedCropAndInterpolation))
        self.draw_crop, self.scale, self.ratio = crop.get_params, crop.scale, crop.ratio
        self.vary: Vary | None = None
        if augment == "rand_augment":
            self.vary = fast_rand_augment(exact)
        elif augment == "trivial_augment":
            self.vary = trivial_augment

    def __call__(self, picture: Picture) -> Tensor:
        size_only = torch.empty((3, picture.height, picture.width), device="meta")
        box = self.draw_crop(size_only, self.scale, self.ratio)
        pixels = resized_crop(picture, box, self.image_size, self.image_size)
        if torch.rand(1) < 0.5:
            pixels = cv2.flip(pixels, 1)
        return as_image(self.vary(pixels) if self.vary else pixels)


def fast_transform(image_size: int, augment: str, *, training: bool) -> Callable[[Picture], Tensor]:
    """The pipeline from a picture to uint8 (3, image_size, image_size), not normalised.

    Raises:
        UsageError: the augmentation has no fast implementation.
    """
    if not training or augment == "none":
        return FastEvaluation(image_size)
    if augment not in FAST_AUGMENTS:
        raise UsageError(
            f"pipeline fast has no augmentation {augment}: use one of {', '.join(FAST_AUGMENTS)}, or pipeline exact"
        )
    return FastTraining(image_size, augment)


def open_image(images: Images, index: int) -> tuple[Picture | Tensor, int]:
    """One image of a split, not decoded yet, and its label; a dataset's float tensor as it is.

    Raises:
        UnreadableImageError: the file is missing or no image.
    """
    if isinstance(images, FileImages):
        return open_picture(images.paths[index]), images.labels[index]
    image, label = images.read(index)
    return image if isinstance(image, Tensor) else DecodedPicture(np.array(image)), label


def as_image(pixels: Pixels) -> Tensor:
    """Pixels (H, W, 3) as an image (3, H, W) of the same memory."""
    return torch.from_numpy(pixels).permute(2, 0, 1)


def resized_crop(picture: Picture, box: Box, height: int, width: int) -> Pixels:
    """Cut a box out and resize it, bicubic with antialiasing, decoding no more pixels than that takes.

    libjpeg-turbo shrinks by 2, 4 and 8 at a gain; its scales between, such as 5/8, take longer than the full size.
    """
    top, left, box_height, box_width = box
    spare = min(box_height / height, box_width / width) / 2  # decoded at twice the detail that is kept, or in full
    shrink = max(step for step in (1, 2, 4, 8) if step <= max(spare, 1))
    pixels, shrunk = picture.decode(shrink)
    if shrunk > 1:  # the box's edges lie between pixels, which Pillow can do, at half of torch's speed or less
        edges = (left / shrunk, top / shrunk, (left + box_width) / shrunk, (top + box_height) / shrunk)
        return np.array(Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC, edges))
    cut = torch.from_numpy(np.ascontiguousarray(pixels[top : top + box_height, left : left + box_width]))
    images = cut[None].permute(0, 3, 1, 2)  # (1, 3, H, W) in channels_last memory, where torch is fastest
    if images.shape[-2:] != (height, width):
        images = F.interpolate(images, (height, width), mode="bicubic", antialias=True)
    return images[0].permute(1, 2, 0).numpy()


def fast_rand_augment(exact: Any) -> Vary:
    """The RandAugment of timm's pipeline, which goes on drawing operations and strengths, with fast operations."""
    from timm.data.auto_augment import RandAugment

    policy = next(part for part in exact.transforms if isinstance(part, RandAugment))
    for operation in policy.ops:
        fill = operation.kwargs["fillcolor"]
        operation.aug_fn = RAND_OPERATIONS[operation.name]
        operation.kwargs = {"fill": fill} if operation.name in GEOMETRIC else {}
    return policy


def translate_x_by_part(pixels: Pixels, part: float, fill: px.Colour) -> Pixels:
    """Shift to the left by a part of the width."""
    return px.translate_x(pixels, part * pixels.shape[1], fill)


def translate_y_by_part(pixels: Pixels, part: float, fill: px.Colour) -> Pixels:
    """Shift up by a part of the height."""
    return px.translate_y(pixels, part * pixels.shape[0], fill)


GEOMETRIC: dict[str, Callable[..., Pixels]] = {  # by timm's names; all take a fill colour
    "Rotate": partial(px.rotate, cubic=True),
    "ShearX": partial(px.shear_x, cubic=True),
    "ShearY": partial(px.shear_y, cubic=True),
    "TranslateXRel": translate_x_by_part,
    "TranslateYRel": translate_y_by_part,
}
RAND_OPERATIONS: dict[str, Callable[..., Pixels]] = {
    **GEOMETRIC,
    "AutoContrast": px.auto_contrast,
    "Equalize": px.equalize,
    "Invert": px.invert,
    "PosterizeIncreasing": px.posterize,
    "SolarizeIncreasing": px.solarize,
    "SolarizeAdd": px.solarize_add,
    "ColorIncreasing": px.color,
    "ContrastIncreasing": px.contrast,
    "BrightnessIncreasing": px.brightness,
    "SharpnessIncreasing": px.sharpness,
}


def trivial_augment(pixels: Pixels) -> Pixels:
    """TrivialAugment (wide): one operation of 14 at one of 31 strengths, drawn in torchvision's order."""
    operation, strengths, signed = TRIVIAL_OPERATIONS[int(torch.randint(len(TRIVIAL_OPERATIONS), ()))]
    if strengths is None:
        return operation(pixels)
    strength = strengths[int(torch.randint(BINS, ()))]
    if signed and torch.rand(()) <= 0.5:
        strength = -strength
    return operation(pixels, strength)


def strengths(first: float, last: float) -> list[float]:
    """The strengths of an operation, evenly spaced."""
    return torch.linspace(first, last, BINS).tolist()


def identity(pixels: Pixels) -> Pixels:
    """The pixels as they are."""
    return pixels


def enhance(operation: Callable[[Pixels, float], Pixels], pixels: Pixels, change: float) -> Pixels:
    """An operation whose factor 1 changes nothing, by its distance from that."""
    return operation(pixels, 1 + change)


BLACK = (0, 0, 0)
TRIVIAL_OPERATIONS: tuple[tuple[Callable[..., Pixels], list[float] | None, bool], ...] = (
    (identity, None, False),
    (partial(px.shear_x, fill=BLACK, cubic=False), strengths(0, 0.99), True),
    (partial(px.shear_y, fill=BLACK, cubic=False), strengths(0, 0.99), True),
    (partial(px.translate_x, fill=BLACK), [-int(pixels) for pixels in strengths(0, 32)], True),
    (partial(px.translate_y, fill=BLACK), [-int(pixels) for pixels in strengths(0, 32)], True),
    (partial(px.rotate, fill=BLACK, cubic=False), strengths(0, 135), True),
    (partial(enhance, px.brightness), strengths(0, 0.99), True),
    (partial(enhance, px.color), strengths(0, 0.99), True),
    (partial(enhance, px.contrast), strengths(0, 0.99), True),
    (partial(enhance, px.sharpness), strengths(0, 0.99), True),
    (px.posterize, [round(bits) for bits in strengths(8, 2)], False),
    (px.solarize, [255 * part for part in strengths(1, 0)], False),
    (px.auto_contrast, None, False),
    (px.equalize, None, False),
)
