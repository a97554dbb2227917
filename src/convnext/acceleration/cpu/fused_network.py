"""ConvNeXt V1 by the kernels for inference on the CPU: a network with the same outputs, that only infers."""

from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from convnext.acceleration.cpu.inference_kernels import (
    Int8,
    Range,
    block,
    fill,
    packed,
    packed_int8,
    padded,
    patches,
    rounded_weight,
    stem,
)
from convnext.models.convnext import Block, ConvNeXt, IsotropicConvNeXt
from convnext.models.layers import PatchConv2d
from convnext.models.protocol import check_image_size

IMAGES = 4  # at a time, or two a thread: the maps between two layers stay in the third-level cache


def can_fuse(model: nn.Module) -> bool:
    """True if :class:`FusedNetwork` can be built of a model: ConvNeXt V1, with stages or without, in fp32."""
    if type(model) not in (ConvNeXt, IsotropicConvNeXt):
        return False
    for module in model.modules():
        if isinstance(module, Block) and not isinstance(module.grn, nn.Identity):
            return False
        if isinstance(module, nn.Conv2d) and module.dilation != (1, 1):
            return False
        if isinstance(module, PatchConv2d) and module.stride != module.kernel_size:
            return False
    return all(parameter.dtype == torch.float32 and parameter.device.type == "cpu" for parameter in model.parameters())


class FusedNetwork(nn.Module):
    """A folded network (:func:`convnext.acceleration.folding.folded`), each layer of which is one call of the C code.

    Args:
        model: :func:`can_fuse` and folded.
        bf16: multiply in bf16, all but the images' convolution and the head; maps and sums are fp32 always.
        ranges: of the inputs of the layers that multiply in int8 instead: of a block, both or none.

    Raises:
        RunError: the kernels cannot be built here.
    """

    def __init__(self, model: Any, bf16: bool = False, ranges: Mapping[nn.Module, Range] | None = None) -> None:
        super().__init__()
        self.bf16, self.ranges = bf16, ranges or {}
        self.norm: nn.Module = model.norm
        self.head: nn.Module = model.head
        self.smallest_image: int = model.smallest_image
        self.layers: list[Callable[[Tensor, Tensor | None], Tensor]] = []
        if isinstance(model, IsotropicConvNeXt):
            self.stem = images_convolution(model.stem, None)
            self.layers += [self.block(module) for module in cast("list[Block]", list(model.blocks))]
            self.channels = model.stem.out_channels
        else:
            convolution, norm = model.downsample_layers[0]
            self.stem = images_convolution(convolution, norm)
            for i, stage in enumerate(model.stages):
                if i:
                    self.layers.append(self.downsampling(*model.downsample_layers[i]))
                self.layers += [self.block(module) for module in stage]
            self.channels = model.stages[-1][-1].dwconv.in_channels

    def block(self, module: Block) -> Callable[[Tensor, Tensor | None], Tensor]:
        """A block as a function of a map and, for its result, a map of the same shape that is free."""
        channels, (size, _) = module.dwconv.in_channels, module.dwconv.kernel_size
        width, hidden, bf16, eps = padded(channels), padded(module.pwconv1.out_features), self.bf16, module.norm.eps
        normalised, activated = self.ranges.get(module.pwconv1), self.ranges.get(module.pwconv2)
        weight1, *int8 = multiplied(module.pwconv1.weight, width, hidden, bf16, normalised)
        weight2, *more = multiplied(module.pwconv2.weight, hidden, width, bf16, activated and activated.after_gelu())
        tensors = (
            fill(module.dwconv.weight.detach().flatten(1).T, size * size, width),
            bias_of(module.dwconv, width),
            weight1,
            bias_of(module.pwconv1, hidden),
            weight2,
            bias_of(module.pwconv2, width),
        )

        def run(x: Tensor, free: Tensor | None) -> Tensor:
            out = torch.empty_like(x) if free is None or free.shape != x.shape else free
            block(x, out, tensors, channels, size, eps, bf16, (*int8, *more))
            return out

        return run

    def downsampling(self, norm: nn.LayerNorm, convolution: nn.Conv2d) -> Callable[[Tensor, Tensor | None], Tensor]:
        """The layer between two stages as a function of a map."""
        channels, out_channels, size = convolution.in_channels, convolution.out_channels, convolution.kernel_size[0]
        width, out_width, bf16, eps = padded(channels), padded(out_channels), self.bf16, norm.eps
        taps = fill(convolution.weight.detach().permute(0, 2, 3, 1), out_channels, size, size, width).flatten(1)
        weight, *int8 = multiplied(taps, taps.shape[1], out_width, bf16, self.ranges.get(convolution))
        bias = bias_of(convolution, out_width)

        def run(x: Tensor, free: Tensor | None) -> Tensor:  # noqa: ARG001
            return patches(x, weight, bias, channels, size, out_channels, eps, bf16, tuple(int8))

        return run

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W) in fp32 to what the network gives of them."""
        check_image_size(images, self.smallest_image)
        count = max(IMAGES, 2 * torch.get_num_threads())
        pooled = [self.pooled(some) for some in images.split(count)]
        return self.head(self.norm(torch.cat(pooled)))

    def pooled(self, images: Tensor) -> Tensor:
        """The mean (N, channels) of the last map's positions."""
        x, free = self.stem(images), None
        for layer in self.layers:
            x, free = layer(x, free), x
        return x.mean((1, 2))[:, : self.channels]


def images_convolution(convolution: nn.Conv2d, norm: nn.LayerNorm | None) -> Callable[[Tensor], Tensor]:
    """The stem as a function of images."""
    width, out_channels = padded(convolution.out_channels), convolution.out_channels
    weight = convolution.weight.detach().flatten(1).T
    tensors = [packed(fill(weight, padded(len(weight)), width), bf16=False), bias_of(convolution, width)]
    if norm is not None:
        tensors += [fill(norm.weight.detach(), width), fill(norm.bias.detach(), width)]
    sizes = convolution.kernel_size[0], convolution.stride[0], int(convolution.padding[0])
    eps = 0.0 if norm is None else norm.eps
    return lambda images: stem(images, tuple(tensors), *sizes, out_channels, eps)


def multiplied(
    weight: Tensor, inputs: int, outputs: int, bf16: bool, seen: Range | None
) -> tuple[Tensor] | tuple[Tensor, Int8]:
    """A linear layer's weight (out_features, in_features), packed; in int8 where the range of its inputs is known."""
    if seen is None:
        return (packed(fill(weight.detach().T, inputs, outputs), bf16),)
    rounded, scale = rounded_weight(weight.detach())
    offset = -seen.zero_point * rounded.sum(1, dtype=torch.int32)
    layer = Int8(fill(offset, outputs), fill(scale * seen.scale, outputs), 1 / seen.scale, seen.zero_point)
    return packed_int8(fill(rounded.T, inputs, outputs)), layer


def bias_of(layer: nn.Conv2d | nn.Linear, size: int) -> Tensor:
    """A layer's bias, padded; zeros where it has none."""
    return torch.zeros(size) if layer.bias is None else fill(layer.bias.detach(), size)
