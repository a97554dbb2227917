"""Pictures that came in a request, in memory; decoded like files, but within limits and of fewer formats."""

from dataclasses import dataclass
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

from PIL import Image, UnidentifiedImageError
from torch import Tensor

from convnext.data.images import UnreadableImageError, reading, upright
from convnext.data.preprocessing import Preprocessing
from convnext.inference.inputs import pixels, undecoded
from convnext.serve.limits import Refused

# Pillow opens many more, some of which start other programs and write files (EPS does both).
FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
NO_FILE = Path("the image")  # what an error would call the file: what a client calls it is never taken for a path


class Decoded(NamedTuple):
    """A picture as the network sees it.

    Attributes:
        image: uint8 (S, S, 3), or (S, S) in grey.
        size: width and height of the upright picture.
    """

    image: Tensor
    size: tuple[int, int]


@dataclass(frozen=True)
class Upload:
    """One picture of a request: its file's content, and the ``name`` that the client gave it, which is only echoed."""

    name: str | None
    data: bytes

    def decoded(self, preprocessing: Preprocessing, max_pixels: int) -> Decoded:
        """The picture as the network sees it.

        Args:
            preprocessing: the network's.
            max_pixels: width times height; of more nothing is decoded.

        Raises:
            Refused: 415, it is no image of a kind that is taken; 422, it is damaged or too large.
        """
        try:
            with reading(NO_FILE):
                picture = upright(undecoded(BytesIO(self.data), known_formats(), max_pixels))
                return Decoded(pixels(picture, preprocessing), picture.size)
        except UnreadableImageError as error:
            unknown = isinstance(error.__cause__, UnidentifiedImageError)
            reason = f"{error.reason} ({', '.join(shown_formats())})" if unknown else error.reason
            raise Refused(415 if unknown else 422, reason) from error


@cache
def known_formats() -> tuple[str, ...]:
    """Of the formats, those that this machine's Pillow reads."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def shown_formats() -> tuple[str, ...]:
    """The same for people: MPO is what cameras write into files that they call JPEG."""
    return tuple(name for name in known_formats() if name != "MPO")
