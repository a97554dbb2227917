"""Augmentation: of whole batches on tensors, and of single PIL images by timm's and torchvision's operations."""

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

from convnext.data.preprocessing import MEAN, STD, Preprocessing

Transform = Callable[[Image.Image], Tensor]
Augment = Literal["none", "affine", "crop_flip", "rand_augment", "trivial_augment"]
PIPELINES = ("exact", "fast")
BATCH_AUGMENTS = ("none", "affine", "crop_flip")  # those that run on whole batches of tensors


def resize_batch(images: Tensor, image_size: int) -> Tensor:
    """Images (N, C, H, W) in [0, 1] to (N, C, image_size, image_size)."""
    if images.shape[-2:] == (image_size, image_size):
        return images
    shape = (image_size, image_size)
    return F.interpolate(images, shape, mode="bicubic", antialias=True, align_corners=False).clamp_(0, 1)


def normalize(images: Tensor) -> Tensor:
    """Images (N, 3, H, W) in [0, 1] to ImageNet's mean and standard deviation."""
    mean, std = (images.new_tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    return (images - mean) / std


def normalize_bytes(images: Tensor) -> Tensor:
    """Images (N, 3, H, W) in uint8 to ImageNet's mean and standard deviation, in one pass."""
    mean, std = (255 * torch.tensor(values, device=images.device).view(3, 1, 1) for values in (MEAN, STD))
    return torch.addcmul(-mean / std, images.float(), 1 / std)


def augment_batch(images: Tensor, augment: str) -> Tensor:
    """Augment each of the images (N, C, H, W) independently, with torch's global generator."""
    if augment == "affine":
        return random_affine(images)
    if augment == "crop_flip":
        return random_crop_flip(images)
    return images


def random_affine(images: Tensor, degrees: float = 10, scale: float = 0.1, shift: float = 0.08) -> Tensor:
    """Rotate, scale and shift each image at random: for digits and characters, which must not be flipped.

    Args:
        images: (N, C, H, W); what comes in from outside is black.
        degrees: largest angle.
        scale: largest relative change of size.
        shift: largest shift, as a part of the image's size.
    """
    count = len(images)
    angle = torch.empty(count).uniform_(-degrees, degrees) * (math.pi / 180)
    zoom = torch.empty(count).uniform_(1 - scale, 1 + scale)
    offset = torch.empty(count, 2).uniform_(-2 * shift, 2 * shift)  # the grid spans -1 to 1
    cos, sin = torch.cos(angle) * zoom, torch.sin(angle) * zoom
    rows = (torch.stack((cos, -sin, offset[:, 0]), 1), torch.stack((sin, cos, offset[:, 1]), 1))
    grid = F.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid.to(images), align_corners=False)


def random_crop_flip(images: Tensor) -> Tensor:
    """Pad by an eighth, crop each image at random, flip every other one: for small photographs."""
    count, _, height, width = images.shape
    pad = max(1, height // 8)
    padded = F.pad(images, (pad, pad, pad, pad), mode="reflect").permute(0, 2, 3, 1)  # (N, H + 2 pad, W + 2 pad, C)
    top, left = (torch.randint(2 * pad + 1, (count, 1)) for _ in range(2))
    rows = (top + torch.arange(height)).view(count, height, 1)
    columns = left + torch.arange(width)
    columns = torch.where(torch.rand(count, 1) < 0.5, columns.flip(1), columns).view(count, 1, width)
    return padded[torch.arange(count).view(count, 1, 1), rows, columns].permute(0, 3, 1, 2)


def training_transform(image_size: int, augment: str) -> Transform:
    """The training pipeline, from a PIL image to a normalised tensor (3, image_size, image_size)."""
    if augment == "none":
        return Preprocessing.published(image_size)
    if augment == "affine":
        from torchvision.transforms import v2

        vary = v2.RandomAffine((-10, 10), translate=(0.08, 0.08), scale=(0.9, 1.1))
        return v2.Compose([vary, Preprocessing.published(image_size)])
    from timm.data.transforms_factory import create_transform

    transform: Any = create_transform(
        image_size,
        is_training=True,
        interpolation="bicubic",
        mean=MEAN,
        std=STD,
        scale=(0.35, 1) if augment == "crop_flip" else (0.08, 1),
        auto_augment="rand-m9-mstd0.5-inc1" if augment == "rand_augment" else None,
        color_jitter=0,
        re_prob=0,
    )
    if augment == "rand_augment":
        allow_posterize_to_nothing(transform)
    if augment == "trivial_augment":
        from torchvision.transforms import InterpolationMode, v2

        transform.transforms.insert(2, v2.TrivialAugmentWide(interpolation=InterpolationMode.BILINEAR))
    return transform


def allow_posterize_to_nothing(transform: Any) -> None:
    """Let the RandAugment of timm's pipeline keep 0 bits, which it does at full strength and newer Pillows refuse."""
    from timm.data.auto_augment import RandAugment

    policy = next(part for part in transform.transforms if isinstance(part, RandAugment))
    for operation in policy.ops:
        if operation.name == "PosterizeIncreasing":
            operation.aug_fn = posterize


def posterize(picture: Image.Image, bits: int, **_: Any) -> Image.Image:
    """Keep the highest bits of each value; of 0 bits, black is left."""
    return ImageOps.posterize(picture, bits) if bits else Image.new("RGB", picture.size)
