"""Pictures decoded as far as they are needed: what they show is what Pillow reads, of files of every kind."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg
from PIL import Image
from sklearn.datasets import load_sample_image

from convnext.data.decoding import JpegPicture, open_picture
from convnext.data.images import UnreadableImageError, read_picture

PHOTO = Image.fromarray(load_sample_image("flower.jpg"))  # 640 x 427


def saved(path: Path, picture: Image.Image = PHOTO, **options: Any) -> Path:
    picture.save(path, **options)
    return path


def difference(path: Path, shrink: int = 1) -> np.ndarray[Any, Any]:
    """Levels between what is decoded and what Pillow reads, shrunk by the mean where need be."""
    picture, expected = open_picture(path), read_picture(path)
    assert (picture.width, picture.height) == expected.size
    if shrink > 1:
        expected = expected.reduce(shrink)
    return np.abs(picture.decode(shrink)[0].astype(int) - np.asarray(expected))


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
@pytest.mark.parametrize("progressive", [False, True])
def test_jpegs_are_what_pillow_reads(tmp_path: Path, subsampling: str, progressive: bool) -> None:
    path = saved(tmp_path / "a.jpg", quality=90, subsampling=subsampling, progressive=progressive)
    assert isinstance(open_picture(path), JpegPicture)
    assert difference(path).max() <= 2


@pytest.mark.parametrize("shrink", [2, 4, 8])
def test_jpegs_are_decoded_smaller(tmp_path: Path, shrink: int) -> None:
    path = saved(tmp_path / "a.jpg", quality=90)
    assert open_picture(path).decode(shrink)[0].shape == (-(-427 // shrink), 640 // shrink, 3)
    assert difference(path, shrink).mean() < 3


@pytest.mark.parametrize("orientation", range(9))
def test_photographs_are_upright(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path / "a.jpg", quality=90, exif=exif)
    assert isinstance(open_picture(path), JpegPicture)
    assert difference(path).max() <= 2
    assert difference(path, 2).mean() < 3


@pytest.mark.parametrize(
    ("mode", "name"), [("L", "a.jpg"), ("CMYK", "a.jpg"), ("RGBA", "a.png"), ("P", "a.png"), ("RGB", "a.webp")]
)
def test_other_files_are_what_pillow_reads(tmp_path: Path, mode: str, name: str) -> None:
    path = saved(tmp_path / name, PHOTO.convert(mode))
    assert difference(path).max() <= 2


def test_16_bits_are_what_pillow_reads(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 640).astype(np.uint16)[None].repeat(8, 0)
    path = saved(tmp_path / "a.png", Image.fromarray(ramp))
    assert difference(path).max() == 0
    assert open_picture(path).decode(1)[0].max() == 255


@pytest.mark.parametrize("keep", [0, 10, 400, 20_000, None])
def test_damaged_files_are_named(tmp_path: Path, keep: int | None) -> None:
    """Nothing, half a header, half a picture, no file."""
    path = saved(tmp_path / "a.jpg", quality=90)
    if keep is None:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UnreadableImageError, match=str(path)):
        open_picture(path).decode(1)


def test_damage_that_pillow_reads_over_is_read_over(tmp_path: Path) -> None:
    """Bytes lost in the middle: libjpeg warns and goes on."""
    path = saved(tmp_path / "a.jpg", quality=90)
    data = bytearray(path.read_bytes())
    data[30_000:30_040] = bytes(40)
    path.write_bytes(data)
    with pytest.raises(ValueError, match="Corrupt JPEG"):
        simplejpeg.decode_jpeg(bytes(data))
    assert difference(path).max() == 0
