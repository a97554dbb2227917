"""The forms of a network that :func:`convnext.optimize` tries, each with what it takes to make it."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from convnext import device as machine
from convnext.acceleration.cpu.fused_network import FusedNetwork, can_fuse
from convnext.acceleration.cpu.inference_kernels import BUILD_SECONDS, has_bf16, is_built
from convnext.acceleration.folding import folded
from convnext.acceleration.int8 import quantize
from convnext.errors import UsageError
from convnext.models.convnext import ConvNeXt, IsotropicConvNeXt
from convnext.models.design import DesignNetwork

COMPILE_SECONDS = 40  # about what torch.compile takes for a network
QUANTIZE_SECONDS = 5  # about what int8 takes with a few dozen images to calibrate
TOLERANCE = {"fp32": 1e-3, "bf16": 5e-2, "int8": float("inf")}  # of the largest absolute output
PRECISIONS = ("auto", "fp32", "bf16", "int8")


class Form(NamedTuple):
    """A network made ready.

    Attributes:
        run: from images (N, C, H, W) in fp32 to outputs in fp32.
        fixed: whether it was made for one shape of images, and takes others by being made again.
    """

    run: Callable[[Tensor], Tensor]
    fixed: bool = False


@dataclass(frozen=True)
class Candidate:
    """A form that may be tried.

    Attributes:
        name: what the report calls it.
        precision: fp32, bf16 or int8.
        make: makes it of the network.
        seconds: about what that takes.
    """

    name: str
    precision: str
    make: Callable[[nn.Module], Form]
    seconds: float = 0


def candidates(model: nn.Module, device: torch.device, precision: str, calibration: Tensor | None) -> list[Candidate]:
    """What to try, what promises most for its cost first; but the first is the network as it is, in fp32.

    Args:
        model: the network.
        device: where it is.
        precision: auto, fp32, bf16 or int8; auto is fp32 and, where the device has it, bf16; int8 is that and int8.
        calibration: images for int8.
    """
    precisions = allowed(precision, device)
    found = [Candidate("eager", "fp32", eager)]
    by_kernels = device.type == "cpu" and can_fuse(model)
    build = BUILD_SECONDS if by_kernels and not is_built() else 0
    if by_kernels:
        found += [Candidate("kernels", name, kernels(name), build) for name in precisions]
    found += [Candidate("channels_last", name, cast_to(channels_last, name)) for name in precisions]
    if isinstance(model, ConvNeXt | IsotropicConvNeXt | DesignNetwork):
        found += [Candidate("folded", name, cast_to(folded_eager, name)) for name in precisions]
    if precision == "int8":
        found.append(Candidate("int8", "int8", quantized(calibration), QUANTIZE_SECONDS + build))
    found += [Candidate("compiled", name, cast_to(compiled, name), COMPILE_SECONDS) for name in reversed(precisions)]
    return found


def allowed(precision: str, device: torch.device) -> list[str]:
    """The precisions to try.

    Raises:
        UsageError: bf16 was asked for, and the device does not have it.
    """
    fast = device.type in ("cpu", "cuda") and machine.has_bf16(device)
    if precision == "bf16" and not fast:
        raise UsageError(f"precision bf16 needs a device with bf16 instructions, {device} has none: take fp32 or auto")
    if precision == "fp32":
        return ["fp32"]
    if precision == "bf16":
        return ["bf16"]
    return ["fp32", "bf16"] if fast else ["fp32"]


def eager(model: nn.Module) -> Form:
    """The network as it is: a copy."""
    return Form(copy.deepcopy(model).eval())


def channels_last(model: nn.Module, dtype: torch.dtype) -> Form:
    """Maps and weights with their channels last."""
    copied = copy.deepcopy(model).eval().to(dtype=dtype, memory_format=torch.channels_last)  # pyright: ignore
    return Form(lambda images: copied(prepared(images, dtype)).float())


def folded_eager(model: nn.Module, dtype: torch.dtype) -> Form:
    """The same with constants folded."""
    return channels_last(folded(model), dtype)


def compiled(model: nn.Module, dtype: torch.dtype) -> Form:
    """The same through torch.compile, with its weights as constants where that is possible (freezing)."""
    network = folded(model).to(dtype=dtype, memory_format=torch.channels_last)  # pyright: ignore
    on_cpu = all(parameter.device.type == "cpu" for parameter in network.parameters())
    options: dict[str, Any] = {"freezing": True} if on_cpu else {}
    function: Any = torch.compile(network, dynamic=False, options=options)
    return Form(lambda images: function(prepared(images, dtype)).float(), fixed=True)


def prepared(images: Tensor, dtype: torch.dtype) -> Tensor:
    """Images in a dtype, channels last."""
    return images.to(dtype=dtype, memory_format=torch.channels_last)


def cast_to(make: Callable[[nn.Module, torch.dtype], Form], precision: str) -> Callable[[nn.Module], Form]:
    """A form in a precision."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    return lambda model: make(model, dtype)


def kernels(precision: str) -> Callable[[nn.Module], Form]:
    """The network by this package's kernels for inference."""

    def make(model: nn.Module) -> Form:
        if precision == "bf16" and not has_bf16():
            raise UsageError("the compiler that built the kernels knows no bf16 instructions")
        return Form(FusedNetwork(folded(model), bf16=precision == "bf16"))

    return make


def quantized(calibration: Tensor | None) -> Callable[[nn.Module], Form]:
    """The network in int8.

    Raises:
        UsageError: there are no images to calibrate it with.
    """
    if calibration is None or calibration.ndim != 4 or not len(calibration):
        raise UsageError("precision int8 needs images to calibrate with: calibration=IMAGES, (N, C, H, W)")

    def make(model: nn.Module) -> Form:
        return Form(quantize(model, calibration))

    return make
