"""Whether a file computes what the network computes: on real images, in the file's runtime; and how fast."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from convnext.acceleration.candidates import TOLERANCE
from convnext.acceleration.clock import alternate, quartiles, times_as_fast
from convnext.acceleration.int8 import agreement
from convnext.errors import RunError
from convnext.inference.runtime import RuntimeModel

LEAST_AGREEMENT = 0.95  # of int8's first class with the network's
BATCH = 8  # images at a time, where the file takes any number
ROUNDS, SECONDS = 7, 6.0  # of the measurement of speed, at most


@dataclass(frozen=True)
class Checked:
    """What a comparison found.

    Attributes:
        images: how many were compared.
        difference: the largest between two outputs, as a part of the largest output; of probabilities, where the file
            gives these.
        agreement: the part of the images whose first class is the network's, 0 to 1; None for features.
        images_per_second: of the file.
        original_images_per_second: of the network, measured in turns with it.
        times_as_fast: the ratio, the median of the rounds'.
    """

    images: int
    difference: float
    agreement: float | None
    images_per_second: float
    original_images_per_second: float
    times_as_fast: float


def check(model: nn.Module, exported: RuntimeModel, images: Tensor) -> Checked:
    """Compare a file with the network that it was made of.

    Args:
        model: the network.
        exported: the file, opened.
        images: real ones (N, C, H, W), prepared.

    Raises:
        RunError: the file differs by more than its precision explains; with the figures.
    """
    card = exported.card
    with torch.inference_mode():
        pairs = [(by_batches(model, images), by_batches(exported, images))]
        if not card.batch:
            pairs.append((model(images[:1]), exported(images[:1])))
        if not card.size:
            height, width = images.shape[2:]
            other = images[:2].repeat(1, 1, 2, 2)[:, :, : height * 3 // 2, : width * 5 // 4]
            pairs.append((model(other), exported(other)))
        if card.with_preprocessing:
            pairs = [(expected.softmax(1), found.softmax(1)) for expected, found in pairs]
        largest = max(expected.abs().max().item() for expected, _ in pairs)
        difference = max((expected - found).abs().max().item() for expected, found in pairs) / max(largest, 1e-30)
        agrees = agreement(*pairs[0]) if card.classes else None
    judge(exported, difference, agrees, len(images))
    some = images[: card.batch or BATCH]
    calls = {"exported": lambda: exported(some), "original": lambda: model(some)}
    with torch.inference_mode():
        times = alternate(calls, ROUNDS, warm_up=1, seconds=SECONDS)
    ours, theirs = (len(some) / quartiles(times[name])[1] for name in calls)
    return Checked(len(images), difference, agrees, ours, theirs, times_as_fast(times["exported"], times["original"]))


def judge(exported: RuntimeModel, difference: float, agrees: float | None, images: int) -> None:
    """Refuse a file that is not the network.

    Raises:
        RunError: it differs too much.
    """
    card = exported.card
    figures = f"largest difference {difference:.2g} of the largest output"
    if agrees is not None:
        figures += f", first class the same on {100 * agrees:.1f} % of {images} images"
    if card.precision == "int8":
        good, needs = agrees is not None and agrees >= LEAST_AGREEMENT, f"{100 * LEAST_AGREEMENT:.0f} % needed"
    else:
        good, needs = difference <= TOLERANCE[card.precision], f"{TOLERANCE[card.precision]:g} allowed"
    if not good:  # NaN as well
        raise RunError(
            f"the exported file does not compute what the network computes in {exported.runtime} ({figures}; {needs}): "
            "it was removed. Take another precision or format"
        )


def by_batches(network: nn.Module, images: Tensor) -> Tensor:
    """Outputs of many images."""
    return torch.cat([network(some) for some in images.split(BATCH)])
