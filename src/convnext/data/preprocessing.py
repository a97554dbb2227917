"""A model's preprocessing, as data that goes with it: timm's evaluation transform, without importing timm."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from convnext.data.images import to_rgb
from convnext.errors import UsageError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's
EVAL_CROP = 0.875  # evaluation resizes the shorter side to size / 0.875, then crops the centre
SQUASH_FROM = 384  # from this size on, evaluation resizes to the square without a crop
MOST_PIXELS = 100_000_000  # of a resized picture: a long and narrow one, by its shorter side, grows beyond any memory

CropMode = Literal["center", "squash", "border"]
Interpolation = Literal["nearest", "bilinear", "bicubic", "box", "hamming", "lanczos"]


@dataclass(frozen=True)
class Preprocessing:
    """From a picture to the tensor that a network was trained to see, pixel for pixel as timm's evaluation does it.

    A picture is resized with antialiasing, cut to the centre, scaled to [0, 1] and normalised.

    Attributes:
        image_size: pixels a side of what comes out.
        crop_pct: the part of the resized side that the crop keeps: what is resized to is the whole number of pixels in
            image_size / crop_pct. Above 1, the rest is black.
        crop_mode: what is resized to that: ``center``, the shorter side; ``squash``, both sides, whatever their ratio;
            ``border``, the longer side, with borders in the mean colour.
        interpolation: Pillow's, by timm's name.
        mean: subtracted, a channel each, of values in [0, 1]; one number for a network that takes grey images.
        std: divided by, a channel each.

    Raises:
        UsageError: a value is of another kind or out of range; the message names the field.
    """

    image_size: int
    crop_pct: float
    crop_mode: CropMode = "center"
    interpolation: Interpolation = "bicubic"
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD

    def __post_init__(self) -> None:
        check(self, "image_size", is_number(self.image_size, int) and self.image_size >= 1, "a whole number from 1 on")
        check(self, "crop_pct", is_number(self.crop_pct) and 0.01 <= self.crop_pct <= 100, "a number from 0.01 to 100")
        object.__setattr__(self, "crop_pct", float(self.crop_pct))
        for name, known in (("crop_mode", get_args(CropMode)), ("interpolation", get_args(Interpolation))):
            check(self, name, getattr(self, name) in known, f"one of {', '.join(known)}")
        for name, needs in (("mean", "three finite numbers, or one"), ("std", "three numbers above 0, or one")):
            values = getattr(self, name)
            numbers = isinstance(values, tuple | list) and len(values) in (1, 3) and all(map(is_number, values))
            check(self, name, numbers and (name == "mean" or min(values) > 0), needs)
            object.__setattr__(self, name, tuple(map(float, values)))
        check(self, "std", len(self.std) == len(self.mean), f"as many numbers as mean ({len(self.mean)})")

    @classmethod
    def published(cls, image_size: int) -> "Preprocessing":
        """As the published ConvNeXts are evaluated, and what this package trains: cropped, from 384 on whole."""
        return cls.whole(image_size) if image_size >= SQUASH_FROM else cls(image_size, EVAL_CROP)

    @classmethod
    def whole(cls, image_size: int) -> "Preprocessing":
        """Squashed to the square, nothing cut off: as small images held in memory are, whatever the size."""
        return cls(image_size, 1.0, "squash")

    @classmethod
    def resized(cls, image_size: int, resize_size: int, **fields: Any) -> "Preprocessing":
        """With the ``crop_pct`` that resizes to ``resize_size``: for settings that name both, as torchvision's do.

        Args:
            image_size: pixels a side of the crop.
            resize_size: pixels of the side before it.
            fields: the others.
        """
        crop_pct = image_size / resize_size
        while math.floor(image_size / crop_pct) < resize_size:  # 224 / (224 / 230) is a little less than 230
            crop_pct = math.nextafter(crop_pct, 0)
        return cls(image_size, crop_pct, **fields)

    @property
    def resize_size(self) -> int:
        """Pixels of the resized side."""
        return max(1, math.floor(self.image_size / self.crop_pct))

    @property
    def channels(self) -> int:
        """Channels of what comes out: 3, or 1 for grey."""
        return len(self.mean)

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain data: the content of ``preprocessing.json``."""
        return dataclasses.asdict(self) | {"mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_dict(cls, values: Any) -> "Preprocessing":
        """The inverse of :meth:`to_dict`.

        Raises:
            UsageError: fields are missing or unknown, or a value is out of range.
        """
        names = [field.name for field in dataclasses.fields(cls)]
        if not isinstance(values, dict):
            raise UsageError(f"preprocessing is {values!r}, needs an object with {', '.join(names)}")
        if unknown := sorted(set(values) - set(names)):
            raise UsageError(f"preprocessing has unknown fields ({', '.join(unknown)}): it has {', '.join(names)}")
        if missing := [name for name in names if name not in values]:
            raise UsageError(f"preprocessing lacks {', '.join(missing)}")
        return cls(**values)

    def __call__(self, picture: Image.Image) -> Tensor:
        """A picture of any kind as a float32 tensor (channels, image_size, image_size).

        Raises:
            ValueError: it is too long and narrow to be resized, or its values have no fixed range.
        """
        return self.normalize(torch.from_numpy(np.array(self.cut(picture))))

    def cut(self, picture: Image.Image) -> Image.Image:
        """The picture (image_size, image_size) that is left, in RGB or grey (mode L)."""
        picture = to_rgb(picture)
        if self.channels == 1:
            picture = picture.convert("L")
        width, height = self.resized_to(*picture.size)
        if width * height > MOST_PIXELS:
            raise ValueError(
                f"{picture.width} x {picture.height} pixels are too long and narrow: resized by the shorter side, they "
                f"would be {width} x {height}"
            )
        picture = picture.resize((width, height), Image.Resampling[self.interpolation.upper()])
        left, top = (centred(side, self.image_size) for side in picture.size)
        if min(picture.size) >= self.image_size:
            return picture.crop((left, top, left + self.image_size, top + self.image_size))
        square, borders = (self.image_size, self.image_size), self.mean if self.crop_mode == "border" else (0, 0, 0)
        levels = [round(255 * value) for value in borders[: self.channels]]
        canvas = Image.merge(picture.mode, [Image.new("L", square, level) for level in levels])
        canvas.paste(picture, (-left, -top))
        return canvas

    def seen(self, width: int, height: int) -> tuple[float, float, float, float]:
        """The part of a picture of ``width`` x ``height`` that the network sees: what :meth:`cut` leaves of it.

        Returns:
            Left, top, right and bottom, in the picture's own pixels; beyond its edges where the cut has borders.
        """
        resized = self.resized_to(width, height)
        (left, right), (top, bottom) = (
            (begin * side / length, (begin + self.image_size) * side / length)
            for side, length in zip((width, height), resized, strict=True)
            for begin in (centred(length, self.image_size),)
        )
        return left, top, right, bottom

    def resized_to(self, width: int, height: int) -> tuple[int, int]:
        """Width and height of a picture after it is resized, before the crop."""
        size = self.resize_size
        if self.crop_mode == "squash":
            return size, size
        if self.crop_mode == "border":
            ratio = max(width / size, height / size)
            return max(1, round(width / ratio)), max(1, round(height / ratio))
        shorter, longer = sorted((width, height))
        long = int(size * longer / shorter)
        return (size, long) if width <= height else (long, size)

    def normalize(self, pixels: Tensor) -> Tensor:
        """Pixels (H, W, C) or grey (H, W), uint8, as a normalised image (C, H, W)."""
        image = pixels.view(*pixels.shape[:2], -1).permute(2, 0, 1).contiguous().float().div_(255)
        mean, std = (torch.tensor(values, device=image.device).view(-1, 1, 1) for values in (self.mean, self.std))
        return image.sub_(mean).div_(std)


def centred(side: int, crop: int) -> int:
    """Where a crop of a side begins; below 0 where the crop is the longer one."""
    return round((side - crop) / 2) if side >= crop else -((crop - side) // 2)


def is_number(value: Any, kinds: Any = int | float) -> bool:
    """True if a value is a finite number; bools are not."""
    return isinstance(value, kinds) and not isinstance(value, bool) and math.isfinite(value)


def check(preprocessing: Preprocessing, name: str, holds: bool, needs: str) -> None:
    """Refuse a field's value."""
    if not holds:
        raise UsageError(f"preprocessing: {name} is {getattr(preprocessing, name)!r}, needs {needs}")
