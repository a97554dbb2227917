"""A network over one long job on the CPU: after the first images it goes on in a faster form where that pays."""

import time
from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor, nn

from convnext.acceleration.candidates import COMPILE_SECONDS, TOLERANCE
from convnext.acceleration.clock import alternate, times_as_fast
from convnext.acceleration.cpu.fused_network import FusedNetwork, can_fuse
from convnext.acceleration.cpu.inference_kernels import BUILD_SECONDS, is_built
from convnext.acceleration.folding import folded
from convnext.acceleration.search import optimize
from convnext.errors import ConvNeXtError

GAIN = 0.2  # of the time that is left, a cautious guess of what a faster form saves
MAKING = 0.5  # seconds that packing the weights takes, about
SEARCH = 2.5 * COMPILE_SECONDS  # seconds that a search takes, about


class Job(nn.Module):
    """The same outputs in fp32, but for rounding; not for training.

    The first batches run in the network itself and are timed. Once what is left would take so much longer that a
    faster form pays for its making, that form is made and checked on a batch: this package's kernels for ConvNeXt V1;
    for other networks what :func:`convnext.optimize` finds, which pays after thousands of images.

    Args:
        model: in evaluation mode, fp32, on the CPU.
        images: how many there will be; None where that is not known: as many are expected as there were.
        say: told in a line what was done.
    """

    def __init__(self, model: nn.Module, images: int | None, say: Callable[[str], None]) -> None:
        super().__init__()
        self.model, self.images, self.say = model, images, say
        self.done, self.spent, self.decided = 0, float("inf"), False
        self.training = False

    def forward(self, images: Tensor) -> Tensor:
        """Outputs of a batch."""
        if self.decided or not len(images):
            return self.model(images)
        start = time.perf_counter()
        outputs = self.model(images)
        self.spent = min(self.spent, (time.perf_counter() - start) / len(images))
        self.done += len(images)
        left = self.done if self.images is None else max(0, self.images - self.done)
        if faster := self.faster(left * self.spent * GAIN, images):
            self.take(faster, images, outputs)
        return outputs

    @cached_property
    def making(self) -> float:
        """Seconds that the kernels take to be made, about; whether they are built is asked of the compiler."""
        return MAKING + (0 if is_built() else BUILD_SECONDS)

    def faster(self, saves: float, images: Tensor) -> Callable[[], nn.Module] | None:
        """What makes a form that pays, if any does, where one that costs nothing would save so many seconds."""
        if can_fuse(self.model):
            if saves > MAKING and saves > self.making:
                return lambda: fused(self.model)
        elif saves > SEARCH:
            return lambda: optimize(self.model, images.clone(), "fp32", seconds=SEARCH)
        return None

    def take(self, make: Callable[[], nn.Module], images: Tensor, outputs: Tensor) -> None:
        """Go on in another form, unless it cannot be made, gives other outputs or is slower."""
        self.decided = True
        self.model = quicker(self.model, make, images, outputs, self.say)


def quicker(
    model: nn.Module, make: Callable[[], nn.Module], images: Tensor, outputs: Tensor, say: Callable[[str], None]
) -> nn.Module:
    """Another form of a network; or the network, where that cannot be made, gives other outputs or is slower.

    Args:
        model: the network, which has run before.
        make: makes the form.
        images: to compare the two on.
        outputs: the network's, of these images.
        say: told in a line what was done.
    """
    try:
        network = make()
        differences = (network(images) - outputs).abs().max()
        calls = {"plain": lambda: model(images), "other": lambda: network(images)}
        times = alternate(calls, rounds=1, warm_up=0)  # both have run before
    except (ConvNeXtError, torch.OutOfMemoryError):
        return model
    ratio = times_as_fast(times["other"], times["plain"])
    if ratio <= 1 or differences > TOLERANCE["fp32"] * outputs.abs().max():
        return model
    name = "folded, own kernels" if isinstance(network, FusedNetwork) else network.extra_repr()
    say(f"optimised: {name}, {ratio:.1f} times as fast")
    return network


def fused(model: nn.Module) -> FusedNetwork:
    """A network by the kernels."""
    return FusedNetwork(folded(model))


def for_job(model: nn.Module, device: torch.device, images: int | None, say: Callable[[str], None]) -> nn.Module:
    """A network for a job of so many images: a :class:`Job` on the CPU, in fp32; the network itself elsewhere."""
    dtypes = {value.dtype for value in model.state_dict().values() if value.is_floating_point()}
    return Job(model, images, say) if device.type == "cpu" and dtypes == {torch.float32} else model


@torch.inference_mode()
def for_serving(model: nn.Module, images: Tensor, say: Callable[[str], None]) -> nn.Module:
    """A network for batches of any size without an end, ready before the first: by the kernels where they can be had.

    Other forms are compiled for a batch's size, and would be compiled anew while a request waits.

    Args:
        model: in evaluation mode.
        images: an example (N, C, H, W), where the network is.
        say: told in a line what was done.
    """
    outputs = model(images)
    return quicker(model, lambda: fused(model), images, outputs, say) if can_fuse(model) else model
