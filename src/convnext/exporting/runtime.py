"""An exported file as a network: prepared images in, logits out, computed by the file's own runtime."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from convnext.errors import RunError, UsageError, reason
from convnext.exporting.card import Card
from convnext.exporting.graph import input_of
from convnext.exporting.job_types import Call


class RuntimeNetwork(nn.Module):
    """The network in a file: images (N, C, H, W), normalised, to logits (N, classes); on the processor, to infer with.

    A file that takes pictures gets them made of the images again, without loss, and its probabilities come out as their
    logarithms, which are logits of the same.

    Args:
        path: the file.
        runtime: what computes it.
        card: what the file says of itself.
        call: from the graph's input to its output.
        reopen: opens the file again, in another process.
    """

    def __init__(self, path: Path, runtime: str, card: Card, call: Call, reopen: Callable[[Path], nn.Module]) -> None:
        super().__init__()
        self.path, self.runtime, self.card, self.call, self.reopen = path, runtime, card, call, reopen
        self.training = False

    def forward(self, images: Tensor) -> Tensor:
        """Logits of any number of images, on their device; without classes, features."""
        self.check(images)
        with torch.inference_mode():
            outputs = self.outputs(input_of(images, self.card))
            if self.card.with_preprocessing:
                outputs = outputs.clamp_min(torch.finfo(torch.float32).tiny).log()
            outputs = outputs.to(images.device)
        return outputs if torch.is_inference_mode_enabled() else outputs.clone()

    def check(self, images: Tensor) -> None:
        """Refuse images that the graph does not take.

        Raises:
            UsageError: with what it takes.
        """
        card = self.card
        size = f"{card.size}, {card.size}" if card.size else f"H, W from {card.smallest} on"
        fits = images.ndim == 4 and images.shape[1] == card.channels
        if fits:
            sides = images.shape[2:]
            fits = set(sides) == {card.size} if card.size else min(sides) >= card.smallest
        if not fits:
            raise UsageError(
                f"{self.path} takes images (N, {card.channels}, {size}), {tuple(images.shape)} arrived: "
                "prepare them by its preprocessing"
            )

    def outputs(self, x: Tensor) -> Tensor:
        """What the graph gives for any number of inputs; one for a fixed number gets them in turns, the last filled."""
        count = self.card.batch
        if not len(x):
            return torch.zeros(0, max(1, len(self.card.classes)))
        try:
            if count is None:
                return self.call(x)
            return torch.cat([self.call(filled(some, count))[: len(some)] for some in x.split(count)])
        except Exception as error:  # of a runtime, whose kinds are many
            raise RunError(f"{self.runtime} could not compute {self.path} ({reason(error)})") from error

    def train(self, mode: bool = True) -> "RuntimeNetwork":
        """Refused, but for evaluation mode.

        Raises:
            UsageError: ``mode`` is true.
        """
        if mode:
            raise UsageError(f"{self.path} is exported, it only infers: train the network that it was made of")
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return self.reopen, (self.path,)

    def extra_repr(self) -> str:
        return f"{self.path}, {self.runtime}, {self.card.precision}"


def filled(x: Tensor, count: int) -> Tensor:
    """Inputs with zeros behind them, ``count`` in all."""
    if len(x) == count:
        return x
    whole = x.new_zeros(count, *x.shape[1:])
    whole[: len(x)] = x
    return whole
