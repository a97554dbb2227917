"""An exported file as a module: prepared images in, logits out, computed by the file's own runtime."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convnext.errors import RunError, UsageError, reason
from convnext.inference.card import Card


class RuntimeModel(nn.Module):
    """The model in a file: normalised images (N, C, H, W) to logits (N, classes); inference on the CPU only.

    A file that takes uint8 images gets them restored from the normalised ones, without loss; the logarithms of its
    probabilities serve as logits.

    Args:
        path: the file.
        runtime: the package that computes it.
        card: the file's metadata.
        call: from the graph's input to its output.
        reopen: opens the file again, in another process.
    """

    def __init__(
        self,
        path: Path,
        runtime: str,
        card: Card,
        call: Callable[[Tensor], Tensor],
        reopen: Callable[[Path], nn.Module],
    ) -> None:
        super().__init__()
        self.path, self.runtime, self.card, self.call, self.reopen = path, runtime, card, call, reopen
        self.training = False

    def forward(self, images: Tensor) -> Tensor:
        """Logits of any number of images, on their device; features where there are no classes.

        Raises:
            UsageError: the graph does not take images of this shape.
            RunError: the runtime fails.
        """
        card = self.card
        sides = images.shape[2:]
        right = set(sides) == {card.size} if card.size else min(sides, default=0) >= card.smallest
        if images.ndim != 4 or images.shape[1] != card.channels or not right:
            size = f"{card.size}, {card.size}" if card.size else f"H, W from {card.smallest} on"
            raise UsageError(
                f"{self.path} takes images (N, {card.channels}, {size}), {tuple(images.shape)} arrived: "
                "prepare them by its preprocessing"
            )
        with torch.inference_mode():
            outputs = self.outputs(input_of(images, card))
            if card.with_preprocessing:
                outputs = outputs.clamp_min(torch.finfo(torch.float32).tiny).log()
            outputs = outputs.to(images.device)
        return outputs if torch.is_inference_mode_enabled() else outputs.clone()

    def outputs(self, x: Tensor) -> Tensor:
        """The graph's outputs of any number of inputs; a graph of a fixed batch gets the last one padded with zeros."""
        count = self.card.batch
        if not len(x):
            return torch.zeros(0, max(1, len(self.card.classes)))
        try:
            if count is None:
                return self.call(x)
            batches = x.split(count)
            padding = (0, 0) * (x.ndim - 1) + (0, count - len(batches[-1]))
            return torch.cat([self.call(batch) for batch in (*batches[:-1], F.pad(batches[-1], padding))])[: len(x)]
        except Exception as error:  # each runtime has its own exceptions
            raise RunError(f"{self.runtime} could not compute {self.path} ({reason(error)})") from error

    def train(self, mode: bool = True) -> "RuntimeModel":
        """Refuse training mode."""
        if mode:
            raise UsageError(f"{self.path} is exported, it only infers: train the model that it was exported from")
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return self.reopen, (self.path,)

    def extra_repr(self) -> str:
        return f"{self.path}, {self.runtime}, {self.card.precision}"


def input_of(images: Tensor, card: Card) -> Tensor:
    """The graph's input for normalised images (N, C, H, W): themselves, or the uint8 images (N, H, W, 3) they were."""
    images = images.to("cpu", torch.float32)
    if not card.with_preprocessing:
        return images.contiguous()
    mean, std = (torch.tensor(value).view(1, -1, 1, 1) for value in (card.preprocessing.mean, card.preprocessing.std))
    pixels = ((images * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)
    return pixels.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).contiguous()
