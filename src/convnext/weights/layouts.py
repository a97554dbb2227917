"""The layouts of weights files: one table of rules for each library, used in both directions.

A rule has another library's name of a tensor, the official name, and the reshaping between the two. A file is of the
layout whose anchors, names that no other layout has, it contains under a common prefix.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache, cached_property

from torch import Tensor

FIELD = re.compile(r"\{(\w+)\}")
NUMBER, PARAMETER = r"\d+", "weight|bias"  # the values of a field; {p} is a PARAMETER

Reshape = Callable[[Tensor], Tensor]


def flat(tensor: Tensor) -> Tensor:
    """Reshape (1, 1, 1, C) to (C,)."""
    return tensor.reshape(-1)


def channels_first(tensor: Tensor) -> Tensor:
    """Reshape (C,) to (C, 1, 1), to scale (N, C, H, W)."""
    return tensor.reshape(-1, 1, 1)


def pointwise(tensor: Tensor) -> Tensor:
    """Reshape a linear layer's weight (O, I) to a 1x1 convolution's (O, I, 1, 1)."""
    return tensor[:, :, None, None]


def dense_kernel(kernel: Tensor) -> Tensor:
    """Convert a sparse convolution's kernel to a dense convolution's weight.

    The sparse library lists the positions of a kernel along one axis, column by column: (K * K, C) of a depthwise
    convolution becomes (C, 1, K, K), and (K * K, I, O) becomes (O, I, K, K).
    """
    size = math.isqrt(kernel.shape[0])
    positions = kernel.reshape(size, size, *kernel.shape[1:]).transpose(0, 1)  # (row, column, ...)
    if kernel.ndim == 2:
        return positions.permute(2, 0, 1).unsqueeze(1).contiguous()
    return positions.permute(3, 2, 0, 1).contiguous()


@dataclass(frozen=True)
class Rule:
    """A name in a layout and the official one, with the same fields in both.

    Attributes:
        theirs: a name with fields, as ``stages.{i}.blocks.{j}.conv_dw.{p}``; ``{p}`` is ``weight`` or ``bias``, any
            other field a number.
        ours: the official name of the same tensor.
        outward: from the official shape to the layout's, where they differ.
        inward: to the official shape, where it differs in more than dimensions of 1.
    """

    theirs: str
    ours: str
    outward: Reshape | None = None
    inward: Reshape | None = None


@cache
def pattern(template: str) -> re.Pattern[str]:
    """Compile a name with fields to a regular expression."""
    parts = FIELD.split(template)  # text, field, text, ...
    fields = [f"(?P<{field}>{PARAMETER if field == 'p' else NUMBER})" for field in parts[1::2]]
    texts = [re.escape(text) for text in parts[::2]]
    return re.compile("".join(text + field for text, field in zip(texts, [*fields, ""], strict=True)))


@dataclass(frozen=True)
class Layout:
    """The names and shapes by which a library stores a ConvNeXt's tensors.

    Attributes:
        name: for the user.
        anchors: names that every file of this layout contains, and no file of another layout.
        names: official names by the layout's.
        reshaping: rules that precede those names.
        unused: prefixes of names that belong to another task than classification.
        norm_eps: the library's default epsilon of the final norm, where it differs.
    """

    name: str
    anchors: tuple[str, ...]
    names: Mapping[str, str]
    reshaping: tuple[Rule, ...] = ()
    unused: tuple[str, ...] = ()
    norm_eps: float | None = None

    @cached_property
    def rules(self) -> tuple[Rule, ...]:
        """All rules; the first that matches a name applies."""
        return (*self.reshaping, *(Rule(theirs, ours) for theirs, ours in self.names.items()))

    def prefix(self, names: Iterable[str]) -> str | None:
        """Return the prefix of the model's names, as ``visual.trunk.``; None if no model of this layout is there.

        Of several models in one file, the first.
        """
        names = list(names)
        there = set(names)
        for name in names:
            prefix = name.removesuffix(self.anchors[0])
            is_whole = name.endswith(self.anchors[0]) and (not prefix or prefix.endswith("."))
            if is_whole and all(prefix + anchor in there for anchor in self.anchors):
                return prefix
        return None

    def to_official(self, name: str, tensor: Tensor) -> tuple[str, Tensor] | None:
        """Return a tensor's official name and value; None if no rule matches.

        Its shape may differ from the official one in dimensions of 1. A tensor that cannot be reshaped stays as it is:
        fitting it to a model reports its shape.
        """
        for rule in self.rules:
            if match := pattern(rule.theirs).fullmatch(name):
                with suppress(RuntimeError, IndexError):
                    tensor = rule.inward(tensor) if rule.inward else tensor
                return rule.ours.format(**match.groupdict()), tensor
        return None

    def from_official(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Convert an official state dict to this layout.

        Raises:
            KeyError: the layout has no name for a tensor.
        """
        converted = {}
        for name, tensor in weights.items():
            matches = ((rule, pattern(rule.ours).fullmatch(name)) for rule in self.rules)
            found = next(((rule, match) for rule, match in matches if match), None)
            if found is None:
                raise KeyError(name)
            rule, match = found
            converted[rule.theirs.format(**match.groupdict())] = rule.outward(tensor) if rule.outward else tensor
        return converted


def unchanged(*names: str) -> dict[str, str]:
    """Names that are the official ones."""
    return {name: name for name in names}


def block(place: str, ours: str = "stages.{i}.{j}", **layers: str) -> dict[str, str]:
    """The names of a block at a place in a layout; ``layers`` are the layout's names of the official layers."""
    return {f"{place}.{theirs}.{{p}}": f"{ours}.{layer}.{{p}}" for layer, theirs in layers.items()}


OFFICIAL_LAYERS = unchanged("dwconv", "norm", "pwconv1", "pwconv2")
GRN = unchanged("stages.{i}.{j}.grn.gamma", "stages.{i}.{j}.grn.beta")
END = unchanged("norm.{p}", "head.{p}")

# The authors' layout, which is this package's own.
OFFICIAL = Layout(
    "official",
    anchors=("downsample_layers.0.0.weight", "stages.0.0.dwconv.weight"),
    names={
        **unchanged("downsample_layers.{i}.{j}.{p}", "stages.{i}.{j}.gamma"),
        **block("stages.{i}.{j}", **OFFICIAL_LAYERS),
        **(GRN | END),
    },
    unused=("norms.", "decoder.", "proj.", "pred.", "mask_token"),  # DINOv3's norms of stages, FCMAE's decoder
)

ISOTROPIC = Layout(
    "official",
    anchors=("stem.weight", "blocks.0.dwconv.weight"),
    names={**unchanged("stem.{p}", "blocks.{j}.gamma"), **block("blocks.{j}", "blocks.{j}", **OFFICIAL_LAYERS), **END},
)

# Masked pre-training (FCMAE) with sparse convolutions; the stem is dense.
SPARSE = Layout(
    "official, sparse",
    anchors=("downsample_layers.0.0.weight", "stages.0.0.dwconv.kernel"),
    names={
        "downsample_layers.{i}.0.ln.{p}": "downsample_layers.{i}.0.{p}",
        **unchanged("downsample_layers.{i}.1.bias", "stages.{i}.{j}.dwconv.bias"),
        **block("stages.{i}.{j}", norm="norm.ln", pwconv1="pwconv1.linear", pwconv2="pwconv2.linear"),
        **(GRN | END),
    },
    reshaping=(
        Rule("downsample_layers.0.{j}.{p}", "downsample_layers.0.{j}.{p}"),
        Rule("downsample_layers.{i}.1.kernel", "downsample_layers.{i}.1.weight", inward=dense_kernel),
        Rule("stages.{i}.{j}.dwconv.kernel", "stages.{i}.{j}.dwconv.weight", inward=dense_kernel),
    ),
    unused=OFFICIAL.unused,
)

# timm, and OpenCLIP, whose image towers are timm's models under a prefix.
TIMM = Layout(
    "timm",
    anchors=("stem.0.weight", "stages.0.blocks.0.conv_dw.weight"),
    names={
        "stem.{j}.{p}": "downsample_layers.0.{j}.{p}",
        "stages.{i}.downsample.{j}.{p}": "downsample_layers.{i}.{j}.{p}",
        "stages.{i}.blocks.{j}.gamma": "stages.{i}.{j}.gamma",
        **block("stages.{i}.blocks.{j}", dwconv="conv_dw", norm="norm", pwconv1="mlp.fc1", pwconv2="mlp.fc2"),
        "head.norm.{p}": "norm.{p}",
        "head.fc.{p}": "head.{p}",
    },
    reshaping=(
        Rule("stages.{i}.blocks.{j}.mlp.grn.weight", "stages.{i}.{j}.grn.gamma", flat),
        Rule("stages.{i}.blocks.{j}.mlp.grn.bias", "stages.{i}.{j}.grn.beta", flat),
    ),
)
# With 1x1 convolutions in place of linear layers, as timm builds its small models (``conv_mlp``).
TIMM_CONV_MLP = replace(
    TIMM,
    reshaping=(
        *TIMM.reshaping,
        Rule("stages.{i}.blocks.{j}.mlp.fc1.weight", "stages.{i}.{j}.pwconv1.weight", pointwise),
        Rule("stages.{i}.blocks.{j}.mlp.fc2.weight", "stages.{i}.{j}.pwconv2.weight", pointwise),
    ),
)

# torchvision has V1 alone. Downsampling layers and stages alternate in ``features``; in a block, 1 and 6 permute, 4 is
# GELU.
TORCHVISION_LAYERS = {"dwconv": "block.0", "norm": "block.2", "pwconv1": "block.3", "pwconv2": "block.5"}
TORCHVISION = Layout(
    "torchvision",
    anchors=("features.0.0.weight", "features.1.0.layer_scale"),
    names={
        **{f"features.{2 * i}.{{j}}.{{p}}": f"downsample_layers.{i}.{{j}}.{{p}}" for i in range(4)},
        **block("features.1.{j}", "stages.0.{j}", **TORCHVISION_LAYERS),
        **block("features.3.{j}", "stages.1.{j}", **TORCHVISION_LAYERS),
        **block("features.5.{j}", "stages.2.{j}", **TORCHVISION_LAYERS),
        **block("features.7.{j}", "stages.3.{j}", **TORCHVISION_LAYERS),
        "classifier.0.{p}": "norm.{p}",
        "classifier.2.{p}": "head.{p}",
    },
    reshaping=tuple(
        Rule(f"features.{2 * i + 1}.{{j}}.layer_scale", f"stages.{i}.{{j}}.gamma", channels_first) for i in range(4)
    ),
)

# transformers: with a classifier, the model stands under ``convnext.`` or ``convnextv2.``; as a plain model or a
# backbone, under no prefix. A backbone has norms of its feature maps in place of the final norm.
TRANSFORMERS = Layout(
    "transformers",
    anchors=("embeddings.patch_embeddings.weight", "encoder.stages.0.layers.0.dwconv.weight"),
    names={
        "embeddings.patch_embeddings.{p}": "downsample_layers.0.0.{p}",
        "embeddings.layernorm.{p}": "downsample_layers.0.1.{p}",
        "encoder.stages.{i}.downsampling_layer.{j}.{p}": "downsample_layers.{i}.{j}.{p}",
        "encoder.stages.{i}.layers.{j}.layer_scale_parameter": "stages.{i}.{j}.gamma",
        **block("encoder.stages.{i}.layers.{j}", **(OFFICIAL_LAYERS | {"norm": "layernorm"})),
        "encoder.stages.{i}.layers.{j}.grn.weight": "stages.{i}.{j}.grn.gamma",
        "encoder.stages.{i}.layers.{j}.grn.bias": "stages.{i}.{j}.grn.beta",
        "layernorm.{p}": "norm.{p}",
        "classifier.{p}": "head.{p}",
    },
    unused=("hidden_states_norms.",),
    norm_eps=1e-12,
)

DINOV3_LAYERS = {"norm": "layer_norm", "pwconv1": "pointwise_conv1", "pwconv2": "pointwise_conv2"}
DINOV3 = Layout(
    "transformers, DINOv3",
    anchors=("stages.0.downsample_layers.0.weight", "stages.0.layers.0.depthwise_conv.weight"),
    names={
        "stages.{i}.downsample_layers.{j}.{p}": "downsample_layers.{i}.{j}.{p}",
        "stages.{i}.layers.{j}.gamma": "stages.{i}.{j}.gamma",
        **block("stages.{i}.layers.{j}", dwconv="depthwise_conv", **DINOV3_LAYERS),
        "layer_norm.{p}": "norm.{p}",
    },
)

LAYOUTS = (OFFICIAL, ISOTROPIC, SPARSE, TIMM, TORCHVISION, TRANSFORMERS, DINOV3)


@dataclass(frozen=True)
class OfficialWeights:
    """A file's tensors under their official names.

    Attributes:
        layout: the file's layout, with the prefix of its names: ``timm under visual.trunk``.
        weights: the tensors.
        unused: names in the file of tensors of another model or task.
        norm_eps: epsilon of the final norm, where the layout's library has its own default.
    """

    layout: str
    weights: dict[str, Tensor]
    unused: tuple[str, ...]
    norm_eps: float | None = None


def to_official(weights: Mapping[str, Tensor]) -> OfficialWeights | None:
    """Return the ConvNeXt among some tensors; None if there is none that a layout describes.

    Names under the model's prefix that its layout does not know stay as they are. Of the names elsewhere, a
    classifier of the layout belongs to the model.
    """
    prefixes = ((layout, layout.prefix(weights)) for layout in LAYOUTS)
    layout, prefix = next(((layout, prefix) for layout, prefix in prefixes if prefix is not None), (None, ""))
    if layout is None:
        return None
    official, unused = {}, []
    for name, tensor in weights.items():
        bare = without_prefix(name, prefix)
        if renamed := layout.to_official(bare, tensor):
            official[renamed[0]] = renamed[1]
        elif name.startswith(prefix) and not bare.startswith(layout.unused):
            official[bare] = tensor
        else:
            unused.append(name)
    under = f" under {prefix.removesuffix('.')}" if prefix else ""
    return OfficialWeights(layout.name + under, official, tuple(unused), layout.norm_eps)


def without_prefix(name: str, prefix: str) -> str:
    """Remove as many leading components of a prefix as a name has: of ``a.b.``, ``a.c`` has ``a.``."""
    for component in prefix.split(".")[:-1]:
        if not name.startswith(f"{component}."):
            break
        name = name.removeprefix(f"{component}.")
    return name
