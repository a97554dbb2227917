"""ConvNeXt V1 and V2, as published.

The keys of the state dict are the official ones (``downsample_layers``, ``stages``, ``norm``, ``head``).
Sources: arXiv 2201.03545 (V1 and isotropic), arXiv 2301.00808 (V2).
"""

from collections.abc import Iterable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

from torch import Tensor, nn

from convnext.errors import UsageError
from convnext.models.layers import (
    DepthwiseConv2d,
    DropPath,
    GlobalResponseNorm,
    LayerNorm,
    LayerNorm2d,
    PatchConv2d,
    Stage,
    classifier_head,
    downsampling_convolution,
    drop_path_rates,
    init_weights,
    layer_scale,
    to_nchw,
    to_nhwc,
)
from convnext.models.protocol import Network

STEM_KERNELS = {4: 4, 2: 2, 1: 3}  # stride -> kernel: patches that do not overlap, but a 1x1 patch would see one pixel


class Block(nn.Module):
    """Depthwise convolution, LayerNorm, linear to 4 times the width, GELU, [GRN], linear back; the shape is kept.

    V1 scales the result by ``gamma`` (LayerScale); V2 has GRN and no LayerScale.
    """

    def __init__(
        self,
        dim: int,
        kernel_size: int = 7,
        drop_path: float = 0.0,
        layer_scale_init_value: float | None = 1e-6,
        grn: bool = False,
        dilation: int = 1,
    ) -> None:
        super().__init__()
        self.dwconv = DepthwiseConv2d(dim, kernel_size, dilation=dilation)
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


class StageLayout(NamedTuple):
    """A stage's place in the pyramid of feature maps.

    Attributes:
        stride: of the downsampling before the stage; 1 where the output stride is reached.
        first_dilation: of that downsampling.
        dilation: of the stage's spatial convolutions.
        reduction: the stride of its feature map in pixels of the image.
    """

    stride: int
    first_dilation: int
    dilation: int
    reduction: int


def stage_layouts(stem_stride: int, output_stride: int) -> list[StageLayout]:
    """The layouts of the four stages: each after the first has stride 2, or dilates once ``output_stride`` is reached.

    Raises:
        UsageError: the output stride is not 8, 16 or 32.
    """
    if output_stride not in (8, 16, 32):
        raise UsageError(f"output_stride is {output_stride}, needs 32, 16 or 8")
    layouts = [StageLayout(stride=1, first_dilation=1, dilation=1, reduction=stem_stride)]
    for _ in range(3):
        *_, dilation, reduction = layouts[-1]
        stride = 2 if reduction < output_stride else 1
        layouts.append(StageLayout(stride, dilation, dilation * (3 - stride), reduction * stride))
    return layouts


class StagedNetwork(Network):
    """Four stages, each after a downsampling layer, then global average pooling, norm and head.

    Args:
        downsample_layers: the stem, and the layers before stages 2, 3 and 4.
        stages: the four stages.
        norm: the norm after global average pooling, over (N, C).
        head: the classifier, (N, C) to (N, num_classes).
        in_chans: channels of the images.
        num_classes: 0 without a classifier.
        dims: channels of the stages' feature maps.
        layouts: their strides and dilations.
    """

    downsample_layers: nn.ModuleList
    stages: nn.ModuleList

    def __init__(
        self,
        downsample_layers: Iterable[nn.Module],
        stages: Iterable[Stage],
        norm: nn.Module,
        head: nn.Module,
        *,
        in_chans: int,
        num_classes: int,
        dims: Sequence[int],
        layouts: Sequence[StageLayout],
    ) -> None:
        features = [
            {"num_chs": dim, "reduction": layout.reduction, "module": f"stages.{i}"}
            for i, (dim, layout) in enumerate(zip(dims, layouts, strict=True))
        ]
        super().__init__(in_chans, num_classes, features, smallest_image=layouts[-1].reduction)
        self.downsample_layers = nn.ModuleList(downsample_layers)
        self.stages = nn.ModuleList(stages)
        self.norm = norm
        self.head = head

    def forward_stage(self, index: int, x: Tensor) -> Tensor:
        return self.stages[index](self.downsample_layers[index](x))

    def drop_stages(self, count: int) -> None:
        self.downsample_layers = self.downsample_layers[:count]
        self.stages = self.stages[:count]

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        if coarse:
            return {"stem": r"^downsample_layers\.0", "blocks": r"^(?:downsample_layers|stages)\.(\d+)"}
        downsampling, block = r"^downsample_layers\.(\d+)", r"^stages\.(\d+)\.(\d+)"
        return {"stem": r"^downsample_layers\.0", "blocks": [(downsampling, (0,)), (block, None)]}


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
        output_stride: 32, or for larger feature maps 16 or 8: later stages dilate rather than stride.
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
        output_stride: int = 32,
    ) -> None:
        check_options(num_classes=num_classes, in_chans=in_chans, drop_path_rate=drop_path_rate)
        check_kernel_size(kernel_size)
        check_stages(depths=depths, dims=dims)
        stem = patchify(in_chans, dims[0], stem_stride)
        downsample_layers = [nn.Sequential(stem, LayerNorm2d(dims[0]))]
        layouts = stage_layouts(stem_stride, output_stride)
        for (before, after), layout in zip(pairwise(dims), layouts[1:], strict=True):
            convolution = downsampling_convolution(before, after, layout.stride, layout.first_dilation)
            downsample_layers.append(nn.Sequential(LayerNorm2d(before), convolution))
        block = partial(Block, kernel_size=kernel_size, layer_scale_init_value=layer_scale_init_value, grn=grn)
        stages = [
            Stage(*(block(dim, drop_path=rate, dilation=layout.dilation) for rate in rates))
            for dim, rates, layout in zip(dims, drop_path_rates(drop_path_rate, depths), layouts, strict=True)
        ]
        norm = nn.LayerNorm(dims[-1], eps=1e-6)
        head = classifier_head(dims[-1], num_classes, head_init_scale)
        sizes: dict[str, Any] = {"in_chans": in_chans, "num_classes": num_classes, "dims": dims, "layouts": layouts}
        super().__init__(downsample_layers, stages, norm, head, **sizes)
        self.downsample_layers.apply(init_weights)
        self.stages.apply(init_weights)


class IsotropicConvNeXt(Network):
    """ConvNeXt without stages, as a vision transformer is built: 16x16 patches, then blocks of one width.

    Its four feature maps are those after each quarter of the blocks, all of stride 16.
    """

    blocks: Stage

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
        output_stride: int = 16,
    ) -> None:
        check_options(num_classes=num_classes, in_chans=in_chans, drop_path_rate=drop_path_rate)
        check_kernel_size(kernel_size)
        if output_stride not in (16, 32):
            raise UsageError(f"output_stride is {output_stride}, needs 16: an isotropic model has no other stride")
        ends = [max(1, round(depth * i / 4)) for i in (1, 2, 3, 4)]  # blocks up to each feature map
        features = [{"num_chs": dim, "reduction": 16, "module": f"blocks.{end - 1}"} for end in ends]
        super().__init__(in_chans, num_classes, features, smallest_image=32)
        self.ends = ends
        (rates,) = drop_path_rates(drop_path_rate, (depth,))
        self.stem = PatchConv2d(in_chans, dim, 16)
        self.blocks = Stage(*(Block(dim, kernel_size, rate, layer_scale_init_value) for rate in rates))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.stem.apply(init_weights)
        self.blocks.apply(init_weights)
        self.head = classifier_head(dim, num_classes, head_init_scale)

    def forward_stage(self, index: int, x: Tensor) -> Tensor:
        if index == 0:
            x = self.stem(x)
        first = self.ends[index - 1] if index else 0
        for block in list(self.blocks)[first : self.ends[index]]:
            x = self.blocks.run(block, x)
        return x

    def drop_stages(self, count: int) -> None:
        self.blocks = Stage(*self.blocks[: self.ends[count - 1]])

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:  # noqa: ARG002
        return {"stem": r"^stem", "blocks": r"^blocks\.(\d+)"}


def patchify(in_chans: int, dim: int, stride: int, bias: bool = True) -> nn.Conv2d:
    """The stem's convolution: ``stride`` x ``stride`` patches that do not overlap; 3x3 for stride 1."""
    if stride not in STEM_KERNELS:
        raise UsageError(f"stem_stride is {stride}, needs 4, 2 or 1: take 2 or 1 for small images")
    kernel_size = STEM_KERNELS[stride]
    if kernel_size == stride:
        return PatchConv2d(in_chans, dim, stride, bias)
    return nn.Conv2d(in_chans, dim, kernel_size, stride, padding=(kernel_size - stride) // 2, bias=bias)


def check_options(*, num_classes: int, in_chans: int, drop_path_rate: float) -> None:
    """Refuse values that no model can be built with."""
    if num_classes < 0:
        raise UsageError(f"num_classes is {num_classes}, needs 0 (features) or more")
    if in_chans < 1:
        raise UsageError(f"in_chans is {in_chans}, needs 1 or more")
    if not 0 <= drop_path_rate < 1:
        raise UsageError(f"drop_path_rate is {drop_path_rate}, needs a probability from 0 up to, not including, 1")


def check_kernel_size(kernel_size: int) -> None:
    """Refuse even kernels: they would shift the feature map."""
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise UsageError(f"kernel_size is {kernel_size}, needs an odd number: 3, 5, 7, ...")


def check_stages(**values: Sequence[int]) -> None:
    """Refuse anything but four positive numbers."""
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
