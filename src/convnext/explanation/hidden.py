"""The hidden channels of a network's blocks: what a block's last layer reads."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from convnext.explanation.feature_maps import as_map, watching
from convnext.models.convnext import Block
from convnext.models.design import DesignBlock
from convnext.models.layers import to_nchw
from convnext.training.build import blocks

ACTIVATIONS = ("GELU", "GELU2d", "ReLU", "ReLU6", "SiLU", "Swish", "Hardswish", "HardSwish", "LeakyReLU", "Mish")


def hidden_of(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """The hidden channels of every block by its name, (N, C, P), for images (N, C, H, W)."""
    hidden: dict[str, Tensor] = {}
    inner = blocks(model)
    own = {name: block for name, block in inner.items() if isinstance(block, Block | DesignBlock)}
    activations = {
        f"{name} {part}": module
        for name, block in inner.items()
        for part, module in block.named_modules()
        if name not in own and type(module).__name__ in ACTIVATIONS
    }

    def see(place: str, output: Any) -> None:
        name, seen = place.partition(" ")[0], as_map(output, (images.shape[2], images.shape[3]))
        if seen is not None and (name not in hidden or seen.shape[1] >= hidden[name].shape[1]):
            hidden[name] = seen.flatten(2)

    with torch.inference_mode(), read_by_last_layers(own, hidden), watching(activations, see):
        model(images)
    return {name: hidden[name] for name in inner if name in hidden}


@contextmanager
def read_by_last_layers(own: Mapping[str, nn.Module], hidden: dict[str, Tensor]) -> Iterator[None]:
    """Have what the last layers of this package's blocks read put into ``hidden``, by the block's name."""

    def hook_of(name: str) -> Callable[..., None]:
        def hook(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            read = to_nchw(inputs[0]) if type(layer) is nn.Linear else inputs[0]
            hidden[name] = read.flatten(2)

        return hook

    last = {name: block.get_submodule("pwconv2") for name, block in own.items()}
    handles = [layer.register_forward_pre_hook(hook_of(name)) for name, layer in last.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def behind(block: nn.Module) -> str:
    """What a block's hidden channels are taken behind."""
    if isinstance(block, Block):
        return "GELU" if isinstance(block.grn, nn.Identity) else "GRN"
    kinds = [type(module).__name__ for module in block.modules()]
    return [kind for kind in kinds if kind in ACTIVATIONS][-1].removesuffix("2d")
