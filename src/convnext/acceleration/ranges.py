"""What int8 rounds by: the ranges that layers' inputs take on calibration images, and the scales of weights."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

CALIBRATION_BATCH = 8
GELU_MINIMUM = -0.17  # the least value that GELU has


@dataclass
class Range:
    """The least and greatest value that a layer's input took."""

    low: float = field(default=0.0)  # zero is always inside: it is what padding and ReLU give
    high: float = field(default=0.0)

    def see(self, x: Tensor) -> None:
        """Widen the range to hold ``x``."""
        if x.numel():
            low, high = x.aminmax()
            self.low, self.high = min(self.low, low.item()), max(self.high, high.item())

    @property
    def scale(self) -> float:
        """The step between two of the 256 values."""
        return max(self.high - self.low, 1e-12) / 255

    @property
    def zero_point(self) -> int:
        """The value that stands for zero, 0 to 255."""
        return round(-self.low / self.scale)

    def behind_gelu(self) -> "Range":
        """The same where the values are GELU's, of which some are lower than any that was seen."""
        return Range(max(self.low, GELU_MINIMUM), self.high)


def observe(network: nn.Module, layers: Iterable[nn.Module], images: Tensor) -> dict[nn.Module, Range]:
    """The ranges of the inputs of the layers that the forward pass calls."""
    ranges: dict[nn.Module, Range] = {}

    def see(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        ranges.setdefault(layer, Range()).see(inputs[0])

    handles = [layer.register_forward_pre_hook(see) for layer in layers]
    try:
        with torch.inference_mode():
            for batch in images.float().split(CALIBRATION_BATCH):
                network(batch)
    finally:
        for handle in handles:
            handle.remove()
    return ranges


def rounded_weight(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A weight (outputs, inputs) in int8, -127 to 127, and the scale of each output, (outputs)."""
    scale = weight.abs().amax(1).clamp_min(1e-12) / 127
    return (weight / scale[:, None]).round().to(torch.int8), scale
