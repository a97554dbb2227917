"""The authors' checkpoints as data."""

from dataclasses import dataclass
from functools import cache

import torch

from convnext.errors import UsageError, unknown_name
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


@dataclass(frozen=True)
class Published:
    """A published checkpoint.

    Attributes:
        variant: the network's name.
        tag: what it was trained on: ``in1k``, ``in22k``, ``in22k_in1k`` (pre-trained, then fine-tuned), with ``_384``
            or ``_512`` for another image size than 224; ``fcmae`` for masked pre-training without labels.
        file: the file's name.
        top1: ImageNet-1K top-1 accuracy in %, as its authors state it; None where it has no 1000 classes.
        sha256: of the file, where it is known.
        bytes: of the file, where it is known.
    """

    variant: str
    tag: str
    file: str
    top1: float | None
    sha256: str | None = None
    bytes: int | None = None

    @property
    def kind(self) -> str:
        """The tag without the image size."""
        return self.tag.removesuffix(f"_{self.image_size}")

    @property
    def is_v2(self) -> bool:
        """Whether it is a ConvNeXt V2."""
        return self.variant.startswith("convnextv2_")

    @property
    def data(self) -> str:
        """What it was trained on."""
        return DATA[self.kind]

    @property
    def classes(self) -> int:
        """Classes of its classifier; 0 where it has none."""
        return CLASSES.get(self.kind, 1000)

    @property
    def image_size(self) -> int:
        """Pixels a side of the images that it was trained on."""
        size = self.tag.rpartition("_")[2]
        return int(size) if size.isdigit() else 224

    @property
    def licence(self) -> str:
        """The SPDX name of the weights' licence."""
        return "CC-BY-NC-4.0" if self.is_v2 else "MIT"

    @property
    def address(self) -> str:
        """Where its authors publish it."""
        return f"{BASE}/{FOLDERS[self.kind]}/{self.file}" if self.is_v2 else f"{BASE}/{self.file}"

    @property
    def hub(self) -> str | None:
        """The repository of timm's copy on the Hugging Face hub; None where timm has none."""
        if self.variant.startswith("convnext_isotropic_") or (not self.is_v2 and self.tag == "in1k_384"):
            return None
        tag = (TIMM_V2_TAGS if self.is_v2 else TIMM_TAGS)[self.kind]
        return f"timm/{self.variant}.{tag}{self.tag.removeprefix(self.kind)}"

    @property
    def tensor_bytes(self) -> int:
        """Bytes of its tensors, counted from the network: the file is a little larger, and never smaller."""
        return tensor_bytes(self.variant, self.classes)

    @property
    def notes(self) -> tuple[str, ...]:
        """What has to be said to who uses it."""
        if self.licence == "MIT":
            return ()
        return (f"{self.variant}'s {self.tag} weights are licensed under {self.licence}: for non-commercial use only",)


@cache
def tensor_bytes(variant: str, classes: int) -> int:
    """Bytes of a network's parameters in 32 bits; without classes, also without the final norm, as FCMAE leaves it."""
    with torch.device("meta"):
        model = create_model(variant, num_classes=classes)
    return sum(
        4 * tensor.numel() for name, tensor in model.named_parameters() if classes or not name.startswith("norm.")
    )


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
