"""The ConvNeXt that some tensors belong to, inferred from their official names and shapes."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from convnext.errors import UsageError
from convnext.models.convnext import STEM_KERNELS, VARIANTS, ConvNeXt, IsotropicConvNeXt

STRIDES = {kernel: stride for stride, kernel in STEM_KERNELS.items()}
# timm's convnext_xxlarge, OpenCLIP's largest tower, has another epsilon; no tensor shows it.
NORM_EPS: dict[tuple[tuple[int, ...], int], float] = {((3, 4, 30, 3), 384): 1e-5}
BLOCK = re.compile(r"(?:stages\.(\d{1,9})|blocks)\.(\d{1,9})\.dwconv\.weight")
MAX_BLOCKS = 1000  # the largest published model has 41; each takes time to build


@dataclass(frozen=True)
class Architecture:
    """A ConvNeXt as its tensors show it.

    Attributes:
        depths: blocks of each stage; of an isotropic model, their number alone.
        dims: channels of each stage; of an isotropic model, those of all blocks alone.
        grn: True for V2's global response normalization.
        layer_scale: True if blocks have a ``gamma``.
        kernel_size: of the depthwise convolutions.
        stem_stride: of the first convolution.
        in_channels: of the images.
        num_classes: 0 without a classifier.
    """

    depths: tuple[int, ...]
    dims: tuple[int, ...]
    grn: bool
    layer_scale: bool
    kernel_size: int
    stem_stride: int
    in_channels: int
    num_classes: int

    @property
    def is_isotropic(self) -> bool:
        """True for a model without stages."""
        return len(self.depths) == 1

    @property
    def size(self) -> dict[str, Any]:
        """Depths and widths, as the constructor takes them."""
        if self.is_isotropic:
            return {"depth": self.depths[0], "dim": self.dims[0]}
        return {"depths": self.depths, "dims": self.dims}

    @property
    def variant(self) -> str | None:
        """Its name in this package, whatever stem, kernel, channels and classes; None if it has none."""
        for name, builder in VARIANTS.items():
            arguments = {"grn": False} | builder.keywords
            if all(arguments.get(key) == value for key, value in (self.size | {"grn": self.grn}).items()):
                return name
        return None

    @property
    def name(self) -> str:
        """Its name, or a description."""
        kind = "ConvNeXt V2" if self.grn else "ConvNeXt"
        depths, dims = (", ".join(map(str, sizes)) for sizes in (self.depths, self.dims))
        return self.variant or f"a {kind} of depths {depths} and dims {dims}"

    @property
    def norm_eps(self) -> float:
        """Epsilon of the LayerNorms."""
        return NORM_EPS.get((self.depths, self.dims[0]), 1e-6)

    def build(self) -> nn.Module:
        """Build the model with initial weights, without drop path.

        Raises:
            UsageError: this package has no such model.
        """
        options: dict[str, Any] = {
            "num_classes": self.num_classes,
            "in_chans": self.in_channels,
            "kernel_size": self.kernel_size,
            "layer_scale_init_value": 1e-6 if self.layer_scale else None,
        }
        if self.is_isotropic:
            return IsotropicConvNeXt(**self.size, **options)
        model = ConvNeXt(**self.size, grn=self.grn, stem_stride=self.stem_stride, **options)
        for module in model.modules():
            if isinstance(module, nn.LayerNorm):
                module.eps = self.norm_eps
        return model

    def meta_weights(self) -> dict[str, Tensor]:
        """The model's state dict on the meta device."""
        with torch.device("meta"):
            return self.build().state_dict()


def architecture_of(weights: Mapping[str, Tensor]) -> Architecture:
    """Infer the architecture from tensors under official names.

    Raises:
        UsageError: they are of no ConvNeXt; the message names the tensor that is missing or odd.
    """
    blocks = {(int(match[1] or 0), int(match[2])) for name in weights if (match := BLOCK.fullmatch(name))}
    is_isotropic = "stem.weight" in weights
    first = "blocks.0" if is_isotropic else "stages.0.0"
    stem = need(weights, "stem.weight" if is_isotropic else "downsample_layers.0.0.weight", dimensions=4)
    stages = 1 if is_isotropic else 4
    depths = tuple(sum(stage == i for stage, _ in blocks) for i in range(stages))
    if blocks != {(i, j) for i in range(stages) for j in range(max(1, depths[i]))}:
        found = ", ".join(map(str, depths))
        raise UsageError(f"not all blocks of a ConvNeXt are there: it needs {stages} stages, found {found} blocks")
    if sum(depths) > MAX_BLOCKS:
        raise UsageError(f"it has {sum(depths):,} blocks, more than any ConvNeXt ({MAX_BLOCKS:,})")
    kernel = stem.shape[-1]
    if not is_isotropic and kernel not in STRIDES:
        raise UsageError(f"the stem's kernel is {kernel}x{kernel}, this package has {', '.join(map(str, STRIDES))}")
    stage_starts = [first] if is_isotropic else [f"stages.{i}.0" for i in range(4)]
    depthwise = [need(weights, f"{start}.dwconv.weight", dimensions=4) for start in stage_starts]
    head = need(weights, "head.weight", dimensions=2) if "head.weight" in weights else None
    return Architecture(
        depths=depths,
        dims=tuple(weight.shape[0] for weight in depthwise),
        grn=f"{first}.grn.gamma" in weights,
        layer_scale=f"{first}.gamma" in weights,
        kernel_size=depthwise[0].shape[-1],
        stem_stride=kernel if is_isotropic else STRIDES[kernel],
        in_channels=stem.shape[1],
        num_classes=0 if head is None else head.shape[0],
    )


def need(weights: Mapping[str, Tensor], name: str, dimensions: int) -> Tensor:
    """Return a tensor that every ConvNeXt has."""
    if name not in weights:
        raise UsageError(f"no ConvNeXt: {name} is missing")
    if weights[name].ndim != dimensions:
        raise UsageError(f"no ConvNeXt: {name} has {weights[name].ndim} dimensions, needs {dimensions}")
    if not weights[name].numel():
        raise UsageError(f"no ConvNeXt: {name} has no values")
    return weights[name]
