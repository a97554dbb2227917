"""The authors' checkpoints as data, where they may lie on this machine, and their download."""

import os
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

import torch

from convnext.errors import RunError, UsageError, unknown_name
from convnext.files import DISK_FULL, cannot_write

BASE = "https://dl.fbaipublicfiles.com/convnext"
FOLDERS = {"in1k": "convnextv2/im1k", "in22k_in1k": "convnextv2/im22k", "fcmae": "convnextv2/pt_only"}  # V2's, by tag
CLASSES = {"in22k": 21841, "fcmae": 0}  # the others have 1000


@dataclass(frozen=True)
class Published:
    """A published checkpoint.

    Attributes:
        variant: the network's name.
        tag: what it was trained on: ``in1k``, ``in22k``, ``in22k_in1k`` (pre-trained, then fine-tuned), with ``_384``
            or ``_512`` for another image size than 224; ``fcmae`` for masked pre-training without labels.
        file: the file's name.
        top1: ImageNet-1K top-1 accuracy in %, as its authors state it; None where it has no 1000 classes.
    """

    variant: str
    tag: str
    file: str
    top1: float | None

    @property
    def classes(self) -> int:
        """Classes of its classifier; 0 where it has none."""
        return CLASSES.get(self.tag, 1000)

    @property
    def image_size(self) -> int:
        """Pixels a side of the images that it was trained on."""
        size = self.tag.rpartition("_")[2]
        return int(size) if size.isdigit() else 224

    @property
    def licence(self) -> str:
        """The SPDX name of the weights' licence."""
        return "CC-BY-NC-4.0" if self.variant.startswith("convnextv2_") else "MIT"

    @property
    def address(self) -> str:
        """Where it is published."""
        if not self.variant.startswith("convnextv2_"):
            return f"{BASE}/{self.file}"
        return f"{BASE}/{FOLDERS[self.tag.removesuffix(f'_{self.image_size}')]}/{self.file}"

    @property
    def notes(self) -> tuple[str, ...]:
        """What has to be said to who uses it."""
        if self.licence == "MIT":
            return ()
        return (f"{self.file} is licensed under {self.licence}: for non-commercial use only",)


ROWS = (
    Published("convnext_tiny", "in1k", "convnext_tiny_1k_224_ema.pth", 82.1),
    Published("convnext_small", "in1k", "convnext_small_1k_224_ema.pth", 83.1),
    Published("convnext_base", "in1k", "convnext_base_1k_224_ema.pth", 83.8),
    Published("convnext_base", "in1k_384", "convnext_base_1k_384.pth", 85.1),
    Published("convnext_large", "in1k", "convnext_large_1k_224_ema.pth", 84.3),
    Published("convnext_large", "in1k_384", "convnext_large_1k_384.pth", 85.5),
    Published("convnext_tiny", "in22k", "convnext_tiny_22k_224.pth", None),
    Published("convnext_small", "in22k", "convnext_small_22k_224.pth", None),
    Published("convnext_base", "in22k", "convnext_base_22k_224.pth", None),
    Published("convnext_large", "in22k", "convnext_large_22k_224.pth", None),
    Published("convnext_xlarge", "in22k", "convnext_xlarge_22k_224.pth", None),
    Published("convnext_tiny", "in22k_in1k", "convnext_tiny_22k_1k_224.pth", 82.9),
    Published("convnext_small", "in22k_in1k", "convnext_small_22k_1k_224.pth", 84.6),
    Published("convnext_base", "in22k_in1k", "convnext_base_22k_1k_224.pth", 85.8),
    Published("convnext_large", "in22k_in1k", "convnext_large_22k_1k_224.pth", 86.6),
    Published("convnext_xlarge", "in22k_in1k", "convnext_xlarge_22k_1k_224_ema.pth", 87.0),
    Published("convnext_tiny", "in22k_in1k_384", "convnext_tiny_22k_1k_384.pth", 84.1),
    Published("convnext_small", "in22k_in1k_384", "convnext_small_22k_1k_384.pth", 85.8),
    Published("convnext_base", "in22k_in1k_384", "convnext_base_22k_1k_384.pth", 86.8),
    Published("convnext_large", "in22k_in1k_384", "convnext_large_22k_1k_384.pth", 87.5),
    Published("convnext_xlarge", "in22k_in1k_384", "convnext_xlarge_22k_1k_384_ema.pth", 87.8),
    Published("convnext_isotropic_small", "in1k", "convnext_iso_small_1k_224_ema.pth", 78.7),
    Published("convnext_isotropic_base", "in1k", "convnext_iso_base_1k_224_ema.pth", 82.0),
    Published("convnext_isotropic_large", "in1k", "convnext_iso_large_1k_224_ema.pth", 82.6),
    Published("convnextv2_atto", "in1k", "convnextv2_atto_1k_224_ema.pt", 76.7),
    Published("convnextv2_femto", "in1k", "convnextv2_femto_1k_224_ema.pt", 78.5),
    Published("convnextv2_pico", "in1k", "convnextv2_pico_1k_224_ema.pt", 80.3),
    Published("convnextv2_nano", "in1k", "convnextv2_nano_1k_224_ema.pt", 81.9),
    Published("convnextv2_tiny", "in1k", "convnextv2_tiny_1k_224_ema.pt", 83.0),
    Published("convnextv2_base", "in1k", "convnextv2_base_1k_224_ema.pt", 84.9),
    Published("convnextv2_large", "in1k", "convnextv2_large_1k_224_ema.pt", 85.8),
    Published("convnextv2_huge", "in1k", "convnextv2_huge_1k_224_ema.pt", 86.3),
    Published("convnextv2_nano", "in22k_in1k", "convnextv2_nano_22k_224_ema.pt", 82.1),
    Published("convnextv2_tiny", "in22k_in1k", "convnextv2_tiny_22k_224_ema.pt", 83.9),
    Published("convnextv2_base", "in22k_in1k", "convnextv2_base_22k_224_ema.pt", 86.8),
    Published("convnextv2_large", "in22k_in1k", "convnextv2_large_22k_224_ema.pt", 87.3),
    Published("convnextv2_nano", "in22k_in1k_384", "convnextv2_nano_22k_384_ema.pt", 83.4),
    Published("convnextv2_tiny", "in22k_in1k_384", "convnextv2_tiny_22k_384_ema.pt", 85.1),
    Published("convnextv2_base", "in22k_in1k_384", "convnextv2_base_22k_384_ema.pt", 87.7),
    Published("convnextv2_large", "in22k_in1k_384", "convnextv2_large_22k_384_ema.pt", 88.2),
    Published("convnextv2_huge", "in22k_in1k_384", "convnextv2_huge_22k_384_ema.pt", 88.7),
    Published("convnextv2_huge", "in22k_in1k_512", "convnextv2_huge_22k_512_ema.pt", 88.9),
    Published("convnextv2_atto", "fcmae", "convnextv2_atto_1k_224_fcmae.pt", None),
    Published("convnextv2_femto", "fcmae", "convnextv2_femto_1k_224_fcmae.pt", None),
    Published("convnextv2_pico", "fcmae", "convnextv2_pico_1k_224_fcmae.pt", None),
    Published("convnextv2_nano", "fcmae", "convnextv2_nano_1k_224_fcmae.pt", None),
    Published("convnextv2_tiny", "fcmae", "convnextv2_tiny_1k_224_fcmae.pt", None),
    Published("convnextv2_base", "fcmae", "convnextv2_base_1k_224_fcmae.pt", None),
    Published("convnextv2_large", "fcmae", "convnextv2_large_1k_224_fcmae.pt", None),
    Published("convnextv2_huge", "fcmae", "convnextv2_huge_1k_224_fcmae.pt", None),
)
PUBLISHED = {(row.variant, row.tag): row for row in ROWS}


def published(variant: str, tag: str) -> Published:
    """The checkpoint of a network by its tag.

    Raises:
        UsageError: there is none; the message lists what there is.
    """
    tags = tags_of(variant)
    if not tags:
        variants = sorted({row.variant for row in ROWS})
        raise UsageError(f"no published weights {tag!r} for {variant}: there are some for {', '.join(variants)}")
    if tag not in tags:
        raise unknown_name(f"published weights of {variant}", tag, tags)
    return PUBLISHED[variant, tag]


def tags_of(variant: str) -> list[str]:
    """The tags of a network's published checkpoints."""
    return [row.tag for row in ROWS if row.variant == variant]


def at_hand(variant: str, tag: str | None = None) -> Path | None:
    """A published checkpoint that lies on this machine under its official name, or None.

    Looked for in ``CONVNEXT_WEIGHTS``, in torch hub's folder, and in ``convnext/weights`` of the user's cache.

    Args:
        variant: a network's name.
        tag: which checkpoint; without it the first of the network's that is found, in the order of ``PUBLISHED``.
    """
    for wanted in tags_of(variant) if tag is None else [tag]:
        row = published(variant, wanted)
        for folder in (weights_cache(), Path(torch.hub.get_dir()) / "checkpoints", user_cache()):
            if (folder / row.file).is_file():
                return folder / row.file
    return None


def fetch(variant: str, tag: str) -> Path:
    """A published checkpoint's file: the one at hand, or downloaded once, with a bar on stderr.

    Raises:
        UsageError: there is no such checkpoint.
        RunError: it cannot be downloaded; the message has address, file and folder.
    """
    row = published(variant, tag)
    if found := at_hand(variant, tag):
        return found
    path = weights_cache() / row.file
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(row.address, str(path))
    except (OSError, HTTPException) as error:
        if isinstance(error, OSError) and (error.errno in DISK_FULL or isinstance(error, PermissionError)):
            raise cannot_write(path, error, 0) from error
        raise RunError(
            f"cannot download {row.address} ({error}): get {row.file} from there on another machine and put it into "
            f"{path.parent}, or set CONVNEXT_WEIGHTS to the folder that has it"
        ) from error
    return path


def weights_cache() -> Path:
    """The folder for downloaded weights: ``CONVNEXT_WEIGHTS``, or ``convnext/weights`` in the user's cache."""
    return Path(os.environ["CONVNEXT_WEIGHTS"]) if "CONVNEXT_WEIGHTS" in os.environ else user_cache()


def user_cache() -> Path:
    """``convnext/weights`` in the user's cache."""
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "convnext" / "weights"
