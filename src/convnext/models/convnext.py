"""ConvNeXt, V1 and V2: the whole network, as published.

Keys of the state dict are the official ones (``downsample_layers``, ``stages``, ``norm``, ``head``).
Sources: arXiv 2201.03545 (V1 and isotropic), arXiv 2301.00808 (V2).
"""

from collections.abc import Callable, Iterable
from functools import partial

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
    to_nchw,
    to_nhwc,
)

STEM_KERNELS = {4: 4, 2: 2, 1: 3}  # stride -> kernel: patches that do not overlap, but a 1x1 patch would see one pixel


class Block(nn.Module):
    """Depthwise convolution, LayerNorm, linear to 4 times the width, GELU, [GRN], linear back; keeps (N, C, H, W).

    V1 scales the result by ``gamma`` (LayerScale); V2 has GRN and no LayerScale.
    """

    def __init__(self, channels: int, kernel_size: int, drop_path: float, layer_scale: float | None, grn: bool) -> None:
        super().__init__()
        self.dwconv = DepthwiseConv2d(channels, kernel_size)
        self.norm = LayerNorm(channels)
        self.pwconv1 = nn.Linear(channels, 4 * channels)
        self.act = nn.GELU()
        self.grn = GlobalResponseNorm(4 * channels) if grn else nn.Identity()
        self.pwconv2 = nn.Linear(4 * channels, channels)
        self.gamma = None if layer_scale is None else nn.Parameter(torch.full((channels,), layer_scale))
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
        """Images (N, in_channels, H, W) to the four stages' maps, strides 4, 8, 16 and 32 behind a stem of stride 4.

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
        """Images (N, in_channels, H, W) to logits (N, num_classes), or to features (N, C) without a head."""
        x = self.forward_features(x)[-1].mean((-2, -1))
        return self.head(self.norm(x))


class ConvNeXt(StagedNetwork):
    """ConvNeXt V1, or V2 with ``grn=True`` and ``layer_scale=None``.

    Args:
        depths: blocks in each stage.
        width: channels of the first stage; each stage after it has twice as many.
        num_classes: 0 for features (N, 8 * width).
        drop_path: stochastic depth's rate at the last block, growing linearly from 0 at the first.
        layer_scale: initial value of each block's ``gamma``; None for none.
        stem_stride: 4, or for small images 2 (2x2 patches) or 1 (a 3x3 convolution).
        head_init_scale: factor on the classifier's initial weights.
    """

    def __init__(
        self,
        depths: tuple[int, int, int, int],
        width: int,
        *,
        num_classes: int = 1000,
        in_channels: int = 3,
        drop_path: float = 0.0,
        layer_scale: float | None = 1e-6,
        grn: bool = False,
        kernel_size: int = 7,
        stem_stride: int = 4,
        head_init_scale: float = 1.0,
    ) -> None:
        check_options(num_classes=num_classes, in_channels=in_channels, drop_path=drop_path)
        check_kernel_size(kernel_size)
        stem = patchify(in_channels, width, stem_stride)
        widths = [width * 2**i for i in range(4)]
        downsample_layers = [nn.Sequential(stem, LayerNorm2d(width))]
        for i in range(3):
            downsample_layers.append(nn.Sequential(LayerNorm2d(widths[i]), PatchConv2d(widths[i], widths[i + 1], 2)))
        block = partial(Block, kernel_size=kernel_size, layer_scale=layer_scale, grn=grn)
        stages = [
            nn.Sequential(*(block(channels, drop_path=rate) for rate in rates))
            for channels, rates in zip(widths, drop_path_rates(drop_path, depths), strict=True)
        ]
        head = classifier_head(widths[-1], num_classes, head_init_scale)
        super().__init__(downsample_layers, stages, nn.LayerNorm(widths[-1], eps=1e-6), head, stem_stride)
        self.downsample_layers.apply(init_weights)
        self.stages.apply(init_weights)


class IsotropicConvNeXt(nn.Module):
    """ConvNeXt without stages, as a vision transformer is built: 16x16 patches, then blocks of one width.

    Its ``forward_features`` gives the maps behind each quarter of the blocks, all of stride 16.
    """

    smallest_image = 32

    def __init__(
        self,
        depth: int,
        width: int,
        *,
        num_classes: int = 1000,
        in_channels: int = 3,
        drop_path: float = 0.0,
        layer_scale: float | None = None,
        kernel_size: int = 7,
        head_init_scale: float = 1.0,
    ) -> None:
        super().__init__()
        check_options(num_classes=num_classes, in_channels=in_channels, drop_path=drop_path)
        check_kernel_size(kernel_size)
        (rates,) = drop_path_rates(drop_path, (depth,))
        self.stem = PatchConv2d(in_channels, width, 16)
        self.blocks = nn.Sequential(*(Block(width, kernel_size, rate, layer_scale, grn=False) for rate in rates))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.stem.apply(init_weights)
        self.blocks.apply(init_weights)
        self.head = classifier_head(width, num_classes, head_init_scale)

    def forward_features(self, x: Tensor) -> list[Tensor]:
        """Images (N, in_channels, H, W) to four maps (N, width, H / 16, W / 16)."""
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
        """Images (N, in_channels, H, W) to logits (N, num_classes), or to features (N, width) without a head."""
        x = self.forward_features(x)[-1].mean((-2, -1))
        return self.head(self.norm(x))


def patchify(in_channels: int, width: int, stride: int, bias: bool = True) -> nn.Conv2d:
    """The stem's convolution: ``stride`` x ``stride`` patches that do not overlap; 3x3 for stride 1."""
    if stride not in STEM_KERNELS:
        raise UsageError(f"stem_stride is {stride}, needs 4, 2 or 1: take 2 or 1 for small images")
    kernel_size = STEM_KERNELS[stride]
    if kernel_size == stride:
        return PatchConv2d(in_channels, width, stride, bias)
    return nn.Conv2d(in_channels, width, kernel_size, stride, padding=(kernel_size - stride) // 2, bias=bias)


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


def check_options(*, num_classes: int, in_channels: int, drop_path: float) -> None:
    """Refuse values that no network can be built with."""
    if num_classes < 0:
        raise UsageError(f"num_classes is {num_classes}, needs 0 (features) or more")
    if in_channels < 1:
        raise UsageError(f"in_channels is {in_channels}, needs 1 or more")
    if not 0 <= drop_path < 1:
        raise UsageError(f"drop_path is {drop_path}, needs a probability from 0 up to, not including, 1")


def check_kernel_size(kernel_size: int) -> None:
    """Refuse even kernels: they would shift the map."""
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise UsageError(f"kernel_size is {kernel_size}, needs an odd number: 3, 5, 7, ...")


ConvNeXtV2 = partial(ConvNeXt, grn=True, layer_scale=None)

VARIANTS: dict[str, Callable[..., nn.Module]] = {
    "convnext_atto": partial(ConvNeXt, (2, 2, 6, 2), 40),
    "convnext_femto": partial(ConvNeXt, (2, 2, 6, 2), 48),
    "convnext_pico": partial(ConvNeXt, (2, 2, 6, 2), 64),
    "convnext_nano": partial(ConvNeXt, (2, 2, 8, 2), 80),
    "convnext_tiny": partial(ConvNeXt, (3, 3, 9, 3), 96),
    "convnext_small": partial(ConvNeXt, (3, 3, 27, 3), 96),
    "convnext_base": partial(ConvNeXt, (3, 3, 27, 3), 128),
    "convnext_large": partial(ConvNeXt, (3, 3, 27, 3), 192),
    "convnext_xlarge": partial(ConvNeXt, (3, 3, 27, 3), 256),
    "convnext_isotropic_small": partial(IsotropicConvNeXt, 18, 384),
    "convnext_isotropic_base": partial(IsotropicConvNeXt, 18, 768),
    "convnext_isotropic_large": partial(IsotropicConvNeXt, 36, 1024, layer_scale=1e-6),
    "convnextv2_atto": partial(ConvNeXtV2, (2, 2, 6, 2), 40),
    "convnextv2_femto": partial(ConvNeXtV2, (2, 2, 6, 2), 48),
    "convnextv2_pico": partial(ConvNeXtV2, (2, 2, 6, 2), 64),
    "convnextv2_nano": partial(ConvNeXtV2, (2, 2, 8, 2), 80),
    "convnextv2_tiny": partial(ConvNeXtV2, (3, 3, 9, 3), 96),
    "convnextv2_base": partial(ConvNeXtV2, (3, 3, 27, 3), 128),
    "convnextv2_large": partial(ConvNeXtV2, (3, 3, 27, 3), 192),
    "convnextv2_huge": partial(ConvNeXtV2, (3, 3, 27, 3), 352),
}
