"""What can be given to predict on: every ordinary kind of picture, and a clear word on everything else."""

import math
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile, features
from sklearn.datasets import load_sample_image

from convnext.data.images import UnreadableImageError, read_picture
from convnext.data.preprocessing import Preprocessing
from convnext.errors import UsageError
from convnext.inference.inputs import image_inputs, read_file

PHOTO = Image.fromarray(load_sample_image("china.jpg")[100:260, 200:400])  # 200 x 160
GREY = PHOTO.convert("L")
PREPROCESSING = Preprocessing.published(32)


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


def transparent() -> Image.Image:
    image = PHOTO.convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    return image


def deep() -> Image.Image:
    return Image.fromarray(np.asarray(GREY).astype(np.uint16) * 257)


KINDS: dict[str, tuple[str, Image.Image, dict[str, Any], float]] = {  # file, picture, options, levels it may be off
    "jpeg": ("a.jpg", PHOTO, {"quality": 95}, 6),
    "progressive": ("a.jpeg", PHOTO, {"quality": 95, "progressive": True}, 6),
    "cmyk": ("a.jpg", PHOTO.convert("CMYK"), {"quality": 95}, 4),
    "rotated": ("a.jpg", PHOTO.transpose(Image.Transpose.ROTATE_90), {"quality": 95, "exif": exif(6)}, 6),
    "png": ("a.png", PHOTO, {}, 0),
    "palette": ("a.png", PHOTO.quantize(256), {}, 12),
    "palette, transparent": ("a.png", PHOTO.quantize(255), {"transparency": bytes(range(255))}, 12),
    "alpha": ("a.png", transparent(), {}, 0),
    "grey and alpha": ("a.png", GREY.convert("LA"), {}, 0),
    "grey": ("a.png", GREY, {}, 0),
    "16-bit grey": ("a.png", deep(), {}, 0),
    "16-bit tiff": ("a.tiff", deep(), {}, 0),
    "black and white": ("a.png", PHOTO.convert("1"), {}, 0),
    "webp": ("a.webp", PHOTO, {"quality": 95}, 4),
    "gif": ("a.gif", PHOTO, {"save_all": True, "append_images": [Image.new("RGB", PHOTO.size)]}, 12),
    "tiff": ("a.tif", PHOTO, {"compression": "tiff_lzw"}, 0),
    "cmyk tiff": ("a.tif", PHOTO.convert("CMYK"), {}, 0),
    "bmp": ("a.bmp", PHOTO, {}, 0),
    "ppm": ("a.ppm", PHOTO, {}, 0),
    "wrong suffix": ("a.jpg", PHOTO, {"format": "PNG"}, 0),
    "avif": ("a.avif", PHOTO, {"quality": 95}, 4),
}


def readable_kind(kind: str) -> tuple[str, Image.Image, dict[str, Any], float]:
    """A kind of file, where this Pillow reads it."""
    if kind == "avif" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    return KINDS[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_every_ordinary_kind_is_read_as_training_reads_it(tmp_path: Path, kind: str) -> None:
    name, picture, options, off = readable_kind(kind)
    path = tmp_path / name
    picture.save(path, **options)
    read = read_file(str(path))
    assert (read.mode, read.size) == ("RGB", PHOTO.size)
    assert read == read_picture(path)
    expected = picture if kind == "black and white" else GREY if "grey" in kind or "16-bit" in kind else PHOTO
    error = np.asarray(read).astype(int) - np.asarray(expected.convert("RGB"))
    assert np.abs(error).mean() <= off
    with Image.open(path) as itself:
        (image,) = image_inputs(itself, PREPROCESSING)
        (file,) = image_inputs(path, PREPROCESSING)
        assert torch.equal(image.pixels(PREPROCESSING), file.pixels(PREPROCESSING))


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files_are_read_or_named(tmp_path: Path, kind: str) -> None:
    """Bytes changed, left out or cut off, most of them in the header: Pillow's decoders fail in many ways."""
    name, picture, options, _ = readable_kind(kind)
    path = tmp_path / name
    picture.resize((40, 30)).save(path, **options)
    whole, generator, reasons = path.read_bytes(), np.random.default_rng(0), []
    for _ in range(60):
        data = bytearray(whole)
        for _ in range(generator.choice([1, 4, 16])):
            place = int(generator.integers(min(len(data), generator.choice([60, 300, len(data)]))))
            change = generator.choice(["set", "drop", "cut"], p=[0.8, 0.15, 0.05])
            data[place : place + 1 if change != "cut" else None] = generator.bytes(1) if change == "set" else b""
            data = data or bytearray(b"x")
        path.write_bytes(data)
        try:
            assert read_file(str(path)).mode == "RGB"
        except UnreadableImageError as error:
            reasons.append(error.reason)
    assert reasons
    assert all(reasons)


@pytest.mark.parametrize("side", [10_000, 20_000])
def test_decompression_bombs_are_named_without_being_decoded(tmp_path: Path, side: int) -> None:
    """100 million pixels, of which Pillow only warns, and 400 million."""
    path = tmp_path / "bomb.png"
    Image.new("1", (side, side)).save(path)
    with pytest.raises(UnreadableImageError, match=rf"bomb.png: .*\({side**2} pixels\)"):
        read_file(str(path))


@pytest.mark.parametrize("kind", ["png", "jpeg"])
def test_pictures_are_decoded_side_by_side(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (20, 10), "red").save(tmp_path / "a", kind)
    both, load = threading.Barrier(2), ImageFile.ImageFile.load

    def load_beside_another(image: ImageFile.ImageFile) -> Any:
        if image.tile:  # which is left to decode
            both.wait(5)
        return load(image)

    monkeypatch.setattr(ImageFile.ImageFile, "load", load_beside_another)
    with ThreadPoolExecutor(2) as pool:
        assert [picture.size for picture in pool.map(read_file, [str(tmp_path / "a")] * 2)] == [(20, 10)] * 2


def test_oddities_in_a_file_are_not_spoken_of(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    PHOTO.save(path, exif=exif(6).tobytes()[:-7])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_file(str(path)).mode == "RGB"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("missing.jpg", "no such file"),
        ("missing*.jpg", "no such file, and no file matches"),
        ("https://example.org/a.jpg", "a URL"),
        ("s3://bucket/a.jpg", "a URL"),
        ("empty", "a folder, and there is no image in it"),
        ("full", "a folder, name its images"),
        ("text.jpg", "no image of a kind that can be read"),
        ("nothing.jpg", "no image of a kind that can be read"),
        ("cut.jpg", "image file is truncated"),
        ("cut.png", "image file is truncated"),
        ("cut.avif", ""),
        ("float.tiff", "values without a fixed range"),
        ("/dev/zero", "not a regular file"),
    ],
)
def test_what_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, reason: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("full/deep").mkdir(parents=True)
    PHOTO.save("full/deep/a.jpg")
    Path("text.jpg").write_text("no picture")
    Path("nothing.jpg").touch()
    for suffix in ("jpg", "png", *(["avif"] if features.check("avif") else [])):
        PHOTO.save(f"cut.{suffix}")
        data = Path(f"cut.{suffix}").read_bytes()
        Path(f"cut.{suffix}").write_bytes(data[: len(data) // 2])
    Image.new("F", (9, 9)).save("float.tiff")
    with pytest.raises(UnreadableImageError) as raised:
        read_file(name)
    assert raised.value.reason.startswith(reason)
    assert str(raised.value).startswith(f"{name}: ")


def test_arrays_and_tensors_of_bytes_are_pictures() -> None:
    pixels = np.asarray(PHOTO)
    expected = Preprocessing.cut(PREPROCESSING, PHOTO)
    for one in (PHOTO, pixels, torch.tensor(pixels).permute(2, 0, 1), pixels[:, ::-1][:, ::-1]):
        (image,) = image_inputs(one, PREPROCESSING)
        assert np.array_equal(image.pixels(PREPROCESSING).numpy(), np.asarray(expected))
    several = np.stack([pixels, 255 - pixels])
    for inputs in (several, torch.from_numpy(several).permute(0, 3, 1, 2), list(several), iter(several)):
        first, second = image_inputs(inputs, PREPROCESSING)
        assert np.array_equal(first.pixels(PREPROCESSING).numpy(), np.asarray(expected))
        assert not torch.equal(first.pixels(PREPROCESSING), second.pixels(PREPROCESSING))


def test_floats_are_prepared_already() -> None:
    prepared = torch.stack([PREPROCESSING(PHOTO), -PREPROCESSING(PHOTO)])
    for inputs in (prepared, prepared.double(), list(prepared)):
        images = list(image_inputs(inputs, PREPROCESSING))
        assert torch.equal(torch.stack([image.pixels(PREPROCESSING) for image in images]), prepared)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (None, "cannot predict on NoneType None: needs a path, a PIL image, a uint8 array"),
        (3, "cannot predict on int 3: needs a path"),
        (b"abc", "cannot predict on bytes b'abc'"),
        ({"a.jpg": 1}, "cannot predict on dict"),
        ([["a.jpg"]], "cannot predict on list within list"),
        (["a.jpg", None], "cannot predict on NoneType None"),
        (np.zeros((9, 9), np.uint8), r"shape \(9, 9\) and dtype uint8: needs \(H, W, 3\) or \(N, H, W, 3\), in RGB"),
        (np.zeros((9, 9, 4), np.uint8), r"shape \(9, 9, 4\) and dtype uint8: needs \(H, W, 3\)"),
        (np.zeros((3, 9, 9), np.uint8), "move the channels to the end"),
        (np.zeros((2, 3, 9, 9), np.uint8), "move the channels to the end"),
        (np.zeros((0, 9, 3), np.uint8), r"needs \(H, W, 3\)"),
        (np.zeros((9, 9, 3), np.float32), r"dtype float32: needs uint8 values from 0 to 255 \(from 0 to 1: multiply"),
        (np.zeros((9, 9, 3), np.int64), "dtype int64: needs uint8"),
        (torch.zeros(9, 9, dtype=torch.uint8), r"shape \(9, 9\) and torch.uint8: needs \(3, H, W\) or \(N, 3, H, W\)"),
        (torch.zeros(9, 9, 3, dtype=torch.uint8), r"needs \(3, H, W\)"),
        (torch.zeros(0, 3, 32, 32), r"needs \(3, H, W\)"),
        (torch.zeros(3, 32, 32, dtype=torch.int64), "torch.int64: give uint8 values from 0 to 255"),
        (torch.randn(2, 3, 40, 32), "floats are taken to be prepared, which makes them 32 x 32: give uint8"),
        (torch.rand(2, 3, 32, 32), r"values from \S+ to \S+: they are not normalised"),
        (255 * torch.rand(2, 3, 32, 32), "they are not normalised: give uint8"),
        (torch.full((3, 32, 32), math.nan), "with values from nan to nan: they are not normalised"),
    ],
)
def test_everything_else_is_refused(inputs: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        list(image_inputs(inputs, PREPROCESSING))


def test_networks_of_one_channel_take_grey_tensors() -> None:
    grey = Preprocessing(16, 1.0, mean=(0.5,), std=(0.25,))
    pixels = torch.from_numpy(np.array(PHOTO.convert("L")))
    for one in (PHOTO.convert("L"), pixels[None], pixels[None, None]):
        (image,) = image_inputs(one, grey)
        assert np.array_equal(image.pixels(grey).numpy(), np.asarray(grey.cut(PHOTO.convert("L"))))
    with pytest.raises(UsageError, match=r"\(N, 1, H, W\)"):
        list(image_inputs(torch.zeros(3, 16, 16, dtype=torch.uint8), grey))
