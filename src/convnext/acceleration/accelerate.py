"""`accelerate`: the one switch for speed, for training and for inference; `restore` undoes it for training."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, overload

import torch
from torch import Tensor, nn

from convnext.acceleration import enabled
from convnext.acceleration.search import Optimized, fastest, fastest_for_job
from convnext.acceleration.swapping import Swap, restore, swap
from convnext.errors import UsageError


@dataclass(frozen=True)
class TrainingReport:
    """The modules of a model that ``accelerate(model, training=True)`` swapped; ``print`` it for a line a module.

    Attributes:
        swapped: what kernels compute in a module, by its name.
        left: why a module stays as it is, by its name; an empty name is the whole model.
    """

    swapped: dict[str, str] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"accelerated: {name}: {gain}" for name, gain in self.swapped.items()]
        return "\n".join(lines + [f"left: {name or 'the model'}: {reason}" for name, reason in self.left.items()])


@overload
def accelerate(
    model: nn.Module, *, training: Literal[True], experimental: bool = False, recompute: bool = False
) -> nn.Module: ...


@overload
def accelerate(model: nn.Module, example: Tensor, *, images: int, seconds: float = 120) -> nn.Module: ...


@overload
def accelerate(
    model: nn.Module,
    example: Tensor,
    *,
    precision: str = "auto",
    seconds: float = 120,
    calibration: Tensor | None = None,
    force: bool = False,
    experimental: bool = False,
) -> Optimized: ...


def accelerate(
    model: nn.Module,
    example: Tensor | None = None,
    *,
    training: bool = False,
    images: int | None = None,
    precision: str = "auto",
    seconds: float = 120,
    calibration: Tensor | None = None,
    force: bool = False,
    experimental: bool = False,
    recompute: bool = False,
) -> nn.Module:
    """Give a model that trains or infers faster on this machine.

    For training, blocks and layers are swapped in place for subclasses whose kernels compute the step: on the CPU in C,
    on an NVIDIA GPU in Triton. Parameters stay the same objects under the same names, outputs and gradients differ by
    rounding, and evaluation is as before. Call it before activation checkpointing and ``torch.compile`` are set up;
    :func:`restore` undoes it, :func:`acceleration_report` tells what was swapped.

    For inference, the variants of the model that this machine can run are made, compared with the model's own outputs
    and measured; the fastest is returned (:func:`~convnext.acceleration.search.fastest`), its figures in ``.report``.
    With ``images``, the search is for one job, whose time it must not exceed: in fp32, and most often by this package's
    kernels for ConvNeXt V1 or not at all (:func:`~convnext.acceleration.search.fastest_for_job`).

    ``CONVNEXT_KERNELS=off`` in the environment turns all kernels off.

    Args:
        model: of this package; in other models nothing is swapped for training.
        example: for inference, images (N, C, H, W) as they will come, in fp32, on the model's device.
        training: accelerate training rather than inference.
        images: how many the job has; the model itself is returned where nothing pays within it.
        precision: of inference: fp32, bf16, auto (either) or int8 (any).
        seconds: that the search may take; variants that would take longer are not tried.
        calibration: images (N, C, H, W) that int8 is calibrated with.
        force: take int8 even where its top-1 agrees with the model's on fewer than 99 % of the images.
        experimental: take kernels that no GPU has measured yet: those in Triton.
        recompute: with these, compute GELU's input again in the backward pass rather than save it.

    Returns:
        For training, the model itself; for inference, a module that only infers.

    Raises:
        UsageError: there is no example for inference, there is one for training, or another argument does not fit.
        RunError: no variant gives the model's outputs.
    """
    if training:
        if example is not None or images is not None or calibration is not None or force or precision != "auto":
            raise UsageError(
                "example, images, precision, calibration and force are for inference: leave training=True out"
            )
        return accelerate_training(model, experimental, recompute)
    if example is None:
        raise UsageError("accelerate needs example images (N, C, H, W) for inference, or training=True")
    if images is not None:
        return fastest_for_job(model, example, images, seconds)
    options: dict[str, Any] = {
        "seconds": seconds,
        "calibration": calibration,
        "force": force,
        "experimental": experimental,
    }
    return fastest(model, example, precision, **options)


def accelerate_job(
    model: nn.Module,
    shape: tuple[int, int, int, int],
    device: torch.device,
    images: int,
    report: Callable[[str], None],
    seconds: float = 120,
) -> nn.Module:
    """Accelerate a model in evaluation mode for one job, with an example of no particular content.

    Args:
        model: the model.
        shape: of the batches that will come, (N, C, H, W).
        device: where they will be.
        images: how many there will be.
        report: called with a line on what was done, if anything was.
        seconds: that the making of a faster variant may take.
    """
    count, channels, height, width = shape
    image = torch.linspace(-1, 1, channels * height * width, device=device).view(1, channels, height, width)
    faster = accelerate(model, image.expand(count, -1, -1, -1), images=images, seconds=seconds)
    if isinstance(faster, Optimized):
        report(f"accelerated: {faster.report.summary}")
    return faster


def accelerate_training(model: nn.Module, experimental: bool, recompute: bool) -> nn.Module:
    """Swap what can be swapped for the device that a model is on."""
    restore(model)
    swaps = list(training_swaps_for(model, experimental))
    swap(swaps)
    if recompute:
        for module in model.modules():
            if hasattr(type(module), "recompute"):
                vars(module)["recompute"] = True
    report = TrainingReport()
    for entry in swaps:
        if entry.obstacle is None and type(entry.module) is entry.kind:
            report.swapped[entry.name] = entry.gain
        else:
            report.left[entry.name] = entry.obstacle or "its forward was replaced"
    if not swaps:
        report.left[""] = f"{type(model).__name__} has no layers of this package"
    vars(model)["_acceleration_report"] = report
    return model


def training_swaps_for(model: nn.Module, experimental: bool) -> Iterator[Swap]:
    """The swaps that fit the device of a model; one without a target where there are none for all of it."""
    reason = None
    devices = {parameter.device for parameter in model.parameters()} or {torch.device("cpu")}
    if not enabled():
        reason = "CONVNEXT_KERNELS is off"
    elif len(devices) > 1:
        reason = f"it is spread over {len(devices)} devices"
    else:
        (device,) = devices
        if experimental:
            from convnext.acceleration.gpu.modules import fused_swaps  # whose operators take a while to register
            from convnext.acceleration.gpu.triton_runtime import runs_on

            if runs_on(device):
                return fused_swaps(model)
        if device.type == "cpu":
            from convnext.acceleration.cpu.native import available
            from convnext.acceleration.cpu.training_modules import training_swaps

            if available():
                return training_swaps(model)
            reason = "the kernels in C cannot be built here"
        else:
            reason = f"there are no measured kernels for {device.type}: experimental=True takes those in Triton, if any"
    return iter([Swap("", model, type(model), "", reason)])


def acceleration_report(model: nn.Module) -> TrainingReport:
    """What ``accelerate(model, training=True)`` did to a model; an empty report where it was not called."""
    return vars(model).get("_acceleration_report") or TrainingReport()
