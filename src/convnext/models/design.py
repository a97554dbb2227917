"""The choices between a ResNet and a ConvNeXt as one dataclass, and the model that any valid set of them builds.

Source: arXiv 2201.03545, section 2. Where the paper is silent, the reading here is this package's own: where the norms
and activations of the intermediate steps come, and that a layer has a bias unless a BatchNorm right after it would
absorb it.
"""

from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, Literal, get_args, get_origin, get_type_hints

from torch import Tensor, nn

from convnext.errors import UsageError
from convnext.models.convnext import (
    StagedNetwork,
    StageLayout,
    check_kernel_size,
    check_options,
    patchify,
    stage_layouts,
)
from convnext.models.layers import (
    DepthwiseConv2d,
    DropPath,
    GELU2d,
    LayerNorm2d,
    PointwiseLinear,
    Stage,
    classifier_head,
    downsampling_convolution,
    drop_path_rates,
    init_weights,
    layer_scale,
)


@dataclass(frozen=True)
class Design:
    """The choices of one model; the defaults are ResNet-50.

    Attributes:
        depths: blocks in each of the four stages.
        width: the first stage's width in channels; it doubles with each stage. A narrow block outputs ``expansion``
            times the width and has the width inside; an inverted one outputs the width and has ``expansion`` times the
            width inside.
        stem: ``resnet`` (7x7/2 convolution, norm, activation, 3x3/2 max-pool) or ``patchify`` (one convolution).
        stem_stride: 4; a patchify stem also takes 2 or 1, for small images.
        bottleneck: ``narrow`` (wide - narrow - wide) or ``inverted`` (narrow - wide - narrow).
        block_order: ``pointwise_first`` (1x1, spatial, 1x1) or ``spatial_first`` (spatial, 1x1, 1x1).
        depthwise: True if the spatial convolution works on each channel alone.
        kernel_size: of the spatial convolution; odd.
        expansion: the ratio between a block's wide and narrow ends.
        pointwise: compute the 1x1 layers as ``linear`` layers over (N, H, W, C) or as 1x1 ``conv`` layers: the same
            function, and the same weights but for two trailing dimensions of 1.
        activation: ``relu`` or ``gelu``.
        activations: per block: 3 (after the first two layers and the addition), 2 (after the first two layers) or
            1 (before the last 1x1 layer).
        norm: ``batch`` or ``layer`` (per position, over the channels).
        norms: per block: 3 (after every layer, the shortcut's too), 2 (at the block's start and after the spatial
            convolution; the variant that the paper tried without gain) or 1 (after the spatial convolution).
        downsampling: ``in_block`` (the spatial convolution of a stage's first block strides, a 1x1 convolution adapts
            the shortcut) or ``separate`` (a 2x2/2 convolution between the stages; no shortcut is adapted).
        stage_norms: with separate downsampling, a norm after a patchify stem, before each downsampling convolution
            and after the final pooling, all of the design's kind. The paper reports that training diverges without.

    Raises:
        UsageError: a value is unknown, or two choices clash; the message names both.
    """

    depths: tuple[int, int, int, int] = (3, 4, 6, 3)
    width: int = 64
    stem: Literal["resnet", "patchify"] = "resnet"
    stem_stride: Literal[4, 2, 1] = 4
    bottleneck: Literal["narrow", "inverted"] = "narrow"
    block_order: Literal["pointwise_first", "spatial_first"] = "pointwise_first"
    depthwise: bool = False
    kernel_size: int = 3
    expansion: int = 4
    pointwise: Literal["linear", "conv"] = "linear"
    activation: Literal["relu", "gelu"] = "relu"
    activations: Literal[1, 2, 3] = 3
    norm: Literal["batch", "layer"] = "batch"
    norms: Literal[1, 2, 3] = 3
    downsampling: Literal["in_block", "separate"] = "in_block"
    stage_norms: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.depths, list):  # from JSON
            object.__setattr__(self, "depths", tuple(self.depths))
        for name, hint in get_type_hints(Design).items():
            value, allowed = getattr(self, name), get_args(hint)
            kind = type(allowed[0]) if get_origin(hint) is Literal else hint
            if kind in (int, bool, str) and type(value) is not kind:
                raise UsageError(f"{name} is {value!r}, needs a value of type {kind.__name__}")
            if get_origin(hint) is Literal and value not in allowed:
                raise UsageError(f"{name} is {value!r}, needs one of {', '.join(map(repr, allowed))}")
        stages = self.depths if isinstance(self.depths, tuple) else ()
        if len(stages) != 4 or not all(type(depth) is int and depth > 0 for depth in stages):
            raise UsageError(f"depths is {self.depths}, needs the blocks of four stages, 1 or more each")
        check_kernel_size(self.kernel_size)
        if min(self.width, self.expansion) < 1:
            raise UsageError(f"width is {self.width} and expansion {self.expansion}, each needs 1 or more")
        if self.stem == "resnet" and self.stem_stride != 4:
            raise UsageError(
                f"stem='resnet' clashes with stem_stride={self.stem_stride}: its convolution and max-pool stride by "
                "4 together; take stem='patchify' or stem_stride=4"
            )
        if self.stage_norms and self.downsampling == "in_block":
            raise UsageError(
                "stage_norms=True clashes with downsampling='in_block': these norms belong to separate downsampling "
                "layers; take downsampling='separate' or stage_norms=False"
            )

    @property
    def widths(self) -> tuple[int, int, int, int]:
        """Channels that each stage puts out."""
        first = self.width * (self.expansion if self.bottleneck == "narrow" else 1)
        return first, 2 * first, 4 * first, 8 * first


class DesignBlock(nn.Module):
    """The residual block of a :class:`Design`, (N, in_channels, H, W) to (N, out_channels, H / stride, W / stride).

    Names are ConvNeXt's: ``dwconv`` is the spatial convolution, dense or depthwise, and ``norm`` comes after it.
    """

    def __init__(
        self,
        design: Design,
        in_channels: int,
        out_channels: int,
        stride: int,
        drop_path: float,
        layer_scale_init_value: float | None,
        dilation: int = 1,
    ) -> None:
        super().__init__()
        narrow = design.bottleneck == "narrow"
        hidden = out_channels // design.expansion if narrow else out_channels * design.expansion
        self.spatial_first = design.block_order == "spatial_first"
        spatial = in_channels if self.spatial_first else hidden
        every_norm = design.norms == 3
        bias_before_norm = design.norm == "layer"
        bias = bias_before_norm or not every_norm

        self.prenorm = norm2d(design, in_channels) if design.norms == 2 else nn.Identity()
        self.dwconv = spatial_convolution(design, spatial, stride, bias_before_norm, dilation)
        self.norm = norm2d(design, spatial)
        self.spatial_act = activation(design) if design.activations > 1 or not self.spatial_first else nn.Identity()
        self.pwconv1 = pointwise(design, spatial if self.spatial_first else in_channels, hidden, bias)
        self.pwnorm1 = norm2d(design, hidden) if every_norm else nn.Identity()
        self.pointwise_act = activation(design) if design.activations > 1 or self.spatial_first else nn.Identity()
        self.pwconv2 = pointwise(design, hidden, out_channels, bias)
        self.pwnorm2 = norm2d(design, out_channels) if every_norm else nn.Identity()
        self.gamma = layer_scale(out_channels, layer_scale_init_value)
        self.drop_path = DropPath(drop_path)
        self.final_act = activation(design) if design.activations == 3 else nn.Identity()
        self.shortcut = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            convolution = nn.Conv2d(in_channels, out_channels, 1, stride, bias=bias)
            norm = [norm2d(design, out_channels)] if every_norm else []
            self.shortcut = nn.Sequential(convolution, *norm)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = self.shortcut(x)  # (N, out_channels, H / stride, W / stride)
        x = self.prenorm(x)  # (N, in_channels, H, W)
        if self.spatial_first:
            x = self.mix(x)
            x = self.widen(x)  # (N, hidden, H / stride, W / stride)
        else:
            x = self.widen(x)  # (N, hidden, H, W)
            x = self.mix(x)
        x = self.pwnorm2(self.pwconv2(x))  # (N, out_channels, H / stride, W / stride)
        if self.gamma is not None:
            x = self.gamma.view(-1, 1, 1) * x
        return self.final_act(shortcut + self.drop_path(x))

    def mix(self, x: Tensor) -> Tensor:
        """Mix positions: the spatial convolution, its norm and its activation."""
        return self.spatial_act(self.norm(self.dwconv(x)))

    def widen(self, x: Tensor) -> Tensor:
        """Mix channels, to the hidden width: the first 1x1 layer, its norm and its activation."""
        return self.pointwise_act(self.pwnorm1(self.pwconv1(x)))


class DesignNetwork(StagedNetwork):
    """The model of a :class:`Design`.

    Args:
        design: its choices.
        num_classes: 0 for features (N, widths[-1]).
        in_chans: channels of the images.
        drop_path_rate: stochastic depth's rate at the last block, growing linearly from 0 at the first.
        layer_scale_init_value: initial value of the scale on each residual branch; None or 0 for none. The paper's
            recipe trains every step of its roadmap with it.
        head_init_scale: factor on the classifier's initial weights.
        output_stride: 32, or for larger feature maps 16 or 8: later stages dilate rather than stride.
    """

    def __init__(
        self,
        design: Design,
        *,
        in_chans: int = 3,
        num_classes: int = 1000,
        drop_path_rate: float = 0.1,
        layer_scale_init_value: float | None = 1e-6,
        head_init_scale: float = 1.0,
        output_stride: int = 32,
    ) -> None:
        check_options(num_classes=num_classes, in_chans=in_chans, drop_path_rate=drop_path_rate)
        separate = design.downsampling == "separate"
        widths = design.widths
        stem_width = widths[0] if separate else design.width
        layouts = stage_layouts(design.stem_stride, output_stride)
        downsample_layers: list[nn.Module] = [stem(design, in_chans, stem_width)]
        for (before, after), layout in zip(pairwise(widths), layouts[1:], strict=True):
            downsample_layers.append(downsampling(design, before, after, layout) if separate else nn.Identity())

        entering = widths if separate else (stem_width, *widths[:3])
        stages = []
        for i, (rates, layout) in enumerate(zip(drop_path_rates(drop_path_rate, design.depths), layouts, strict=True)):
            stride, dilation = (1, layout.dilation) if separate else (layout.stride, layout.first_dilation)
            block = partial(DesignBlock, design, out_channels=widths[i], layer_scale_init_value=layer_scale_init_value)
            blocks = [block(entering[i], stride=stride, drop_path=rates[0], dilation=dilation)]
            blocks += [block(widths[i], stride=1, drop_path=rate, dilation=layout.dilation) for rate in rates[1:]]
            stages.append(Stage(*blocks))

        norm = nn.Identity()
        if design.stage_norms:
            norm = nn.LayerNorm(widths[-1], eps=1e-6) if design.norm == "layer" else nn.BatchNorm1d(widths[-1])
        head = classifier_head(widths[-1], num_classes, head_init_scale)
        sizes: dict[str, Any] = {"in_chans": in_chans, "num_classes": num_classes, "dims": widths, "layouts": layouts}
        super().__init__(downsample_layers, stages, norm, head, **sizes)
        self.design = design
        self.downsample_layers.apply(init_weights)
        self.stages.apply(init_weights)


def stem(design: Design, in_chans: int, width: int) -> nn.Sequential:
    """Images to the first stage's input, (N, in_chans, H, W) to (N, width, H / stem_stride, W / stem_stride)."""
    if design.stem == "patchify":
        norm = [norm2d(design, width)] if design.stage_norms else []
        convolution = patchify(in_chans, width, design.stem_stride, bias=design.norm == "layer" or not norm)
        return nn.Sequential(convolution, *norm)
    convolution = nn.Conv2d(in_chans, width, 7, 2, padding=3, bias=design.norm == "layer")
    return nn.Sequential(convolution, norm2d(design, width), activation(design), nn.MaxPool2d(3, 2, padding=1))


def downsampling(design: Design, in_channels: int, out_channels: int, layout: StageLayout) -> nn.Sequential:
    """A 2x2/2 convolution between two stages, after a norm if the design has stage norms."""
    norm = norm2d(design, in_channels) if design.stage_norms else nn.Identity()
    convolution = downsampling_convolution(in_channels, out_channels, layout.stride, layout.first_dilation)
    return nn.Sequential(norm, convolution)


def spatial_convolution(design: Design, channels: int, stride: int, bias: bool, dilation: int) -> nn.Conv2d:
    """The block's convolution over positions, (N, channels, H, W) to (N, channels, H / stride, W / stride)."""
    if design.depthwise:
        return DepthwiseConv2d(channels, design.kernel_size, bias, stride, dilation)
    padding = dilation * (design.kernel_size // 2)
    return nn.Conv2d(channels, channels, design.kernel_size, stride, padding, dilation, bias=bias)


def norm2d(design: Design, channels: int) -> nn.Module:
    """The design's norm of (N, channels, H, W)."""
    return nn.BatchNorm2d(channels) if design.norm == "batch" else LayerNorm2d(channels)


def activation(design: Design) -> nn.Module:
    """The design's activation."""
    return nn.ReLU() if design.activation == "relu" else GELU2d()


def pointwise(design: Design, in_channels: int, out_channels: int, bias: bool) -> nn.Module:
    """The design's 1x1 layer, (N, in_channels, H, W) to (N, out_channels, H, W)."""
    if design.pointwise == "linear":
        return PointwiseLinear(in_channels, out_channels, bias=bias)
    return nn.Conv2d(in_channels, out_channels, 1, bias=bias)
