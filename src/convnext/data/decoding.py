"""A picture not decoded yet: its size is known first, then it is decoded no larger than it is needed."""

from io import BytesIO
from pathlib import Path
from typing import Protocol

import numpy as np
import simplejpeg
from PIL import ExifTags, Image

from convnext.data.images import Pixels, read_picture, reading

# How a picture in each EXIF orientation is laid right: mirror left to right, then turn anticlockwise by quarters.
MIRROR_AND_TURN = {2: (True, 0), 3: (False, 2), 4: (True, 2), 5: (True, 1), 6: (False, 3), 7: (True, 3), 8: (False, 1)}


class Picture(Protocol):
    """A picture whose size is known before its pixels are."""

    @property
    def width(self) -> int: ...
    @property
    def height(self) -> int: ...

    def decode(self, shrink: int) -> tuple[Pixels, int]:
        """Pixels (H, W, 3), and how many times smaller a side they are: ``shrink`` (1, 2, 4 or 8), or 1."""
        ...


class DecodedPicture:
    """A picture that is in memory."""

    def __init__(self, pixels: Pixels) -> None:
        self.pixels = pixels
        self.height, self.width = pixels.shape[:2]

    def decode(self, shrink: int) -> tuple[Pixels, int]:  # noqa: ARG002
        """The pixels as they are."""
        return self.pixels, 1


class JpegPicture:
    """A JPEG that libjpeg-turbo decodes, at a half, a quarter or an eighth of its size where that is enough."""

    def __init__(self, path: Path, data: bytes, size: tuple[int, int], orientation: int) -> None:
        self.path, self.data, self.stored_size, self.orientation = path, data, size, orientation
        self.width, self.height = size if orientation < 5 else size[::-1]

    def decode(self, shrink: int) -> tuple[Pixels, int]:
        """Pixels (H, W, 3), upright, and how many times smaller a side they are.

        Raises:
            UnreadableImageError: the file is damaged.
        """
        width, height = (-(-side // shrink) for side in self.stored_size)
        try:
            pixels = simplejpeg.decode_jpeg(self.data, min_height=height, min_width=width, min_factor=1)
        except ValueError:  # Pillow decides whether the damage is one that it reads over
            return np.array(read_picture(self.path)), 1
        if self.orientation in MIRROR_AND_TURN:
            mirror, quarters = MIRROR_AND_TURN[self.orientation]
            pixels = np.rot90(pixels[:, ::-1] if mirror else pixels, quarters)
        return pixels, shrink


def open_picture(path: Path) -> Picture:
    """A picture in a file of any kind that Pillow reads.

    Raises:
        UnreadableImageError: the file is missing, truncated or no image.
    """
    with reading(path):
        data = path.read_bytes()
        with Image.open(BytesIO(data)) as header:
            if header.format in ("JPEG", "MPO") and header.mode in ("RGB", "L"):
                orientation = header.getexif().get(ExifTags.Base.Orientation, 1)
                return JpegPicture(path, data, header.size, orientation)
    return DecodedPicture(np.array(read_picture(path)))
