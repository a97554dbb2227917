"""Data by name: the embedded digits, folders divided or not, CIFAR's files, and what is no data."""

import hashlib
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets

from convnext.data import FileImages, MemoryImages, load_data
from convnext.data.images import UnreadableImageError
from convnext.errors import RunError, UsageError
from tests.conftest import MakeFolder


def test_digits() -> None:
    data = load_data("digits")
    assert isinstance(data.train, MemoryImages)
    assert isinstance(data.val, MemoryImages)
    assert (len(data.train), len(data.val), len(data.classes)) == (1437, 360, 10)
    assert data.train.images.dtype == torch.uint8
    assert data.train.images.max() == 255
    shares = torch.bincount(data.val.labels) / torch.bincount(torch.cat([data.train.labels, data.val.labels]))
    assert shares.min() > 0.19  # stratified
    assert shares.max() < 0.21
    again = load_data("digits")
    assert isinstance(again.val, MemoryImages)
    assert torch.equal(again.val.images, data.val.images)


def test_divided_folder(make_folder: MakeFolder) -> None:
    root = make_folder({"train/cat": 4, "train/dog": 3, "val/cat": 2, "val/dog": 1})
    data = load_data(str(root))
    assert data.classes == ("cat", "dog")
    assert (len(data.train), len(data.val), data.split) == (7, 3, None)
    assert isinstance(data.val, FileImages)
    assert data.val.labels == (0, 0, 1)
    picture, label = data.val.read(2)
    assert (picture.mode, picture.size, label) == ("RGB", (48, 40), 1)
    assert len(load_data(f"imagenet:{root}").train) == 7


def test_undivided_folder_is_split_class_by_class(make_folder: MakeFolder) -> None:
    root = make_folder({"cat": 10, "dog/puppies": 5, "emu": 1})
    data = load_data(str(root))
    assert isinstance(data.train, FileImages)
    assert isinstance(data.val, FileImages)
    assert data.classes == ("cat", "dog", "emu")
    assert (data.train.labels.count(0), data.val.labels.count(0)) == (8, 2)
    assert (data.train.labels.count(1), data.val.labels.count(1)) == (4, 1)
    assert (data.train.labels.count(2), data.val.labels.count(2)) == (1, 0)
    assert data.notes == ("class emu has one image: it is trained on, none is held out",)
    assert not set(data.train.paths) & set(data.val.paths)
    assert data.split is not None
    assert sorted(data.split["train"] + data.split["val"])[-1] == "emu/0.jpg"
    assert load_data(str(root)).split == data.split
    assert load_data(str(root), seed=1).split != data.split


def test_train_folder_alone_is_split(make_folder: MakeFolder) -> None:
    data = load_data(str(make_folder({"train/cat": 5, "train/dog": 5})))
    assert (len(data.train), len(data.val)) == (8, 2)
    assert "no val/" in data.notes[0]


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({}, "no images in"),
        ({"cat": 0, "dog": 0}, "no images .*2 folders"),
        ({"cat": 3}, r"one class in .*\(cat\)"),
        ({"cat": 1, "dog": 1}, "one image"),
        ({"cat": 3, "dog": 0, "emu": 3}, "no images .*dog"),
        ({"train/cat": 2, "train/dog": 2, "val/cat": 1, "val/elk": 1}, "train.*elk"),
        ({"train/cat": 2, "train/dog": 2, "val/cat": 0}, "no images in .*val"),
    ],
)
def test_folders_that_are_no_data(make_folder: MakeFolder, counts: dict[str, int], message: str) -> None:
    root = make_folder(counts)
    root.mkdir(exist_ok=True)
    with pytest.raises(UsageError, match=message):
        load_data(str(root))


def test_wrong_names(tmp_path: Path) -> None:
    (tmp_path / "file.txt").write_text("x")
    for name, message in (
        ("digit", "'digit'.*digits"),
        (str(tmp_path / "nowhere"), "nowhere"),
        (f"imagenet:{tmp_path / 'nowhere'}", "nowhere"),
        (f"imagenet:{tmp_path}", "train/ and val/"),
        (str(tmp_path / "file.txt"), r"file\.txt"),
        ("object:net.Photos", r"net\.Photos"),
    ):
        with pytest.raises(UsageError, match=message):
            load_data(name)


def test_cifar_is_read_from_torchvisions_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The archive in CIFAR-10's own layout, with checksums that match it."""
    base = tmp_path / datasets.CIFAR10.base_folder
    base.mkdir()
    generator = np.random.default_rng(0)
    sums = {}
    for name, count in [(f"data_batch_{i}", 4) for i in range(1, 6)] + [("test_batch", 3)]:
        pixels = generator.integers(0, 256, (count, 3072), dtype=np.uint8)
        content = pickle.dumps({"data": pixels, "labels": [i % 10 for i in range(count)]})
        (base / name).write_bytes(content)
        sums[name] = hashlib.md5(content).hexdigest()
    meta = pickle.dumps({"label_names": [f"class {i}" for i in range(10)]})
    (base / "batches.meta").write_bytes(meta)
    with tarfile.open(tmp_path / datasets.CIFAR10.filename, "w:gz") as archive:
        archive.add(base, datasets.CIFAR10.base_folder)
    monkeypatch.setattr(
        datasets.CIFAR10, "tgz_md5", hashlib.md5((tmp_path / datasets.CIFAR10.filename).read_bytes()).hexdigest()
    )
    monkeypatch.setattr(datasets.CIFAR10, "train_list", [[name, md5] for name, md5 in sums.items() if "data" in name])
    monkeypatch.setattr(datasets.CIFAR10, "test_list", [["test_batch", sums["test_batch"]]])
    new_meta = {**datasets.CIFAR10.meta, "md5": hashlib.md5(meta).hexdigest()}
    monkeypatch.setattr(datasets.CIFAR10, "meta", new_meta)
    monkeypatch.setenv("CONVNEXT_DATA", str(tmp_path))
    data = load_data("cifar10")
    assert isinstance(data.train, MemoryImages)
    assert data.train.images.shape == (20, 3, 32, 32)
    assert (len(data.val), data.classes[3]) == (3, "class 3")


def test_cifar_without_a_network_says_where_to_put_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONVNEXT_DATA", str(tmp_path))
    monkeypatch.setattr(datasets.CIFAR100, "url", "http://127.0.0.1:9/cifar-100-python.tar.gz")
    with pytest.raises(RunError, match=str(tmp_path)):
        load_data("cifar100")


@pytest.mark.parametrize("content", [b"", b"no image at all", None])
def test_unreadable_files_are_named(make_folder: MakeFolder, content: bytes | None) -> None:
    root = make_folder({"cat": 3, "dog": 3})
    path = root / "cat" / "0.jpg"
    path.write_bytes(path.read_bytes()[:400] if content is None else content)
    data = load_data(str(root))
    assert isinstance(data.train, FileImages)
    assert isinstance(data.val, FileImages)
    part = data.train if path in data.train.paths else data.val
    with pytest.raises(UnreadableImageError, match=str(path)):
        part.read(part.paths.index(path))


def test_pictures_of_every_kind_keep_what_they_show(tmp_path: Path) -> None:
    ramp = np.linspace(0, 1, 64)[None].repeat(8, 0)
    for name, pixels in (("a.png", (ramp * 65535).astype(np.uint16)), ("b.png", (ramp * 255).astype(np.uint8))):
        Image.fromarray(pixels).save(tmp_path / name)
    images = FileImages((tmp_path / "a.png", tmp_path / "b.png"), (0, 1))
    for index in (0, 1):
        shown = np.asarray(images.read(index)[0])[..., 0]
        assert np.abs(shown - ramp * 255).max() <= 1
    Image.fromarray(ramp.astype(np.float32)).save(tmp_path / "c.tiff")
    with pytest.raises(UnreadableImageError, match="floating point"):
        FileImages((tmp_path / "c.tiff",), (0,)).read(0)
    for mode in ("P", "RGBA", "L", "CMYK", "I;16"):
        Image.new(mode, (9, 7)).save(tmp_path / "e.tiff")
        assert FileImages((tmp_path / "e.tiff",), (0,)).read(0)[0].mode == "RGB"
    turned = Image.new("RGB", (30, 20))
    exif = turned.getexif()
    exif[0x0112] = 6  # the camera was held upright
    turned.save(tmp_path / "d.jpg", exif=exif)
    assert FileImages((tmp_path / "d.jpg",), (0,)).read(0)[0].size == (20, 30)


def test_a_link_that_leads_back_is_not_followed_twice(make_folder: MakeFolder) -> None:
    root = make_folder({"cat": 4, "dog": 4})
    (root / "cat" / "again").symlink_to(root / "cat", target_is_directory=True)
    data = load_data(str(root))
    assert len(data.train) + len(data.val) == 8
