"""Batches: every image once in evaluation, an order that the seed decides in training, bounded variation."""

from typing import Any, cast

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from convnext.data import FileImages, load_data
from convnext.data.augmentation import (
    augment_batch,
    normalize,
    normalize_bytes,
    training_transform,
)
from convnext.data.loader import Batches
from convnext.data.preprocessing import Preprocessing
from convnext.errors import UsageError
from tests.conftest import MakeFolder


def test_evaluation_gives_every_image_once() -> None:
    val = load_data("digits").val
    batches = list(Batches(val, batch_size=100, image_size=32).epoch())
    assert [len(batch.images) for batch in batches] == [100, 100, 100, 60]
    assert torch.equal(torch.cat([batch.labels for batch in batches]), val.labels)  # pyright: ignore
    assert batches[0].images.shape == (100, 3, 32, 32)


@pytest.mark.parametrize("augment", ["none", "affine", "crop_flip", "rand_augment", "trivial_augment"])
def test_training_order_and_variation_follow_seed_and_epoch(augment: str) -> None:
    train = load_data("digits").train

    def first(seed: int, epoch: int) -> torch.Tensor:
        batches = Batches(
            train, batch_size=8, image_size=32, augment=augment, random_erasing=0.3, shuffle=True, seed=seed
        )
        return batches.prepare(next(batches.epoch(epoch)), torch.device("cpu"))

    assert torch.equal(first(0, 0), first(0, 0))
    assert not torch.equal(first(0, 0), first(0, 1))
    assert not torch.equal(first(0, 0), first(1, 0))


def test_training_drops_the_last_smaller_batch() -> None:
    train = load_data("digits").train
    assert len(Batches(train, batch_size=100, image_size=32, shuffle=True)) == 14
    assert len(Batches(train, batch_size=5000, image_size=32, shuffle=True)) == 1  # fewer images than a batch: all


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(("pipeline", "augment"), [("exact", "rand_augment"), ("fast", "trivial_augment")])
def test_files_are_read_alike_in_this_process_and_in_workers(
    make_folder: MakeFolder, pipeline: str, augment: str, workers: int
) -> None:
    train = load_data(str(make_folder({"cat": 9, "dog": 9}))).train
    options: dict[str, Any] = {"augment": augment, "pipeline": pipeline, "shuffle": True, "seed": 3}
    reference = Batches(train, batch_size=4, image_size=48, **options)
    batches = Batches(train, batch_size=4, image_size=48, workers=workers, **options)
    for epoch in range(2):
        for batch, expected in zip(batches.epoch(epoch), reference.epoch(epoch), strict=True):
            assert torch.equal(batch.images, expected.images)
            assert torch.equal(batch.labels, expected.labels)


@pytest.mark.parametrize("keep", [0, 400])
@pytest.mark.parametrize("pipeline", ["exact", "fast"])
def test_unreadable_files_are_left_out_and_named(make_folder: MakeFolder, pipeline: str, keep: int) -> None:
    root = make_folder({"cat": 4, "dog": 4})
    train = cast(FileImages, load_data(str(root)).train)
    train.paths[2].write_bytes(train.paths[2].read_bytes()[:keep])
    batches = list(Batches(train, batch_size=3, image_size=32, pipeline=pipeline).epoch())
    assert sum(len(batch.images) for batch in batches) == len(train) - 1
    (error,) = [error for batch in batches for error in batch.unreadable]
    assert str(train.paths[2]) in error


@pytest.mark.parametrize("augment", ["none", "crop_flip", "rand_augment", "trivial_augment"])
def test_fast_batches_are_bytes_that_become_the_exact_ones(make_folder: MakeFolder, augment: str) -> None:
    train = load_data(str(make_folder({"cat": 9, "dog": 9}))).train
    prepared = []
    for pipeline in ("exact", "fast"):
        batches = Batches(train, batch_size=8, image_size=32, augment=augment, pipeline=pipeline, shuffle=True)
        batch = next(batches.epoch())
        assert batch.images.dtype == (torch.uint8 if pipeline == "fast" else torch.float32)
        prepared.append(batches.prepare(batch, torch.device("cpu")))
    assert prepared[1].is_contiguous(memory_format=torch.channels_last)
    assert (prepared[0] - prepared[1]).abs().mean() < 0.05  # 3 levels of 255: the images are noise


@pytest.mark.timeout(120)
def test_workers_outlive_opencvs_threads_of_the_process_that_starts_them(make_folder: MakeFolder) -> None:
    """A fork brings no threads along, and OpenCV crashes where it waits for them."""
    train = load_data(str(make_folder({"cat": 9, "dog": 9}))).train
    threads = cv2.getNumThreads()
    cv2.setNumThreads(4)
    try:
        cv2.GaussianBlur(np.zeros((2000, 2000, 3), np.uint8), (9, 9), 2)
        options: dict[str, Any] = {"augment": "rand_augment", "pipeline": "fast", "shuffle": True}
        batches = Batches(train, batch_size=7, image_size=384, workers=1, **options)
        assert sum(len(batch.images) for batch in batches.epoch()) == 14
    finally:
        cv2.setNumThreads(threads)


def test_affine_keeps_the_digit_in_the_picture() -> None:
    images = torch.zeros(64, 1, 32, 32)
    images[:, :, 12:20, 12:20] = 1
    varied = augment_batch(images, "affine")
    mass = varied.sum((1, 2, 3)) / 64
    assert mass.min() > 0.75  # scaled by 0.9 to 1.1 a side, nothing lost
    assert mass.max() < 1.3
    assert not torch.equal(varied[0], varied[1])


def test_crop_flip_moves_and_mirrors() -> None:
    images = torch.arange(32.0).expand(200, 3, 32, 32).contiguous()
    varied = augment_batch(images, "crop_flip")
    slopes = varied[:, 0, 16, 20] - varied[:, 0, 16, 12]
    assert 60 < (slopes > 0).sum() < 140
    assert len({tuple(row.tolist()) for row in varied[:, 0, 16, 10:20]}) > 8


def test_bytes_are_normalised_alike() -> None:
    images = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(2, 3, 16, 16)
    assert torch.allclose(normalize_bytes(images), normalize(images.float() / 255), atol=1e-6)


def test_resize_and_normalize() -> None:
    grey = torch.full((1, 3, 8, 8), 0.5)
    assert normalize(grey)[0, :, 0, 0].tolist() == pytest.approx([0.0655, 0.1964, 0.4178], abs=1e-3)


@pytest.mark.parametrize(("size", "visible"), [(224, 0.875), (384, 1.0)])
def test_evaluation_crops_below_384_and_squashes_from_there(size: int, visible: float) -> None:
    """A picture with a white frame of a twentieth: the crop cuts it off, the squash keeps it."""
    picture = Image.new("RGB", (800, 800), "white")
    picture.paste((0, 0, 0), (40, 40, 760, 760))
    tensor = Preprocessing.published(size)(picture)
    assert tensor.shape == (3, size, size)
    assert (tensor[0, size // 2, 1] > 0).item() == (visible == 1.0)
    wide = Preprocessing.published(size)(Image.new("RGB", (640, 480)))
    assert wide.shape == (3, size, size)


@pytest.mark.parametrize("augment", ["none", "affine", "crop_flip", "rand_augment", "trivial_augment"])
def test_training_transforms_give_normalised_tensors(augment: str) -> None:
    tensor = training_transform(64, augment)(Image.new("RGB", (90, 70), (124, 116, 104)))
    assert tensor.shape == (3, 64, 64)
    assert tensor.dtype == torch.float32


def test_rand_augment_at_full_strength_keeps_no_bits() -> None:
    """2 draws in 100 of its posterize reach the strength at which nothing is left of an image, and must not fail."""
    transform: Any = training_transform(32, "rand_augment")
    policy = next(part for part in transform.transforms if hasattr(part, "ops"))
    (operation,) = [operation for operation in policy.ops if operation.name.startswith("Posterize")]
    operation.prob, operation.magnitude, operation.magnitude_std = 1, 10, 0
    assert operation(Image.new("RGB", (32, 32), "white")).getextrema() == ((0, 0),) * 3
    operation.magnitude = 9
    assert operation(Image.new("RGB", (32, 32), "white")).getextrema() == ((128, 128),) * 3


def test_wrong_values() -> None:
    val = load_data("digits").val
    with pytest.raises(UsageError, match=r"'afine'.*affine"):
        Batches(val, batch_size=4, image_size=32, augment="afine")
    with pytest.raises(UsageError, match="batch_size is 0"):
        Batches(val, batch_size=0, image_size=32)
    with pytest.raises(UsageError, match="'quick'"):
        Batches(val, batch_size=4, image_size=32, pipeline="quick")
