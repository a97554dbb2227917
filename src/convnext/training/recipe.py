"""Recipes: everything that decides what a training does, as typed data returned by named functions.

A recipe's docstring is its contract: command, hardware, expected result, and whether that is the paper's or measured.
"""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from convnext.errors import UsageError, unknown_name

MACHINE_FIELDS = ("device", "workers")  # where a recipe runs, not what it does


@dataclass(frozen=True)
class Recipe:
    """A whole training.

    Attributes:
        data: digits, cifar10, cifar100, imagenet:PATH, or the path of a folder of images.
        model: a name that `convnext models` lists, or torchvision/NAME, timm/NAME.
        image_size: pixels a side.
        epochs: passes over the training images.
        batch_size: images a step; all there are, where there are fewer.
        lr: peak learning rate at a batch of lr_batch_size images; scaled in proportion to the batch.
        lr_batch_size: the batch that lr is stated for.
        min_lr: where the cosine ends, whatever the batch.
        warmup_epochs: epochs of linear growth from 0 to the peak, at most half of the training.
        weight_decay: AdamW's; none on biases, 1-d parameters and GRN.
        betas: AdamW's.
        eps: AdamW's.
        label_smoothing: probability spread over all classes.
        drop_path: stochastic depth's rate at the last block (references keep their library's).
        layer_scale: initial LayerScale; 0 for none; unset keeps the network's own (1e-6 in V1 and the roadmap).
        stem_stride: 4, or 2 or 1 for small images; unset keeps the network's own.
        augment: none, affine (turn, scale, shift), crop_flip, or rand_augment (the paper's).
        random_erasing: probability of erasing a rectangle with noise.
        mixup: mixup's alpha; 0 for none.
        cutmix: cutmix's alpha; 0 for none.
        val_fraction: part of each class to hold out where the data comes undivided.
        precision: fp32, bf16 (autocast), or auto: bf16 on a GPU that has it.
        seed: of initial weights, order, augmentation, drop path and mixing.
        device: auto (a GPU where there is one), cpu, cuda, mps.
        workers: processes that read image files; -1 for one a core, at most 8.
    """

    data: str = "digits"
    model: str = "convnext_tiny"
    image_size: int = 224
    epochs: int = 300
    batch_size: int = 128
    lr: float = 4e-3
    lr_batch_size: int = 4096
    min_lr: float = 1e-6
    warmup_epochs: float = 20
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    label_smoothing: float = 0.1
    drop_path: float = 0.1
    layer_scale: float | None = None
    stem_stride: Literal[4, 2, 1] | None = None
    augment: Literal["none", "affine", "crop_flip", "rand_augment"] = "rand_augment"
    random_erasing: float = 0.25
    mixup: float = 0.8
    cutmix: float = 1.0
    val_fraction: float = 0.2
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    seed: int = 0
    device: str = "auto"
    workers: int = -1

    def __post_init__(self) -> None:
        object.__setattr__(self, "data", self.data.rstrip("/") or self.data)  # one spelling of a folder
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, float) and not math.isfinite(value):
                raise UsageError(f"{field.name} is {value}, needs a finite number")
        for name in ("image_size", "epochs", "batch_size", "lr_batch_size"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}, needs 1 or more")
        for name in ("label_smoothing", "drop_path", "random_erasing"):
            if not 0 <= getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}, needs a number from 0 up to, not including, 1")
        for name in ("mixup", "cutmix", "min_lr", "warmup_epochs", "weight_decay", "seed"):
            if getattr(self, name) < 0:
                raise UsageError(f"{name} is {getattr(self, name)}, needs 0 or more")
        for name in ("lr", "eps"):
            if getattr(self, name) <= 0:
                raise UsageError(f"{name} is {getattr(self, name)}, needs more than 0")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise UsageError(f"betas is {self.betas}, needs two numbers from 0 up to, not including, 1")
        if not 0 < self.val_fraction < 1:
            raise UsageError(f"val_fraction is {self.val_fraction}, needs a number between 0 and 1")

    def peak_lr(self, batch_size: int) -> float:
        """The learning rate at the top of the schedule for steps of ``batch_size`` images."""
        return self.lr * batch_size / self.lr_batch_size

    def to_dict(self) -> dict[str, Any]:
        """The recipe as plain data."""
        return dataclasses.asdict(self) | {"betas": list(self.betas)}

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the result: all but the machine's fields."""
        return {name: value for name, value in self.to_dict().items() if name not in MACHINE_FIELDS}


def paper_1k(data: str) -> Recipe:
    """ImageNet-1K from scratch, as in the paper: 300 epochs at 224 px, batch 4096.

    Command: ``convnext train imagenet:PATH --recipe paper_1k``. Hardware: the paper's batch needs several GPUs.
    Expected: ConvNeXt-T 81.97 +- 0.06 without EMA (paper; not run here).
    """
    return Recipe(data=data, model="convnext_tiny", batch_size=4096)


def small(data: str) -> Recipe:
    """Small images or little data, from scratch: a finer stem, milder augmentation, a smaller network, 100 epochs.

    Command: ``convnext train FOLDER`` or ``convnext train cifar10``. Hardware: one GPU; two processor cores for a few
    hundred images. Expected: depends on the data; no figure is claimed.
    """
    is_cifar = data in ("cifar10", "cifar100")
    return Recipe(
        data=data,
        model="convnext_atto",
        image_size=32 if is_cifar else 128,
        epochs=100,
        batch_size=128 if is_cifar else 64,
        lr=1e-3,
        lr_batch_size=128,
        warmup_epochs=5,
        stem_stride=1 if is_cifar else 2,
        augment="crop_flip",
        random_erasing=0,
        mixup=0,
        cutmix=0,
    )


def digits(data: str = "digits") -> Recipe:
    """scikit-learn's handwritten digits at 32 px: the micro ConvNeXt, in seconds.

    Command: ``convnext train digits``. Hardware: two processor cores. Expected: above 97 % top-1 on the 360 held-out
    digits (measured; see ``benchmarks/results``).
    """
    return Recipe(
        data=data,
        model="roadmap_micro/separate_downsampling",
        image_size=32,
        epochs=12,
        batch_size=96,
        lr=6e-3,
        lr_batch_size=96,
        warmup_epochs=2,
        augment="affine",
        random_erasing=0,
        mixup=0,
        cutmix=0,
    )


RECIPES: dict[str, Callable[[str], Recipe]] = {"paper_1k": paper_1k, "small": small, "digits": digits}


def recipe_for(data: str, name: str | None = None) -> Recipe:
    """The recipe ``name`` for some data; without a name, the one that suits the data."""
    if name is None:
        name = "digits" if data == "digits" else "paper_1k" if data.startswith("imagenet:") else "small"
    if name not in RECIPES:
        raise unknown_name("recipe", name, RECIPES)
    return RECIPES[name](data)
