"""The settings that a network is tried in: as it comes, in channels_last memory, compiled, with kernels and without."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convnext.acceleration.accelerate import accelerate
from convnext.benchmark.case import OURS, Mode, Precision
from convnext.device import autocast_for

Call = Callable[[], Any]


@dataclass(frozen=True)
class Setting:
    """How a network is prepared.

    Attributes:
        channels_last: weights and images in channels_last memory, else as they come.
        compiled: by torch.compile; for inference with freezing, which packs the weights.
        kernels: with this package's kernels in training; other libraries' networks have none.
        prepare: makes the call for inference from network, images and precision in a way of its own.
    """

    channels_last: bool = True
    compiled: bool = False
    kernels: bool = False
    prepare: Callable[[nn.Module, Tensor, Precision], Call] | None = None


PLAIN = {
    "eager": Setting(channels_last=False),
    "channels_last": Setting(),
    "compiled": Setting(compiled=True),
}
KERNELS = {
    "eager+kernels": Setting(channels_last=False, kernels=True),
    "channels_last+kernels": Setting(kernels=True),
    "compiled+kernels": Setting(compiled=True, kernels=True),
}


def optimized(model: nn.Module, images: Tensor, precision: Precision) -> Call:
    """The network as :func:`convnext.accelerate` makes it."""
    return partial(accelerate(model, images, precision=precision), images)


def as_it_is(model: nn.Module, images: Tensor, precision: Precision) -> Call:  # noqa: ARG001
    """An exported file, whose precision and layout are its own."""
    return torch.inference_mode()(partial(model, images))


OURS_ALONE = {"optimized": Setting(kernels=True, prepare=optimized)}  # ways to inference beside the plain ones
EXPORTED = {"exported": Setting(channels_last=False, prepare=as_it_is)}  # the one way to run an exported file
SETTINGS = PLAIN | KERNELS | OURS_ALONE | EXPORTED


def settings_for(library: str, mode: Mode, compiled: bool) -> list[str]:
    """The names of the settings that a library's network is tried in; ``compiled`` allows those that compile.

    For every other library these are all; in training, this package's network is tried with its kernels, and without
    them in channels_last memory.
    """
    if library != OURS:
        names = [*PLAIN]
    else:
        names = [*PLAIN, *OURS_ALONE] if mode == "inference" else [*KERNELS, "channels_last"]
    return [name for name in names if compiled or not SETTINGS[name].compiled]


def inference(model: nn.Module, images: Tensor, precision: Precision, setting: Setting) -> Call:
    """A call that computes the logits of ``images``; in bf16 weights and images are bf16 throughout."""
    model = model.eval().requires_grad_(False)
    if setting.prepare:
        return setting.prepare(model, images, precision)
    if precision == "bf16":
        model, images = model.bfloat16(), images.bfloat16()
    model, images = laid_out(model, images, setting)
    network = torch.compile(model, dynamic=False, options={"freezing": True}) if setting.compiled else model
    return torch.inference_mode()(partial(network, images))


def training(model: nn.Module, images: Tensor, labels: Tensor, precision: Precision, setting: Setting) -> Call:
    """A call that trains by one step: forward (bf16 by autocast), cross-entropy, backward, fused AdamW."""
    model, images = laid_out(model.train(), images, setting)
    if setting.kernels:
        accelerate(model, training=True)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    network = torch.compile(model, dynamic=False) if setting.compiled else model

    def step() -> None:
        with autocast_for(precision, images.device):
            loss = F.cross_entropy(network(images).float(), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def laid_out(model: nn.Module, images: Tensor, setting: Setting) -> tuple[nn.Module, Tensor]:
    """Weights and images in the memory layout of a setting."""
    if not setting.channels_last:
        return model, images
    model = model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    return model, images.contiguous(memory_format=torch.channels_last)
