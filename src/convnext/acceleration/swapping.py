"""The mechanism behind ``accelerate(model, training=True)``: a module's class is swapped for a subclass with kernels.

Only ``module.__class__`` changes, so parameters, names, the state dict, hooks and optimizers stay as they are. A class
with kernels names the class that it replaces in ``plain_class`` and computes by that class's forward wherever its
kernels do not apply: :func:`takes_kernels` is the one rule for this.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from convnext.models.layers import DropPath


class Swap(NamedTuple):
    """A module that can be swapped, or the reason why it cannot.

    Attributes:
        name: the module's name in its model.
        module: the module.
        kind: the class with kernels.
        gain: what the kernels compute.
        obstacle: the reason against it; None if there is none.
    """

    name: str
    module: nn.Module
    kind: type[nn.Module]
    gain: str
    obstacle: str | None


def swap(swaps: Iterable[Swap]) -> None:
    """Swap the classes of the modules without an obstacle."""
    for entry in swaps:
        if entry.obstacle is None and "forward" not in vars(entry.module):
            entry.module.__class__ = entry.kind


def restore(model: nn.Module) -> nn.Module:
    """Undo ``accelerate(model, training=True)`` in place; returns the model."""
    vars(model).pop("_acceleration_report", None)
    for module in model.modules():
        if is_swapped(module):
            vars(module).pop("recompute", None)
            module.__class__ = plain_type(module)
    return model


def is_swapped(module: nn.Module) -> bool:
    """True if a module is of a class with kernels."""
    return plain_type(module) is not type(module)


def plain_type(module: nn.Module) -> type[nn.Module]:
    """The class of a module as it was before any swap."""
    return getattr(type(module), "plain_class", type(module))


def takes_kernels(
    x: Tensor, parameters: Iterable[Tensor], is_here: Callable[[Tensor], bool], dtypes: tuple[torch.dtype, ...]
) -> bool:
    """True if a swapped module's kernels apply to a feature map of four dimensions, as things are now.

    They do not inside torch.func's transforms, torch.jit.trace and ONNX export, which know torch's operators only; nor
    on tensor subclasses (DTensor).

    Args:
        x: the module's input.
        parameters: those that the kernels read.
        is_here: tells if a tensor is on a device with the kernels.
        dtypes: those that the kernels compute in.
    """
    if not torch.compiler.is_compiling() and (
        type(x) not in (Tensor, nn.Parameter) or torch._C._is_tracing() or torch._C._are_functorch_transforms_active()
    ):
        return False
    if x.ndim != 4 or x.dtype not in dtypes or not is_here(x) or torch.onnx.is_in_onnx_export():
        return False
    mixes = torch.is_autocast_enabled(x.device.type)
    if mixes and torch.get_autocast_dtype(x.device.type) not in dtypes:
        return False
    for parameter in parameters:  # where dtypes differ without autocast, torch names the mismatch
        if parameter.dtype not in dtypes or not (mixes or parameter.dtype == x.dtype) or not is_here(parameter):
            return False
    return True


def compute_dtype(x: Tensor) -> torch.dtype:
    """The dtype that a linear layer computes in: its input's, or autocast's."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def parameters_of(module: nn.Module) -> Iterator[Tensor]:
    """The parameters of a module and of its children, not of their children."""
    for layer in (module, *module._modules.values()):
        if layer is not None:
            yield from (value for value in layer._parameters.values() if value is not None)


def obstacle(block: nn.Module, **kinds: type | tuple[type, ...]) -> str | None:
    """The reason why the children of a block are not what a kernel computes; None if they are.

    Args:
        block: the block, with stochastic depth as ``drop_path``.
        kinds: the classes that fit, by the child's name.
    """
    layers: dict[str, Any] = block._modules
    for name, fitting in kinds.items():
        layer = layers[name]
        if plain_type(layer) not in (fitting if isinstance(fitting, tuple) else (fitting,)):
            return f"{name} is {type(layer).__name__}"
        if is_hooked(layer):
            return f"{name} has hooks"
        if isinstance(layer, nn.GELU) and layer.approximate != "none":
            return f"{name} is an approximation of GELU"
        if name in ("pwconv1", "pwconv2") and layer.bias is None:
            return f"{name} has no bias"
    if type(layers["drop_path"]) is not DropPath or is_hooked(layers["drop_path"]):
        return "drop_path is not the model's own, or has hooks"
    return None


def is_hooked(layer: nn.Module) -> bool:
    """True if a layer has hooks, which a kernel in its place would not call."""
    return bool(layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks)


def patch_weight(convolution: nn.Conv2d) -> Tensor:
    """The weight of a convolution of patches as a matrix (D, size * size * C)."""
    return convolution.weight.permute(0, 2, 3, 1).flatten(1)
