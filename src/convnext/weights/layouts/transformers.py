"""The layouts of transformers: ``ConvNext...``, ``ConvNextV2...``, and ``DINOv3ConvNext...``, which has no classifier.

The network stands under ``convnext.`` or ``convnextv2.`` beside its classifier, and under no prefix as a plain model or
a backbone. A backbone has norms of its maps in place of the one behind the pooling.
"""

from convnext.weights.layouts.rules import Layout, Rule

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
