"""What a network's blocks put out, as maps (N, C, h, w): of this package's networks and of torchvision's and timm's."""

import math
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from convnext.errors import UsageError, reason
from convnext.models.convnext import IsotropicConvNeXt, StagedNetwork
from convnext.training.blocks import blocks

MOST_PREFIX = 8  # tokens of a vision transformer that stand for no patch: class, distillation, registers
LEAST_SIDE = 4  # positions a side below which a map says too little of where something is

# The layer found for a network, by the size of its images; a network that is gone takes its entry along.
_found: WeakKeyDictionary[nn.Module, dict[tuple[int, int], str]] = WeakKeyDictionary()


@contextmanager
def watching(modules: Mapping[str, nn.Module], see: Callable[[str, Any], Any]) -> Iterator[None]:
    """Have what modules put out seen, and replaced by what ``see`` returns but None.

    Other threads may run the same network meanwhile: what they compute is neither seen nor replaced.

    Args:
        modules: by name.
        see: called with a module's name and output.
    """
    thread = threading.get_ident()

    def hook_of(name: str) -> Callable[..., Any]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> Any:  # noqa: ARG001
            return see(name, output) if threading.get_ident() == thread else None

        return hook

    handles = []
    try:
        for name, module in modules.items():
            handles.append(module.register_forward_hook(hook_of(name)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def trunk(model: nn.Module) -> dict[str, nn.Module]:
    """The modules whose outputs go through the whole network: its blocks, and its direct children."""
    inner = blocks(model)
    return {
        name: module
        for name, module in model.named_modules()
        if name in inner or (name and "." not in name and not isinstance(module, nn.Identity))
    }


def stage_layers(model: nn.Module, image: Tensor) -> tuple[str, ...]:
    """The names of the layers that end a network's stages, in order.

    Of this package's networks the last block of each stage, or of each quarter of an isotropic network; of others the
    last block of each size of map, or of each quarter of the blocks where all maps are of one size.

    Args:
        model: in evaluation mode.
        image: prepared, (1, C, H, W).

    Raises:
        UsageError: it has no maps that can be told.
    """
    if isinstance(model, StagedNetwork):
        lengths = [len(stage) for stage in model.stages if isinstance(stage, nn.Sequential)]
        return tuple(f"stages.{i}.{length - 1}" for i, length in enumerate(lengths))
    if isinstance(model, IsotropicConvNeXt):
        return quarters([f"blocks.{i}" for i in range(len(model.blocks))])
    sizes: dict[str, tuple[int, ...]] = {}

    def see(name: str, output: Any) -> None:
        seen = as_map(output, (image.shape[2], image.shape[3]))
        sizes.pop(name, None)
        if seen is not None:
            sizes[name] = tuple(seen.shape[2:])

    with torch.no_grad(), watching(trunk(model), see):
        model(image)
    if not sizes:
        raise UsageError(f"{type(model).__name__} has no layers whose maps have positions, as a network's blocks have")
    inner = [name for name in sizes if name in blocks(model)] or list(sizes)
    ends = {sizes[name]: name for name in inner}
    return tuple(name for name in inner if name in ends.values()) if len(ends) > 1 else quarters(inner)


def quarters(names: list[str]) -> tuple[str, ...]:
    """The last of each quarter of some layers."""
    return tuple(dict.fromkeys(names[max(1, round(len(names) * i / 4)) - 1] for i in (1, 2, 3, 4)))


def as_map(output: Any, size: tuple[int, int], least: int = 2) -> Tensor | None:
    """A view (N, C, h, w) of what a module put out; None where it has less than ``least`` positions.

    Args:
        output: (N, C, h, w); (N, h, w, C); or a vision transformer's tokens (N, positions, C), with or without others
            in front.
        size: height and width of the images; which dimensions are positions is told by their ratio.
    """
    if not isinstance(output, Tensor) or not output.is_floating_point():
        return None
    height, width = size
    if output.ndim == 4:
        first, second, third = output.shape[1:]
        channels_last = abs(first * width - second * height) < abs(second * width - third * height)
        seen = output.permute(0, 3, 1, 2) if channels_last else output
    elif output.ndim == 3 and height == width:
        tokens = output.shape[1]
        side = math.isqrt(tokens)
        if tokens - side**2 > MOST_PREFIX:
            return None
        seen = output[:, tokens - side**2 :].transpose(1, 2).unflatten(2, (side, side))
    else:
        return None
    return seen if seen.shape[2] * seen.shape[3] >= least else None


def map_layer(model: nn.Module, images: Tensor) -> str:
    """The name of the layer whose map is explained: the last with positions that move the class.

    Of images so small that the last maps have less than 4 x 4 positions, the last layer with as many. It is found with
    one image, forwards and backwards, and kept for the network and the size.

    Args:
        model: in evaluation mode.
        images: prepared, (N, C, H, W).

    Raises:
        UsageError: there is none, or no gradient reaches it.
    """
    size = (images.shape[2], images.shape[3])
    known = _found.setdefault(model, {})
    if size not in known:
        known[size] = find_map_layer(model, images[:1], size)
    return known[size]


def find_map_layer(model: nn.Module, image: Tensor, size: tuple[int, int]) -> str:
    """The search of :func:`map_layer`, with one image (1, C, H, W)."""
    outputs: dict[str, Tensor] = {}

    def see(name: str, output: Any) -> None:
        outputs.pop(name, None)  # of a module that is called twice, the second output counts, in its place
        if as_map(output, size) is not None:
            outputs[name] = output

    kind = type(model).__name__
    instead = "the gradient-free map (occlusion) needs neither"
    try:
        with torch.enable_grad(), watching(trunk(model), see):
            logits = model(image.detach().clone().requires_grad_())
            seen = list(outputs.values())
            gradients = torch.autograd.grad(logits[0].max(), seen, allow_unused=True) if seen else ()
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise UsageError(f"{kind} gives no gradients ({reason(error)}): {instead}") from error
    sides = {}
    for name, gradient in zip(outputs, gradients, strict=True):
        moves = as_map(gradient, size)
        if moves is not None and bool(moves.any()):
            sides[name] = min(moves.shape[2:])
    if not sides:
        raise UsageError(
            f"{kind} has no layer whose positions move its classes for images of {size[0]} x {size[1]} px, "
            f"or none that can be told: give larger images; {instead}"
        )
    least = min(LEAST_SIDE, max(sides.values()))
    return [name for name, side in sides.items() if side >= least][-1]
