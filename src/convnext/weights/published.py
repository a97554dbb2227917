"""The authors' checkpoints: a table, which of them are on this machine, and the list that users see."""

import os
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from convnext.errors import UsageError, unknown_name
from convnext.files import user_cache
from convnext.models import create_model

BASE = "https://dl.fbaipublicfiles.com/convnext"
FOLDERS = {"in1k": "convnextv2/im1k", "in22k_in1k": "convnextv2/im22k", "fcmae": "convnextv2/pt_only"}  # V2's, by tag
CLASSES = {"in22k": 21841, "fcmae": 0}  # the others have 1000
DATA = {
    "in1k": "ImageNet-1K",
    "in22k": "ImageNet-22K",
    "in22k_in1k": "ImageNet-22K, then ImageNet-1K",
    "fcmae": "ImageNet-1K without labels (FCMAE)",
}
TIMM_TAGS = {"in1k": "fb_in1k", "in22k": "fb_in22k", "in22k_in1k": "fb_in22k_ft_in1k"}
TIMM_V2_TAGS = {"in1k": "fcmae_ft_in1k", "in22k_in1k": "fcmae_ft_in22k_in1k", "fcmae": "fcmae"}
HUB_FILE = "model.safetensors"  # of timm's copies
WIDE = 110  # columns of a terminal with room for the data of every row


@dataclass(frozen=True)
class Published:
    """A published checkpoint.

    Attributes:
        variant: the model's name.
        tag: the training data: ``in1k``, ``in22k``, ``in22k_in1k`` (pre-trained, then fine-tuned), with ``_384`` or
            ``_512`` for another image size than 224; ``fcmae`` for masked pre-training without labels.
        file: name of the authors' file.
        top1: ImageNet-1K top-1 accuracy in %, as the papers state it; None without 1000 classes.
    """

    variant: str
    tag: str
    file: str
    top1: float | None

    @property
    def kind(self) -> str:
        """The tag without the image size."""
        return self.tag.removesuffix(f"_{self.image_size}")

    @property
    def is_v2(self) -> bool:
        """True for ConvNeXt V2."""
        return self.variant.startswith("convnextv2_")

    @property
    def data(self) -> str:
        """The training data, for the user."""
        return DATA[self.kind]

    @property
    def classes(self) -> int:
        """Number of classes; 0 without a classifier."""
        return CLASSES.get(self.kind, 1000)

    @property
    def image_size(self) -> int:
        """Pixels a side of the training images."""
        size = self.tag.rpartition("_")[2]
        return int(size) if size.isdigit() else 224

    @property
    def licence(self) -> str:
        """The SPDX name of the licence."""
        return "CC-BY-NC-4.0" if self.is_v2 else "MIT"

    @property
    def address(self) -> str:
        """The URL of the authors' file."""
        return f"{BASE}/{FOLDERS[self.kind]}/{self.file}" if self.is_v2 else f"{BASE}/{self.file}"

    @property
    def hub(self) -> str | None:
        """The repository of timm's copy on the Hugging Face hub; None if there is none."""
        if self.variant.startswith("convnext_isotropic_") or (not self.is_v2 and self.tag == "in1k_384"):
            return None
        tag = (TIMM_V2_TAGS if self.is_v2 else TIMM_TAGS)[self.kind]
        return f"timm/{self.variant}.{tag}{self.tag.removeprefix(self.kind)}"

    @property
    def tensor_bytes(self) -> int:
        """Bytes of the tensors; the file is a little larger."""
        return tensor_bytes(self.variant, self.classes)

    @property
    def notes(self) -> tuple[str, ...]:
        """Warnings for whoever uses the weights."""
        if self.licence == "MIT":
            return ()
        return (f"{self.variant}'s {self.tag} weights are licensed under {self.licence}: for non-commercial use only",)


@cache
def tensor_bytes(variant: str, classes: int) -> int:
    """Bytes of a model's parameters in fp32; without classes also without the final norm, as FCMAE leaves it."""
    with torch.device("meta"):
        model = create_model(variant, num_classes=classes)
    return sum(
        4 * tensor.numel() for name, tensor in model.named_parameters() if classes or not name.startswith("norm.")
    )


V2_SIZES = ("atto", "femto", "pico", "nano", "tiny", "base", "large", "huge")
V2_TOP1 = (76.7, 78.5, 80.3, 81.9, 83.0, 84.9, 85.8, 86.3)
# Family, tag, end of the file's name, and sizes with their top-1 accuracy.
SERIES: tuple[tuple[str, str, str, dict[str, float | None]], ...] = (
    ("convnext", "in1k", "_1k_224_ema.pth", {"tiny": 82.1, "small": 83.1, "base": 83.8, "large": 84.3}),
    ("convnext", "in1k_384", "_1k_384.pth", {"base": 85.1, "large": 85.5}),
    ("convnext", "in22k", "_22k_224.pth", dict.fromkeys(("tiny", "small", "base", "large", "xlarge"))),
    ("convnext", "in22k_in1k", "_22k_1k_224.pth", {"tiny": 82.9, "small": 84.6, "base": 85.8, "large": 86.6}),
    ("convnext", "in22k_in1k", "_22k_1k_224_ema.pth", {"xlarge": 87.0}),
    ("convnext", "in22k_in1k_384", "_22k_1k_384.pth", {"tiny": 84.1, "small": 85.8, "base": 86.8, "large": 87.5}),
    ("convnext", "in22k_in1k_384", "_22k_1k_384_ema.pth", {"xlarge": 87.8}),
    ("convnext_isotropic", "in1k", "_1k_224_ema.pth", {"small": 78.7, "base": 82.0, "large": 82.6}),
    ("convnextv2", "in1k", "_1k_224_ema.pt", dict(zip(V2_SIZES, V2_TOP1, strict=True))),
    ("convnextv2", "in22k_in1k", "_22k_224_ema.pt", {"nano": 82.1, "tiny": 83.9, "base": 86.8, "large": 87.3}),
    (
        "convnextv2",
        "in22k_in1k_384",
        "_22k_384_ema.pt",
        {"nano": 83.4, "tiny": 85.1, "base": 87.7, "large": 88.2, "huge": 88.7},
    ),
    ("convnextv2", "in22k_in1k_512", "_22k_512_ema.pt", {"huge": 88.9}),
    ("convnextv2", "fcmae", "_1k_224_fcmae.pt", dict.fromkeys(V2_SIZES)),
)
ROWS = tuple(
    Published(f"{family}_{size}", tag, f"{family.replace('isotropic', 'iso')}_{size}{end}", top1)
    for family, tag, end, sizes in SERIES
    for size, top1 in sizes.items()
)
PUBLISHED = {(row.variant, row.tag): row for row in ROWS}


def published(variant: str, tag: str) -> Published:
    """Return a model's checkpoint by its tag.

    Raises:
        UsageError: there is none; the message lists those that exist.
    """
    tags = tags_of(variant)
    if not tags:
        variants = sorted({row.variant for row in ROWS})
        raise UsageError(f"no published weights {tag!r} for {variant}: there are some for {', '.join(variants)}")
    if tag not in tags:
        raise unknown_name(f"published weights of {variant}", tag, tags)
    return PUBLISHED[variant, tag]


def tags_of(variant: str) -> list[str]:
    """The tags of a model's published checkpoints."""
    return [row.tag for row in ROWS if row.variant == variant]


def weights_cache() -> Path:
    """The folder for downloaded weights: ``CONVNEXT_WEIGHTS``, or ``convnext/weights`` in the user's cache."""
    return Path(os.environ["CONVNEXT_WEIGHTS"]) if "CONVNEXT_WEIGHTS" in os.environ else user_cache("weights")


def at_hand(variant: str, tag: str | None = None) -> Path | None:
    """Return the file of a published checkpoint on this machine, or None; no network is used.

    Searched under the authors' file name in ``CONVNEXT_WEIGHTS``, torch hub's folder, and ``convnext/weights`` in the
    user's cache; then as timm's copy in the Hugging Face hub's cache.

    Args:
        variant: a model's name.
        tag: of the checkpoint; by default the first that is found, in the order of ``PUBLISHED``.
    """
    from huggingface_hub import try_to_load_from_cache

    for row in (published(variant, wanted) for wanted in (tags_of(variant) if tag is None else [tag])):
        for folder in (weights_cache(), Path(torch.hub.get_dir()) / "checkpoints", user_cache("weights")):
            if (folder / row.file).is_file():
                return folder / row.file
        copy = try_to_load_from_cache(row.hub, HUB_FILE) if row.hub else None
        if isinstance(copy, str):
            return Path(copy)
    return None


def listing(pattern: str = "*") -> list[dict[str, Any]]:
    """List the published checkpoints of the models that match a shell-style ``pattern``.

    ``bytes`` are those of the tensors; the files are a little larger. ``at_hand`` is the file's path on this machine.

    Raises:
        UsageError: nothing matches.
    """
    rows = [row for row in ROWS if fnmatchcase(row.variant, pattern)]
    if not rows:
        raise unknown_name("model with published weights", pattern, dict.fromkeys(row.variant for row in ROWS))
    found = [at_hand(row.variant, row.tag) for row in rows]
    return [
        {
            "name": row.variant,
            "tag": row.tag,
            "data": row.data,
            "image_size": row.image_size,
            "classes": row.classes,
            "paper_top1": row.top1,
            "licence": row.licence,
            "bytes": row.tensor_bytes,
            "file": row.file,
            "address": row.address,
            "hub_repository": row.hub,
            "at_hand": str(path) if path else None,
        }
        for row, path in zip(rows, found, strict=True)
    ]


def listing_table(rows: list[dict[str, Any]], width: int) -> Table:
    """Format :func:`listing` for a terminal of ``width`` columns."""
    is_wide = width >= WIDE
    caption = "top-1 as the papers state it, ImageNet-1K; MB of the tensors, the file is a little larger"
    caption += "" if is_wide else "".join(f"\n{tag}: {data}" for tag, data in DATA.items())
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, caption=caption, caption_justify="left")
    for name in ("model", "tag", "data") if is_wide else ("model", "tag"):
        table.add_column(name, no_wrap=True)
    for name in ("px", "paper's\ntop-1 %", "MB"):
        table.add_column(name, justify="right")
    table.add_column("licence", no_wrap=True)
    table.add_column("here")
    for row in rows:
        top1 = "-" if row["paper_top1"] is None else f"{row['paper_top1']:.1f}"
        figures = (str(row["image_size"]), top1, f"{row['bytes'] / 1e6:,.0f}")
        data = (row["data"],) if is_wide else ()
        table.add_row(row["name"], row["tag"], *data, *figures, row["licence"], "yes" if row["at_hand"] else "no")
    return table
