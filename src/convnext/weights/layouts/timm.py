"""timm's layout, and OpenCLIP's, whose image towers are timm's networks under a prefix."""

from dataclasses import replace

from torch import Tensor

from convnext.weights.layouts.rules import Layout, Rule, flat, linear, on_positions


def pointwise(tensor: Tensor) -> Tensor:
    """A linear layer's weight (O, I) to a 1x1 convolution's (O, I, 1, 1)."""
    return tensor[:, :, None, None]


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
        Rule("stages.{i}.blocks.{j}.mlp.grn.weight", "stages.{i}.{j}.grn.gamma", on_positions, flat),
        Rule("stages.{i}.blocks.{j}.mlp.grn.bias", "stages.{i}.{j}.grn.beta", on_positions, flat),
        Rule("stages.{i}.blocks.{j}.mlp.fc2.weight", "stages.{i}.{j}.pwconv2.weight", linear),
        Rule("stages.{i}.blocks.{j}.mlp.fc2.bias", "stages.{i}.{j}.pwconv2.bias"),
        Rule("head.norm.{p}", "norm.{p}"),
        Rule("head.fc.{p}", "head.{p}"),
    ),
)

# The same with 1x1 convolutions in place of linear layers, as timm builds its small networks (``conv_mlp``).
TIMM_CONV_MLP = replace(
    TIMM, rules=tuple(replace(rule, outward=pointwise) if rule.inward is linear else rule for rule in TIMM.rules)
)
