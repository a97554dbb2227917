"""The cost of a model: parameters, multiply-accumulates, activations; and its measured speed."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from convnext.errors import UsageError

aten = torch.ops.aten
CONVOLUTIONS_AND_LINEAR_LAYERS = (aten.convolution.default, aten.addmm.default, aten.mm.default)
ACTIVATIONS = (aten.relu.default, aten.gelu.default)
# Norms, and the layout of their outputs, which decides how torch computes a linear layer after them.
NORMS: dict[Any, torch.memory_format] = {
    aten.native_batch_norm.default: torch.preserve_format,
    aten.native_layer_norm.default: torch.contiguous_format,
}


@dataclass(frozen=True)
class Cost:
    """The cost of one image.

    Attributes:
        params: number of parameters.
        macs: multiply-accumulates of convolutions, linear layers and the matrix products of attention.
        activations: elements of the outputs of convolutions and linear layers.
    """

    params: int
    macs: int
    activations: int


def abbreviated(func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """An operator's output on the meta device; norms and activation functions are not computed.

    No count needs them, and torch takes several times longer for them than for all the rest.
    """
    if func in ACTIVATIONS:
        return torch.empty_like(args[0])
    if func in NORMS:
        statistics = args[0].new_empty(0)
        return torch.empty_like(args[0], memory_format=NORMS[func]), statistics, statistics
    return func(*args, **(kwargs or {}))


class ActivationCounter(TorchDispatchMode):
    """A count of the elements of the outputs of convolutions and linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.activations = 0

    def __torch_dispatch__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = abbreviated(func, args, kwargs)
        if func in CONVOLUTIONS_AND_LINEAR_LAYERS:
            self.activations += out.numel()
        return out


def cost(model: nn.Module, image_size: int | tuple[int, int] = 224) -> Cost:
    """Count a model's cost for one image of ``image_size`` pixels (height and width), on the meta device.

    Nothing is computed and the model is left as it is. Multiply-accumulates are torch's own FLOP count, halved.
    """
    with FlopCounterMode(display=False) as flops, ActivationCounter() as counter:
        run_on_meta(model, image_size)
    params = sum(parameter.numel() for parameter in model.parameters())
    return Cost(params=params, macs=flops.get_total_flops() // 2, activations=counter.activations)


def run_on_meta(model: nn.Module, image_size: int | tuple[int, int]) -> None:
    """Pass one image through a model in evaluation mode, on the meta device; the model is left as it is."""
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    on_meta = {name: tensor.detach().to("meta") for name, tensor in tensors.items()}
    image = torch.empty(1, image_channels(model), *size, device="meta", dtype=next(model.parameters()).dtype)
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            torch.func.functional_call(model, on_meta, (image,))
    finally:
        model.train(training)


def image_channels(model: nn.Module) -> int:
    """Channels of a model's images: those of its first convolution."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            return module.in_channels
    raise UsageError(f"{type(model).__name__} has no convolution: the number of image channels is not known")


def images_per_second(model: nn.Module, images: Tensor, seconds: float) -> float:
    """Measure inference: images/s of the fastest of the passes that fit in ``seconds``, after a warm-up pass.

    The fastest, since other load on the machine only adds time. At least one pass is timed, five on a
    GPU.
    """
    on_gpu = images.device.type != "cpu"
    training = model.training
    model.eval()
    times: list[float] = []
    try:
        with torch.inference_mode():
            model(images)
            end = time.perf_counter() + seconds
            while len(times) < (5 if on_gpu else 1) or time.perf_counter() < end:
                if on_gpu:
                    torch.accelerator.synchronize()
                start = time.perf_counter()
                model(images)
                if on_gpu:
                    torch.accelerator.synchronize()
                times.append(time.perf_counter() - start)
    finally:
        model.train(training)
    return len(images) / min(times)
