"""torchvision's layout, of V1 alone: stem and stages by turns in ``features``."""

from convnext.weights.layouts.rules import Layout, Rule, flat, on_map

PARTS = {0: "dwconv", 2: "norm", 3: "pwconv1", 5: "pwconv2"}  # places in a block; permutations and GELU have the others
STAGES = range(4)

TORCHVISION = Layout(
    "torchvision",
    anchors=("features.0.0.weight", "features.1.0.layer_scale"),
    rules=(
        *(Rule(f"features.{2 * i}.{{j}}.{{p}}", f"downsample_layers.{i}.{{j}}.{{p}}") for i in STAGES),
        *(Rule(f"features.{2 * i + 1}.{{j}}.layer_scale", f"stages.{i}.{{j}}.gamma", flat, on_map) for i in STAGES),
        *(
            Rule(f"features.{2 * i + 1}.{{j}}.block.{place}.{{p}}", f"stages.{i}.{{j}}.{part}.{{p}}")
            for i in STAGES
            for place, part in PARTS.items()
        ),
        Rule("classifier.0.{p}", "norm.{p}"),
        Rule("classifier.2.{p}", "head.{p}"),
    ),
)
