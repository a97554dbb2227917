"""ConvNeXt, V1 and V2: the whole network, as published.

Keys of the state dict are the official ones (``downsample_layers``, ``stages``, ``norm``, ``head``).
Sources: arXiv 2201.03545 (V1 and isotropic), arXiv 2301.00808 (V2).
"""

from collections.abc import Iterable, Sequence
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn

from convnext.errors import UsageError
from convnext.models.layers import (
    DepthwiseConv2d,
    DropPath,
    GlobalResponseNorm,
    LayerNorm,
    LayerNorm2d,
    PatchConv2d,
    classifier_head,
    drop_path_rates,
    init_weights,
    layer_scale,
    to_nchw,
    to_nhwc,
)

STEM_KERNELS = {4: 4, 2: 2, 1: 3}  # stride -> kernel: patches that do not overlap, but a 1x1 patch would see one pixel


class Block(nn.Module):
    """Depthwise convolution, LayerNorm, linear to 4 times the width, GELU, [GRN], linear back; keeps (N, C, H, W).

    V1 scales the result by ``gamma`` (LayerScale); V2 has GRN and no LayerScale.
    """

    def __init__(
        self,
        dim: int,
        kernel_size: int = 7,
        drop_path: float = 0.0,
        layer_scale_init_value: float | None = 1e-6,
        grn: bool = False,
    ) -> None:
        super().__init__()
        self.dwconv = DepthwiseConv2d(dim, kernel_size)
        self.norm = LayerNorm(dim)
        self.pwconv1 = nn.Linear(dim, 4 * dim)
        self.act = nn.GELU()
        self.grn = GlobalResponseNorm(4 * dim) if grn else nn.Identity()
        self.pwconv2 = nn.Linear(4 * dim, dim)
        self.gamma = layer_scale(dim, layer_scale_init_value)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x  # (N, C, H, W)
        x = self.dwconv(x)
        x = to_nhwc(x)  # (N, H, W, C)
        x = self.norm(x)
        x = self.pwconv1(x)  # (N, H, W, 4 * C)
        x = self.act(x)
        x = self.grn(x)
        x = self.pwconv2(x)  # (N, H, W, C)
        if self.gamma is not None:
            x = self.gamma * x
        x = to_nchw(x)  # (N, C, H, W)
        return shortcut + self.drop_path(x)


class StagedNetwork(nn.Module):
    """Four downsampling layers and four stages in turn, then pooling, norm and head.

    Args:
        downsample_layers: the stem and what stands before stages 2, 3 and 4.
        stages: the four stages.
        norm: the norm behind global average pooling, over (N, C).
        head: the classifier, (N, C) to (N, num_classes).
        stem_stride: the stem's stride; the network's is 8 times as large.
    """

    def __init__(
        self,
        downsample_layers: Iterable[nn.Module],
        stages: Iterable[nn.Module],
        norm: nn.Module,
        head: nn.Module,
        stem_stride: int,
    ) -> None:
        super().__init__()
        self.downsample_layers = nn.ModuleList(downsample_layers)
        self.stages = nn.ModuleList(stages)
        self.norm = norm
        self.head = head
        self.smallest_image = 8 * stem_stride

    def forward_features(self, x: Tensor) -> list[Tensor]:
        """Images (N, in_chans, H, W) to the four stages' maps, strides 4, 8, 16 and 32 behind a stem of stride 4.

        Raises:
            UsageError: the image is smaller than the network's stride.
        """
        check_image_size(x, self.smallest_image)
        x = x.contiguous(memory_format=torch.channels_last)
        maps = []
        for downsample, stage in zip(self.downsample_layers, self.stages, strict=True):
            x = stage(downsample(x))
            maps.append(x)
        return maps

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, in_chans, H, W) to logits (N, num_classes), or to features (N, C) without a head."""
        x = self.forward_features(x)[-1].mean((-2, -1))
        return self.head(self.norm(x))


class ConvNeXt(StagedNetwork):
    """ConvNeXt V1, or V2 with ``grn=True`` and ``layer_scale_init_value=None``. The defaults are ConvNeXt-T.

    Args:
        in_chans: channels of the images.
        num_classes: 0 for features (N, dims[-1]).
        depths: blocks in each of the four stages.
        dims: channels of each stage.
        drop_path_rate: stochastic depth's rate at the last block, growing linearly from 0 at the first.
        layer_scale_init_value: initial value of each block's ``gamma``; None or 0 for none.
        head_init_scale: factor on the classifier's initial weights.
        kernel_size: of the depthwise convolutions; odd.
        grn: True for V2's global response norm in each block.
        stem_stride: 4, or for small images 2 (2x2 patches) or 1 (a 3x3 convolution).
    """

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        depths: Sequence[int] = (3, 3, 9, 3),
        dims: Sequence[int] = (96, 192, 384, 768),
        drop_path_rate: float = 0.0,
        layer_scale_init_value: float | None = 1e-6,
        head_init_scale: float = 1.0,
        kernel_size: int = 7,
        grn: bool = False,
        stem_stride: int = 4,
    ) -> None:
        check_options(num_classes=num_classes, in_chans=in_chans, drop_path_rate=drop_path_rate)
        check_kernel_size(kernel_size)
        check_stages(depths=depths, dims=dims)
        stem = patchify(in_chans, dims[0], stem_stride)
        downsample_layers = [nn.Sequential(stem, LayerNorm2d(dims[0]))]
        for before, after in pairwise(dims):
            downsample_layers.append(nn.Sequential(LayerNorm2d(before), PatchConv2d(before, after, 2)))
        block = partial(Block, kernel_size=kernel_size, layer_scale_init_value=layer_scale_init_value, grn=grn)
        stages = [
            nn.Sequential(*(block(dim, drop_path=rate) for rate in rates))
            for dim, rates in zip(dims, drop_path_rates(drop_path_rate, depths), strict=True)
        ]
        head = classifier_head(dims[-1], num_classes, head_init_scale)
        super().__init__(downsample_layers, stages, nn.LayerNorm(dims[-1], eps=1e-6), head, stem_stride)
        self.downsample_layers.apply(init_weights)
        self.stages.apply(init_weights)


class IsotropicConvNeXt(nn.Module):
    """ConvNeXt without stages, as a vision transformer is built: 16x16 patches, then blocks of one width.

    Its ``forward_features`` gives the maps behind each quarter of the blocks, all of stride 16.
    """

    smallest_image = 32

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        depth: int = 18,
        dim: int = 384,
        drop_path_rate: float = 0.0,
        layer_scale_init_value: float | None = None,
        head_init_scale: float = 1.0,
        kernel_size: int = 7,
    ) -> None:
        super().__init__()
        check_options(num_classes=num_classes, in_chans=in_chans, drop_path_rate=drop_path_rate)
        check_kernel_size(kernel_size)
        (rates,) = drop_path_rates(drop_path_rate, (depth,))
        self.stem = PatchConv2d(in_chans, dim, 16)
        self.blocks = nn.Sequential(*(Block(dim, kernel_size, rate, layer_scale_init_value) for rate in rates))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.stem.apply(init_weights)
        self.blocks.apply(init_weights)
        self.head = classifier_head(dim, num_classes, head_init_scale)

    def forward_features(self, x: Tensor) -> list[Tensor]:
        """Images (N, in_chans, H, W) to four maps (N, dim, H / 16, W / 16)."""
        check_image_size(x, self.smallest_image)
        x = self.stem(x.contiguous(memory_format=torch.channels_last))
        quarters = [round(len(self.blocks) * i / 4) for i in (1, 2, 3, 4)]
        maps = []
        for i, block in enumerate(self.blocks, start=1):
            x = block(x)
            if i in quarters:
                maps.append(x)
        return maps

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, in_chans, H, W) to logits (N, num_classes), or to features (N, dim) without a head."""
        x = self.forward_features(x)[-1].mean((-2, -1))
        return self.head(self.norm(x))


def patchify(in_chans: int, dim: int, stride: int, bias: bool = True) -> nn.Conv2d:
    """The stem's convolution: ``stride`` x ``stride`` patches that do not overlap; 3x3 for stride 1."""
    if stride not in STEM_KERNELS:
        raise UsageError(f"stem_stride is {stride}, needs 4, 2 or 1: take 2 or 1 for small images")
    kernel_size = STEM_KERNELS[stride]
    if kernel_size == stride:
        return PatchConv2d(in_chans, dim, stride, bias)
    return nn.Conv2d(in_chans, dim, kernel_size, stride, padding=(kernel_size - stride) // 2, bias=bias)


def check_image_size(x: Tensor, smallest: int) -> None:
    """Refuse what is no batch of images (N, C, H, W), and images that the strides would reduce to nothing."""
    if x.ndim != 4:
        raise UsageError(
            f"a batch of images (N, C, H, W) is needed, {tuple(x.shape)} arrived: image[None] for a single one"
        )
    height, width = x.shape[-2:]
    if min(height, width) < smallest:
        raise UsageError(
            f"image size {height}x{width} is too small for this network (needs at least {smallest}x{smallest}): "
            f"resize the images (--image-size {smallest} or more)"
        )


def check_options(*, num_classes: int, in_chans: int, drop_path_rate: float) -> None:
    """Refuse values that no network can be built with."""
    if num_classes < 0:
        raise UsageError(f"num_classes is {num_classes}, needs 0 (features) or more")
    if in_chans < 1:
        raise UsageError(f"in_chans is {in_chans}, needs 1 or more")
    if not 0 <= drop_path_rate < 1:
        raise UsageError(f"drop_path_rate is {drop_path_rate}, needs a probability from 0 up to, not including, 1")


def check_kernel_size(kernel_size: int) -> None:
    """Refuse even kernels: they would shift the map."""
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise UsageError(f"kernel_size is {kernel_size}, needs an odd number: 3, 5, 7, ...")


def check_stages(**values: Sequence[int]) -> None:
    """Refuse what are not four positive integers."""
    for name, numbers in values.items():
        if len(numbers) != 4 or min(numbers) < 1:
            raise UsageError(f"{name} is {numbers}, needs four numbers, one per stage, 1 or more each")


ConvNeXtV2 = partial(ConvNeXt, grn=True, layer_scale_init_value=None)

VARIANTS: dict[str, partial[nn.Module]] = {
    "convnext_atto": partial(ConvNeXt, depths=(2, 2, 6, 2), dims=(40, 80, 160, 320)),
    "convnext_femto": partial(ConvNeXt, depths=(2, 2, 6, 2), dims=(48, 96, 192, 384)),
    "convnext_pico": partial(ConvNeXt, depths=(2, 2, 6, 2), dims=(64, 128, 256, 512)),
    "convnext_nano": partial(ConvNeXt, depths=(2, 2, 8, 2), dims=(80, 160, 320, 640)),
    "convnext_tiny": partial(ConvNeXt, depths=(3, 3, 9, 3), dims=(96, 192, 384, 768)),
    "convnext_small": partial(ConvNeXt, depths=(3, 3, 27, 3), dims=(96, 192, 384, 768)),
    "convnext_base": partial(ConvNeXt, depths=(3, 3, 27, 3), dims=(128, 256, 512, 1024)),
    "convnext_large": partial(ConvNeXt, depths=(3, 3, 27, 3), dims=(192, 384, 768, 1536)),
    "convnext_xlarge": partial(ConvNeXt, depths=(3, 3, 27, 3), dims=(256, 512, 1024, 2048)),
    "convnext_isotropic_small": partial(IsotropicConvNeXt, depth=18, dim=384),
    "convnext_isotropic_base": partial(IsotropicConvNeXt, depth=18, dim=768),
    "convnext_isotropic_large": partial(IsotropicConvNeXt, depth=36, dim=1024, layer_scale_init_value=1e-6),
    "convnextv2_atto": partial(ConvNeXtV2, depths=(2, 2, 6, 2), dims=(40, 80, 160, 320)),
    "convnextv2_femto": partial(ConvNeXtV2, depths=(2, 2, 6, 2), dims=(48, 96, 192, 384)),
    "convnextv2_pico": partial(ConvNeXtV2, depths=(2, 2, 6, 2), dims=(64, 128, 256, 512)),
    "convnextv2_nano": partial(ConvNeXtV2, depths=(2, 2, 8, 2), dims=(80, 160, 320, 640)),
    "convnextv2_tiny": partial(ConvNeXtV2, depths=(3, 3, 9, 3), dims=(96, 192, 384, 768)),
    "convnextv2_base": partial(ConvNeXtV2, depths=(3, 3, 27, 3), dims=(128, 256, 512, 1024)),
    "convnextv2_large": partial(ConvNeXtV2, depths=(3, 3, 27, 3), dims=(192, 384, 768, 1536)),
    "convnextv2_huge": partial(ConvNeXtV2, depths=(3, 3, 27, 3), dims=(352, 704, 1408, 2816)),
}
