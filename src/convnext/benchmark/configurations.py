"""The configurations to compare: one model of one library in one mode, precision, batch size and setting each."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convnext.acceleration.accelerate import accelerate
from convnext.device import autocast_for

Call = Callable[[], Any]
Mode = Literal["inference", "training"]
Precision = Literal["fp32", "bf16"]
OURS, CEILING = "convnext", "torch"  # libraries: this package, and the matrix products that are the ceiling


@dataclass(frozen=True)
class Configuration:
    """One configuration, which a process of its own measures.

    Attributes:
        name: the model, as the user named it.
        library: the library of the model; CEILING for matrix products in its place.
        mode: inference or training.
        precision: fp32 or bf16, in training by autocast; of an exported file its own, such as int8.
        batch: images per call.
        setting: a name of :data:`SETTINGS`.
        image_size: height and width of the images in pixels.
        in_channels: channels of the images.
        device: torch's name of it.
        file: the pickled model; None where it is built by its name.
    """

    name: str
    library: str
    mode: Mode
    precision: Precision
    batch: int
    setting: str
    image_size: int = 224
    in_channels: int = 3
    device: str = "cpu"
    file: str | None = None

    def __str__(self) -> str:
        if self.library == CEILING:
            return f"matrix products, {self.precision}"
        model = self.name if self.name.startswith(f"{self.library}/") else f"{self.library} {self.name}"
        return f"{model}, {self.mode}, {self.precision}, batch {self.batch}, {self.setting}"


@dataclass(frozen=True)
class Setting:
    """How a model is executed.

    Attributes:
        channels_last: weights and images in channels_last memory, else contiguous.
        compiled: by torch.compile; for inference with freezing, which packs the weights.
        kernels: with this package's kernels in training; models of other libraries have none.
        prepare: makes the call for inference from model, images and precision in another way.
    """

    channels_last: bool = True
    compiled: bool = False
    kernels: bool = False
    prepare: Callable[[nn.Module, Tensor, Precision], Call] | None = None


def optimized(model: nn.Module, images: Tensor, precision: Precision) -> Call:
    """Run the model as :func:`convnext.accelerate` returns it."""
    return partial(accelerate(model, images, precision=precision), images)


def exported(model: nn.Module, images: Tensor, precision: Precision) -> Call:  # noqa: ARG001
    """Run an exported file, whose precision and memory layout are fixed."""
    return torch.inference_mode()(partial(model, images))


PLAIN = {"eager": Setting(channels_last=False), "channels_last": Setting(), "compiled": Setting(compiled=True)}
KERNELS = {
    "eager+kernels": Setting(channels_last=False, kernels=True),
    "channels_last+kernels": Setting(kernels=True),
    "compiled+kernels": Setting(compiled=True, kernels=True),
}
OPTIMIZED = {"optimized": Setting(kernels=True, prepare=optimized)}
EXPORTED = {"exported": Setting(channels_last=False, prepare=exported)}
SETTINGS = PLAIN | KERNELS | OPTIMIZED | EXPORTED


def settings_for(library: str, mode: Mode, compiled: bool) -> list[str]:
    """The settings in which a library's model is measured; ``compiled`` allows those that compile.

    A model of this package trains with its kernels, and without them in channels_last memory.
    """
    if library != OURS:
        names = [*PLAIN]
    else:
        names = [*PLAIN, *OPTIMIZED] if mode == "inference" else [*KERNELS, "channels_last"]
    return [name for name in names if compiled or not SETTINGS[name].compiled]


def inference(model: nn.Module, images: Tensor, precision: Precision, setting: Setting) -> Call:
    """A call that computes the logits of ``images``; in bf16, weights and images are bf16 throughout."""
    model = model.eval().requires_grad_(False)
    if setting.prepare:
        return setting.prepare(model, images, precision)
    if precision == "bf16":
        model, images = model.bfloat16(), images.bfloat16()
    model, images = with_layout(model, images, setting)
    network = torch.compile(model, dynamic=False, options={"freezing": True}) if setting.compiled else model
    return torch.inference_mode()(partial(network, images))


def training(model: nn.Module, images: Tensor, labels: Tensor, precision: Precision, setting: Setting) -> Call:
    """A call that runs one training step: forward (bf16 by autocast), cross-entropy, backward, fused AdamW."""
    model, images = with_layout(model.train(), images, setting)
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


def with_layout(model: nn.Module, images: Tensor, setting: Setting) -> tuple[nn.Module, Tensor]:
    """Model and images in the memory layout of a setting."""
    if not setting.channels_last:
        return model, images
    model = model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    return model, images.contiguous(memory_format=torch.channels_last)
