"""What can be made to fit: another number of input channels. And what cannot: another kernel size."""

from pathlib import Path

import torch
from torch import Tensor

from convnext.errors import UsageError

FIRST_LAYERS = ("downsample_layers.0.0.weight", "stem.weight")


def adapt_channels(
    weights: dict[str, Tensor], own: dict[str, Tensor], path: Path
) -> tuple[dict[str, Tensor], tuple[str, ...], tuple[str, ...]]:
    """The weights with a first layer for as many channels as the network's images have.

    Returns:
        The weights, the names of those that were changed, and what should be said.
    """
    for name in FIRST_LAYERS:
        if name in weights and name in own and weights[name].ndim == own[name].ndim == 4:
            there, here = weights[name].shape[1], own[name].shape[1]
            if there != here and there > 0:
                how = "added up" if here == 1 else "repeated and rescaled"
                note = f"{path.name} is for images of {there} channels, the network for {here}: {name} is {how}"
                return weights | {name: for_channels(weights[name], here)}, (name,), (note,)
    return weights, (), ()


def for_channels(weight: Tensor, channels: int) -> Tensor:
    """A convolution's weight (O, I, K, K) for images of another number of channels: (O, channels, K, K).

    For one, the sum over the channels, which answers a grey image as the colour image of three equal channels. For
    more, the channels in turn, rescaled so that an image that repeats its channels keeps the size of its answer. The
    rule is the one by which timm adapts published weights.
    """
    given = weight.shape[1]
    if channels == 1:
        return weight.sum(1, keepdim=True)
    turns = -(-channels // given)
    return torch.cat([weight] * turns, 1)[:, :channels] * (given / channels)


def check_kernels(weights: dict[str, Tensor], own: dict[str, Tensor], path: Path) -> None:
    """Refuse depthwise convolutions of another kernel size: one cannot be made of the other.

    Raises:
        UsageError: the sizes differ; the message names both.
    """
    for name, tensor in own.items():
        if name.endswith("dwconv.weight") and name in weights and weights[name].ndim == tensor.ndim:
            there, here = weights[name].shape[-1], tensor.shape[-1]
            if there != here and weights[name].shape[:2] == tensor.shape[:2]:
                raise UsageError(
                    f"{path} is for kernel size {there}, the network has {here}: create it with kernel_size={there}, "
                    "or take another file"
                )
