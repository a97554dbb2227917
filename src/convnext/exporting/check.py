"""Comparison of an exported file, in its runtime, with its model: outputs on real images, and speed."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from convnext.acceleration.candidates import TOLERANCE
from convnext.acceleration.clock import alternate, quartiles, times_as_fast
from convnext.acceleration.int8 import agreement
from convnext.errors import RunError
from convnext.inference.runtime import RuntimeModel

MIN_AGREEMENT = 0.95  # of int8's first class with the model's
BATCH = 8  # where the file takes any batch
ROUNDS, SECONDS = 7, 6.0  # limits of the speed measurement


@dataclass(frozen=True)
class CheckResult:
    """Result of the comparison.

    Attributes:
        images: number of images compared.
        difference: largest difference of two outputs over the largest output; of probabilities if the file gives these.
        agreement: share of the images with the same first class, 0 to 1; None for features.
        images_per_second: of the file.
        original_images_per_second: of the model, in interleaved runs.
        times_as_fast: the file's speedup over the model, the median of the rounds.
    """

    images: int
    difference: float
    agreement: float | None
    images_per_second: float
    original_images_per_second: float
    times_as_fast: float


def check(model: nn.Module, exported: RuntimeModel, images: Tensor) -> CheckResult:
    """Compare an opened file with the model that it was exported from, on prepared images (N, C, H, W).

    Raises:
        RunError: they differ by more than the precision explains; with the figures.
    """
    card = exported.card
    with torch.inference_mode():
        pairs = [(in_batches(model, images), in_batches(exported, images))]
        if not card.batch:
            pairs.append((model(images[:1]), exported(images[:1])))
        if not card.size:
            height, width = images.shape[2:]
            other = images[:2].repeat(1, 1, 2, 2)[:, :, : height * 3 // 2, : width * 5 // 4]
            pairs.append((model(other), exported(other)))
        if card.with_preprocessing:
            pairs = [(expected.softmax(1), actual.softmax(1)) for expected, actual in pairs]
        largest = max(expected.abs().max().item() for expected, _ in pairs)
        difference = max((expected - actual).abs().max().item() for expected, actual in pairs) / max(largest, 1e-30)
        same = agreement(*pairs[0]) if card.classes else None
        require_equal(exported, difference, same, len(images))
        batch = images[: card.batch or BATCH]
        calls = {"exported": lambda: exported(batch), "original": lambda: model(batch)}
        times = alternate(calls, ROUNDS, warm_up=1, seconds=SECONDS)
    rate, original = (len(batch) / quartiles(times[name])[1] for name in calls)
    speedup = times_as_fast(times["exported"], times["original"])
    return CheckResult(len(images), difference, same, rate, original, speedup)


def require_equal(exported: RuntimeModel, difference: float, same: float | None, images: int) -> None:
    """Raise RunError if a file differs from its model by more than its precision explains."""
    card = exported.card
    figures = f"largest difference {difference:.2g} of the largest output"
    if same is not None:
        figures += f", first class the same on {100 * same:.1f} % of {images} images"
    if card.precision == "int8":
        is_equal, needed = same is not None and same >= MIN_AGREEMENT, f"{100 * MIN_AGREEMENT:.0f} % needed"
    else:
        is_equal, needed = difference <= TOLERANCE[card.precision], f"{TOLERANCE[card.precision]:g} allowed"
    if not is_equal:  # NaN too
        raise RunError(
            f"the exported file does not compute what the model computes in {exported.runtime} ({figures}; {needed}): "
            "it was removed. Pass another --precision or --format"
        )


def in_batches(model: nn.Module, images: Tensor) -> Tensor:
    """Return the outputs of many images."""
    return torch.cat([model(batch) for batch in images.split(BATCH)])
