"""`Recipe`: everything that decides what a training does, as typed data. Named recipes stand in `recipes.py`."""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from convnext.errors import UsageError

# Where and how a recipe runs, not its result: a run may resume with other values.
MACHINE_FIELDS = (
    "accumulate",
    "checkpoint_activations",
    "checkpoint_minutes",
    "compile",
    "device",
    "fuse",
    "track",
    "workers",
)


@dataclass(frozen=True)
class Recipe:
    """A whole training.

    Attributes:
        data: digits, cifar10, cifar100, imagenet:PATH, or the path of a folder of images.
        model: a name that `convnext models` lists, or torchvision/NAME, timm/NAME.
        weights: to start from: a weights file, a run folder, or the tag of a published checkpoint (in1k, in22k, ...);
            None for random weights. Another number of classes gets a new head.
        image_size: pixels a side, in training.
        eval_image_size: pixels a side in evaluation; None for image_size.
        epochs: passes over the training images.
        batch_size: images per step, over all ranks and micro-batches; all images, where there are fewer.
        accumulate: micro-batches per step and rank, to save memory; their gradients are summed.
        lr: peak learning rate for a batch of lr_batch_size images; scaled by batch_size / lr_batch_size.
        lr_batch_size: the batch, in images, that lr is stated for.
        min_lr: learning rate at the end of the cosine; not scaled.
        warmup_epochs: epochs of linear growth from 0 to the peak rate, at most half of all epochs.
        weight_decay: AdamW's; none on biases, 1-d parameters and GRN.
        betas: AdamW's decay of the running mean of the gradient, and of its square.
        eps: AdamW's, added to the denominator.
        layer_decay: factor on the learning rate for each group of layers further from the head; 1 for none.
        layer_groups: of layer_decay: group, the paper's 12 groups; or block, one group per block.
        clip_grad: maximum norm of the gradient; 0 for no limit.
        ema_decay: decay per step of the EMA of the weights, which is then evaluated and saved as best; 0 for none. Not
            for models with BatchNorm.
        loss: cross_entropy, or bce (binary cross-entropy over one-hot or mixed targets).
        label_smoothing: probability (0 to 1) taken from the label and spread over all classes.
        drop_path: rate of stochastic depth at the last block (references keep their library's).
        layer_scale: initial LayerScale; 0 for none; None for the model's own (1e-6 in V1 and the roadmap).
        head_init_scale: factor on the classifier's initial weights and biases (references keep theirs).
        stem_stride: 4, or 2 or 1 for small images; None for the model's own.
        augment: none, affine (rotate, scale, shift), crop_flip, rand_augment (the paper's), or trivial_augment.
        pipeline: exact (timm's operations on PIL images) or fast (the same draws, on images decoded smaller).
        random_erasing: probability of erasing a rectangle of an image with noise.
        mixup: mixup's alpha; 0 for none.
        cutmix: cutmix's alpha; 0 for none.
        repeated_augmentation: times that each drawn image comes, augmented anew; an epoch keeps its length.
        sync_batch_norm: compute BatchNorm's statistics over all ranks (GPUs only).
        val_fraction: fraction of each class (0 to 1) to hold out where the data comes undivided.
        precision: fp32, bf16 or fp16 (autocast; fp16 with loss scaling), or auto: bf16 on a GPU that has it.
        seed: of initial weights, order, augmentation, drop path and mixing.
        checkpoint_activations: recompute each block in the backward pass: less memory for a second forward pass.
        checkpoint_minutes: minutes between two checkpoints within an epoch; there is one after each epoch as well.
        compile: torch.compile the model; the first steps take longer.
        fuse: compute the blocks by fused kernels (Triton, on a GPU): less memory; results differ by rounding.
        track: log to tensorboard, wandb or both, separated by a comma, besides metrics.jsonl; each needs its package.
        device: auto (a GPU where there is one), cpu, cuda, mps or xpu.
        workers: dataloader workers per rank; 0 for none, -1 for its share of the cores, at most 8.
    """

    data: str = "digits"
    model: str = "convnext_tiny"
    weights: str | None = None
    image_size: int = 224
    eval_image_size: int | None = None
    epochs: int = 300
    batch_size: int = 128
    accumulate: int = 1
    lr: float = 4e-3
    lr_batch_size: int = 4096
    min_lr: float = 1e-6
    warmup_epochs: float = 20
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    layer_decay: float = 1.0
    layer_groups: Literal["group", "block"] = "group"
    clip_grad: float = 0.0
    ema_decay: float = 0.0
    loss: Literal["cross_entropy", "bce"] = "cross_entropy"
    label_smoothing: float = 0.1
    drop_path: float = 0.1
    layer_scale: float | None = None
    head_init_scale: float = 1.0
    stem_stride: Literal[4, 2, 1] | None = None
    augment: Literal["none", "affine", "crop_flip", "rand_augment", "trivial_augment"] = "rand_augment"
    pipeline: Literal["exact", "fast"] = "exact"
    random_erasing: float = 0.25
    mixup: float = 0.8
    cutmix: float = 1.0
    repeated_augmentation: int = 1
    sync_batch_norm: bool = False
    val_fraction: float = 0.2
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    seed: int = 0
    checkpoint_activations: bool = False
    checkpoint_minutes: float = 10.0
    compile: bool = False
    fuse: bool = False
    track: str = ""
    device: str = "auto"
    workers: int = -1

    def __post_init__(self) -> None:
        object.__setattr__(self, "data", self.data.rstrip("/") or self.data)  # one spelling of a folder
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, float) and not math.isfinite(value):
                raise UsageError(f"{field.name} is {value}, needs a finite number")
        positive = ("image_size", "epochs", "batch_size", "accumulate", "lr_batch_size", "repeated_augmentation")
        self.check(positive, "1 or more", lambda value: value >= 1)
        self.check(("eval_image_size",), "1 or more", lambda value: value is None or value >= 1)
        parts = ("label_smoothing", "drop_path", "random_erasing", "ema_decay")
        self.check(parts, "a number from 0 up to, not including, 1", lambda value: 0 <= value < 1)
        counts = ("mixup", "cutmix", "min_lr", "warmup_epochs", "weight_decay", "seed", "clip_grad")
        self.check((*counts, "checkpoint_minutes"), "0 or more", lambda value: value >= 0)
        self.check(("lr", "eps", "head_init_scale"), "more than 0", lambda value: value > 0)
        self.check(("layer_decay",), "a number above 0, up to 1", lambda value: 0 < value <= 1)
        betas = "two numbers from 0 up to, not including, 1"
        self.check(("betas",), betas, lambda value: all(0 <= beta < 1 for beta in value))
        self.check(("val_fraction",), "a number between 0 and 1", lambda value: 0 < value < 1)

    def check(self, names: tuple[str, ...], needs: str, holds: Callable[[Any], bool]) -> None:
        """Refuse a value that is out of range."""
        for name in names:
            if not holds(getattr(self, name)):
                raise UsageError(f"{name} is {getattr(self, name)}, needs {needs}")

    def peak_lr(self, batch_size: int) -> float:
        """The learning rate at the top of the schedule for steps of ``batch_size`` images."""
        return self.lr * batch_size / self.lr_batch_size

    def to_dict(self) -> dict[str, Any]:
        """The recipe as plain data."""
        return dataclasses.asdict(self) | {"betas": list(self.betas)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Recipe":
        """The recipe that :meth:`to_dict` wrote.

        Raises:
            UsageError: it has fields that this version does not know.
        """
        strangers = [name for name in values if name not in {field.name for field in dataclasses.fields(cls)}]
        if strangers:
            raise UsageError(f"the recipe has fields that this version does not know: {', '.join(strangers)}")
        values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
        return cls(**values)

    @property
    def evaluation_size(self) -> int:
        """Pixels a side in evaluation."""
        return self.eval_image_size or self.image_size

    @property
    def identity(self) -> dict[str, Any]:
        """The fields that decide the result: all but the machine's."""
        values = {name: value for name, value in self.to_dict().items() if name not in MACHINE_FIELDS}
        if Path(self.data).is_dir():
            values["data"] = str(Path(self.data).resolve())  # in any spelling
        return values
