"""The variants of a model that ``accelerate`` tries for inference, each with what it takes to make it."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from convnext import device as machine
from convnext.acceleration.cpu.inference_kernels import BUILD_SECONDS, FusedNetwork, can_fuse, has_bf16, is_built
from convnext.acceleration.folding import can_fold, folded
from convnext.acceleration.int8 import quantize
from convnext.acceleration.swapping import swap
from convnext.errors import UsageError

COMPILE_SECONDS = 40  # about what torch.compile takes for a model
QUANTIZE_SECONDS = 5  # about what int8 takes with a few dozen calibration images
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
PRECISIONS = ("auto", *DTYPES, "int8")
TOLERANCE = {"fp32": 1e-3, "bf16": 5e-2, "int8": float("inf")}  # of the largest absolute output


class Variant(NamedTuple):
    """A model made ready.

    Attributes:
        run: from images (N, C, H, W) in fp32 to outputs in fp32.
        fixed: true if it was made for one shape of images only.
    """

    run: Callable[[Tensor], Tensor]
    fixed: bool = False


@dataclass(frozen=True)
class Candidate:
    """A variant that may be tried.

    Attributes:
        name: its name in the report.
        precision: fp32, bf16 or int8.
        make: makes it of the model.
        seconds: about what that takes.
    """

    name: str
    precision: str
    make: Callable[[nn.Module], Variant]
    seconds: float = 0


def candidates(
    model: nn.Module, device: torch.device, precision: str, calibration: Tensor | None, experimental: bool = False
) -> list[Candidate]:
    """List what to try, the most promising for its cost first; but the model as it is, in fp32, comes before all.

    Args:
        model: the model.
        device: where it is.
        precision: auto (fp32 and, where the device has it, bf16), fp32, bf16, or int8 (auto and int8).
        calibration: images for int8.
        experimental: try the kernels in Triton as well, which no GPU has measured yet.
    """
    precisions = allowed(precision, device)

    def each(name: str, make: Callable[..., Variant], seconds: float = 0) -> list[Candidate]:
        return [Candidate(name, one, partial(make, dtype=DTYPES[one]), seconds) for one in precisions]

    found = [Candidate("eager", "fp32", lambda model: Variant(copy.deepcopy(model).eval()))]
    by_kernels = device.type == "cpu" and can_fuse(model)
    build = BUILD_SECONDS if by_kernels and not is_built() else 0
    if by_kernels:
        found += each("kernels", kernels, build)
    found += each("channels_last", channels_last)
    if can_fold(model):
        found += each("folded", lambda model, dtype: channels_last(folded(model), dtype))
        if experimental:
            found += each("fused", fused)
    if precision == "int8":
        found.append(Candidate("int8", "int8", quantized(calibration), QUANTIZE_SECONDS + build))
    return found + each("compiled", compiled, COMPILE_SECONDS)[::-1]


def allowed(precision: str, device: torch.device) -> list[str]:
    """List the precisions to try.

    Raises:
        UsageError: bf16 was asked for, and the device does not have it.
    """
    fast = device.type in ("cpu", "cuda") and machine.has_bf16(device)
    if precision == "bf16" and not fast:
        raise UsageError(f"precision bf16 needs a device with bf16 instructions, {device} has none: take fp32 or auto")
    if precision in DTYPES:
        return [precision]
    return ["fp32", "bf16"] if fast else ["fp32"]


def channels_last(model: nn.Module, dtype: torch.dtype) -> Variant:
    """A copy with feature maps and weights in channels_last memory."""
    copied = copy.deepcopy(model).eval().to(dtype=dtype, memory_format=torch.channels_last)  # pyright: ignore
    return Variant(lambda images: copied(prepared(images, dtype)).float())


def fused(model: nn.Module, dtype: torch.dtype) -> Variant:
    """A folded copy whose blocks are computed by the kernels in Triton."""
    from convnext.acceleration.gpu.modules import fused_swaps  # whose operators take a while to register

    variant = folded(model)
    swap(fused_swaps(variant))
    return channels_last(variant, dtype)


def compiled(model: nn.Module, dtype: torch.dtype) -> Variant:
    """A folded copy through torch.compile, on the CPU with its weights as constants (freezing)."""
    copied = folded(model).to(dtype=dtype, memory_format=torch.channels_last)  # pyright: ignore
    on_cpu = all(parameter.device.type == "cpu" for parameter in copied.parameters())
    options: dict[str, Any] = {"freezing": True} if on_cpu else {}
    function: Any = torch.compile(copied, dynamic=False, options=options)
    return Variant(lambda images: function(prepared(images, dtype)).float(), fixed=True)


def prepared(images: Tensor, dtype: torch.dtype) -> Tensor:
    """Images in a dtype, in channels_last memory."""
    return images.to(dtype=dtype, memory_format=torch.channels_last)


def kernels(model: nn.Module, dtype: torch.dtype) -> Variant:
    """The model by this package's kernels for inference."""
    if dtype == torch.bfloat16 and not has_bf16():
        raise UsageError("the compiler that built the kernels knows no bf16 instructions")
    return Variant(FusedNetwork(folded(model), bf16=dtype == torch.bfloat16))


def quantized(calibration: Tensor | None) -> Callable[[nn.Module], Variant]:
    """Make int8 variants.

    Raises:
        UsageError: there are no images to calibrate them with.
    """
    if calibration is None or calibration.ndim != 4 or not len(calibration):
        raise UsageError("precision int8 needs images to calibrate with: calibration=IMAGES, (N, C, H, W)")
    return lambda model: Variant(quantize(model, calibration))
