"""The layouts of weights files: one table of rules for each library, used in both directions.

A rule has another library's name of a tensor, the official name, and the reshaping between the two. A file is of the
layout whose anchors, names that no other layout has, it contains under a common prefix.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from torch import Tensor

FIELD = re.compile(r"\{(\w+)\}")
NUMBER, PARAMETER = r"\d+", "weight|bias"  # the values of a field; {p} is a PARAMETER

Reshape = Callable[[Tensor], Tensor]


def same(tensor: Tensor) -> Tensor:
    """Return the tensor itself."""
    return tensor


def flat(tensor: Tensor) -> Tensor:
    """Reshape (C, 1, 1) or (1, 1, 1, C) to (C,)."""
    return tensor.reshape(-1)


def channels_first(tensor: Tensor) -> Tensor:
    """Reshape (C,) to (C, 1, 1), to scale (N, C, H, W)."""
    return tensor.reshape(-1, 1, 1)


def channels_last(tensor: Tensor) -> Tensor:
    """Reshape (C,) to (1, 1, 1, C), to scale (N, H, W, C)."""
    return tensor.reshape(1, 1, 1, -1)


def row(tensor: Tensor) -> Tensor:
    """Reshape to (1, C)."""
    return tensor.reshape(1, -1)


def linear(tensor: Tensor) -> Tensor:
    """Reshape a 1x1 convolution's weight (O, I, 1, 1), or a linear layer's (O, I), to (O, I)."""
    return tensor.reshape(tensor.shape[:2]) if tensor.shape[2:].numel() == 1 else tensor


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


def sparse_kernel(weight: Tensor) -> Tensor:
    """Invert :func:`dense_kernel`."""
    positions = weight.squeeze(1).permute(1, 2, 0) if weight.shape[1] == 1 else weight.permute(2, 3, 1, 0)
    return positions.transpose(0, 1).flatten(0, 1).contiguous()


@dataclass(frozen=True)
class Rule:
    """A name in a layout and the official one, with the same fields in both.

    Attributes:
        theirs: a name with fields, as ``stages.{i}.blocks.{j}.conv_dw.{p}``; ``{p}`` is ``weight`` or ``bias``, any
            other field a number.
        ours: the official name of the same tensor.
        inward: from the layout's shape to the official one.
        outward: from the official shape to the layout's.
    """

    theirs: str
    ours: str
    inward: Reshape = same
    outward: Reshape = same

    @cached_property
    def their_pattern(self) -> re.Pattern[str]:
        """The regular expression of the layout's names."""
        return pattern(self.theirs)

    @cached_property
    def our_pattern(self) -> re.Pattern[str]:
        """The regular expression of the official names."""
        return pattern(self.ours)


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
        rules: the first that matches a name applies.
        unused: prefixes of names that belong to another task than classification.
        norm_eps: the library's default epsilon of the final norm, where it differs.
    """

    name: str
    anchors: tuple[str, ...]
    rules: tuple[Rule, ...]
    unused: tuple[str, ...] = ()
    norm_eps: float | None = None

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
        """Return a tensor's official name and its value in the official shape; None if no rule matches.

        A tensor that cannot be reshaped stays as it is: fitting it to a model reports its shape.
        """
        for rule in self.rules:
            if match := rule.their_pattern.fullmatch(name):
                try:
                    shaped = rule.inward(tensor)
                except (RuntimeError, IndexError):
                    shaped = tensor
                return rule.ours.format(**match.groupdict()), shaped
        return None

    def from_official(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Convert an official state dict to this layout.

        Raises:
            KeyError: the layout has no name for a tensor.
        """
        converted = {}
        for name, tensor in weights.items():
            matches = ((rule, rule.our_pattern.fullmatch(name)) for rule in self.rules)
            found = next(((rule, match) for rule, match in matches if match), None)
            if found is None:
                raise KeyError(name)
            rule, match = found
            converted[rule.theirs.format(**match.groupdict())] = rule.outward(tensor)
        return converted


def unchanged(*names: str) -> tuple[Rule, ...]:
    """Rules of names that are the official ones."""
    return tuple(Rule(name, name) for name in names)


def official_block(place: str) -> tuple[Rule, ...]:
    """Rules of a V1 block under its official names."""
    parts = ("gamma", "dwconv.{p}", "norm.{p}", "pwconv1.{p}", "pwconv2.{p}")
    return unchanged(*(f"{place}.{part}" for part in parts))


END = unchanged("norm.{p}", "head.{p}")

# The authors' layout, which is this package's own.
OFFICIAL = Layout(
    "official",
    anchors=("downsample_layers.0.0.weight", "stages.0.0.dwconv.weight"),
    rules=(
        *unchanged("downsample_layers.{i}.{j}.{p}"),
        *official_block("stages.{i}.{j}"),
        Rule("stages.{i}.{j}.grn.gamma", "stages.{i}.{j}.grn.gamma", channels_last),  # (1, 4C) after FCMAE
        Rule("stages.{i}.{j}.grn.beta", "stages.{i}.{j}.grn.beta", channels_last),
        *END,
    ),
    unused=("norms.", "decoder.", "proj.", "pred.", "mask_token"),  # DINOv3's norms of stages, FCMAE's decoder
)

ISOTROPIC = Layout(
    "official",
    anchors=("stem.weight", "blocks.0.dwconv.weight"),
    rules=(*unchanged("stem.{p}"), *official_block("blocks.{j}"), *END),
)

# Masked pre-training (FCMAE) with sparse convolutions.
SPARSE = Layout(
    "official, sparse",
    anchors=("downsample_layers.0.0.weight", "stages.0.0.dwconv.kernel"),
    rules=(
        *unchanged("downsample_layers.0.{j}.{p}"),  # the stem is dense
        Rule("downsample_layers.{i}.0.ln.{p}", "downsample_layers.{i}.0.{p}"),
        Rule("downsample_layers.{i}.1.kernel", "downsample_layers.{i}.1.weight", dense_kernel, sparse_kernel),
        Rule("downsample_layers.{i}.1.bias", "downsample_layers.{i}.1.bias", flat, row),
        Rule("stages.{i}.{j}.dwconv.kernel", "stages.{i}.{j}.dwconv.weight", dense_kernel, sparse_kernel),
        Rule("stages.{i}.{j}.dwconv.bias", "stages.{i}.{j}.dwconv.bias", flat, row),
        Rule("stages.{i}.{j}.norm.ln.{p}", "stages.{i}.{j}.norm.{p}"),
        Rule("stages.{i}.{j}.pwconv1.linear.{p}", "stages.{i}.{j}.pwconv1.{p}"),
        Rule("stages.{i}.{j}.grn.gamma", "stages.{i}.{j}.grn.gamma", channels_last, row),
        Rule("stages.{i}.{j}.grn.beta", "stages.{i}.{j}.grn.beta", channels_last, row),
        Rule("stages.{i}.{j}.pwconv2.linear.{p}", "stages.{i}.{j}.pwconv2.{p}"),
        *END,
    ),
    unused=OFFICIAL.unused,
)

# timm, and OpenCLIP, whose image towers are timm's models under a prefix.
TIMM = Layout(
    "timm",
    anchors=("stem.0.weight", "stages.0.blocks.0.conv_dw.weight"),
    rules=(
        Rule("stem.{j}.{p}", "downsample_layers.0.{j}.{p}"),
        Rule("stages.{i}.downsample.{j}.{p}", "downsample_layers.{i}.{j}.{p}"),
        Rule("stages.{i}.blocks.{j}.gamma", "stages.{i}.{j}.gamma"),
        Rule("stages.{i}.blocks.{j}.conv_dw.{p}", "stages.{i}.{j}.dwconv.{p}"),
        Rule("stages.{i}.blocks.{j}.norm.{p}", "stages.{i}.{j}.norm.{p}"),
        Rule("stages.{i}.blocks.{j}.mlp.fc1.weight", "stages.{i}.{j}.pwconv1.weight", linear),
        Rule("stages.{i}.blocks.{j}.mlp.fc1.bias", "stages.{i}.{j}.pwconv1.bias"),
        Rule("stages.{i}.blocks.{j}.mlp.grn.weight", "stages.{i}.{j}.grn.gamma", channels_last, flat),
        Rule("stages.{i}.blocks.{j}.mlp.grn.bias", "stages.{i}.{j}.grn.beta", channels_last, flat),
        Rule("stages.{i}.blocks.{j}.mlp.fc2.weight", "stages.{i}.{j}.pwconv2.weight", linear),
        Rule("stages.{i}.blocks.{j}.mlp.fc2.bias", "stages.{i}.{j}.pwconv2.bias"),
        Rule("head.norm.{p}", "norm.{p}"),
        Rule("head.fc.{p}", "head.{p}"),
    ),
)
# With 1x1 convolutions in place of linear layers, as timm builds its small models (``conv_mlp``).
TIMM_CONV_MLP = replace(
    TIMM, rules=tuple(replace(rule, outward=pointwise) if rule.inward is linear else rule for rule in TIMM.rules)
)

# torchvision has V1 alone. Downsampling layers and stages alternate in ``features``.
TORCHVISION_BLOCK = {0: "dwconv", 2: "norm", 3: "pwconv1", 5: "pwconv2"}  # 1 and 6 permute, 4 is GELU
TORCHVISION = Layout(
    "torchvision",
    anchors=("features.0.0.weight", "features.1.0.layer_scale"),
    rules=(
        *(Rule(f"features.{2 * i}.{{j}}.{{p}}", f"downsample_layers.{i}.{{j}}.{{p}}") for i in range(4)),
        *(
            Rule(f"features.{2 * i + 1}.{{j}}.layer_scale", f"stages.{i}.{{j}}.gamma", flat, channels_first)
            for i in range(4)
        ),
        *(
            Rule(f"features.{2 * i + 1}.{{j}}.block.{place}.{{p}}", f"stages.{i}.{{j}}.{part}.{{p}}")
            for i in range(4)
            for place, part in TORCHVISION_BLOCK.items()
        ),
        Rule("classifier.0.{p}", "norm.{p}"),
        Rule("classifier.2.{p}", "head.{p}"),
    ),
)

# transformers: with a classifier, the model stands under ``convnext.`` or ``convnextv2.``; as a plain model or a
# backbone, under no prefix. A backbone has norms of its feature maps in place of the final norm.
TRANSFORMERS = Layout(
    "transformers",
    anchors=("embeddings.patch_embeddings.weight", "encoder.stages.0.layers.0.dwconv.weight"),
    rules=(
        Rule("embeddings.patch_embeddings.{p}", "downsample_layers.0.0.{p}"),
        Rule("embeddings.layernorm.{p}", "downsample_layers.0.1.{p}"),
        Rule("encoder.stages.{i}.downsampling_layer.{j}.{p}", "downsample_layers.{i}.{j}.{p}"),
        Rule("encoder.stages.{i}.layers.{j}.layer_scale_parameter", "stages.{i}.{j}.gamma"),
        Rule("encoder.stages.{i}.layers.{j}.dwconv.{p}", "stages.{i}.{j}.dwconv.{p}"),
        Rule("encoder.stages.{i}.layers.{j}.layernorm.{p}", "stages.{i}.{j}.norm.{p}"),
        Rule("encoder.stages.{i}.layers.{j}.pwconv1.{p}", "stages.{i}.{j}.pwconv1.{p}"),
        Rule("encoder.stages.{i}.layers.{j}.grn.weight", "stages.{i}.{j}.grn.gamma"),
        Rule("encoder.stages.{i}.layers.{j}.grn.bias", "stages.{i}.{j}.grn.beta"),
        Rule("encoder.stages.{i}.layers.{j}.pwconv2.{p}", "stages.{i}.{j}.pwconv2.{p}"),
        Rule("layernorm.{p}", "norm.{p}"),
        Rule("classifier.{p}", "head.{p}"),
    ),
    unused=("hidden_states_norms.",),
    norm_eps=1e-12,
)

DINOV3 = Layout(
    "transformers, DINOv3",
    anchors=("stages.0.downsample_layers.0.weight", "stages.0.layers.0.depthwise_conv.weight"),
    rules=(
        Rule("stages.{i}.downsample_layers.{j}.{p}", "downsample_layers.{i}.{j}.{p}"),
        Rule("stages.{i}.layers.{j}.gamma", "stages.{i}.{j}.gamma"),
        Rule("stages.{i}.layers.{j}.depthwise_conv.{p}", "stages.{i}.{j}.dwconv.{p}"),
        Rule("stages.{i}.layers.{j}.layer_norm.{p}", "stages.{i}.{j}.norm.{p}"),
        Rule("stages.{i}.layers.{j}.pointwise_conv1.{p}", "stages.{i}.{j}.pwconv1.{p}"),
        Rule("stages.{i}.layers.{j}.pointwise_conv2.{p}", "stages.{i}.{j}.pwconv2.{p}"),
        Rule("layer_norm.{p}", "norm.{p}"),
    ),
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
