"""The roadmap from ResNet to ConvNeXt as data: each step is an earlier step with one change.

Source: arXiv 2201.03545, section 2; figures: its tables 10 (ResNet-50 regime) and 11 (ResNet-200 regime).
"""

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from convnext.errors import unknown_name
from convnext.models.design import Design


@dataclass(frozen=True)
class PaperFigures:
    """The paper's figures for a step: ImageNet-1K top-1 in %, its deviation over 3 seeds, 10^9 MACs at 224 px."""

    top1: float
    top1_std: float | None
    gmacs: float


@dataclass(frozen=True)
class Step:
    """One step of the roadmap.

    Attributes:
        key: its name.
        title: the change in a few words.
        change: the change in a sentence.
        section: of the paper.
        before: key of the step that it changes; None for the first.
        design: all its choices.
        kept: True if the path continues from this step; False for a side branch.
        paper: the paper's figures on ImageNet; for ``micro``, which the paper does not have, those of the ResNet-50
            regime.
    """

    key: str
    title: str
    change: str
    section: str
    before: str | None
    design: Design
    kept: bool
    paper: PaperFigures


class Change(NamedTuple):
    """A row of the roadmap: what one step changes.

    Attributes:
        key: the step's name.
        title: the change in a few words.
        section: of the paper.
        choices: fields of :class:`Design`, for every regime; :data:`REGIMES` has the others.
        before: key of the step that is changed; None for the last kept one.
        kept: True if the path continues from this step.
    """

    key: str
    title: str
    section: str
    choices: dict[str, Any]
    before: str | None = None
    kept: bool = True


CHANGES = (
    Change("resnet", "ResNet", "2.1", {}),
    Change("stage_ratio", "Stage ratio", "2.2", {}),
    Change("patchify_stem", "Patchify stem", "2.2", {"stem": "patchify"}),
    Change("depthwise", "Depthwise convolution", "2.3", {"depthwise": True}),
    Change("width", "Wider", "2.3", {}),
    Change("inverted_bottleneck", "Inverted bottleneck", "2.4", {"bottleneck": "inverted"}),
    Change("move_up_depthwise", "Depthwise first", "2.5", {"block_order": "spatial_first"}),
    Change("kernel_5", "Kernel 5x5", "2.5", {"kernel_size": 5}, "move_up_depthwise", kept=False),
    Change("kernel_7", "Kernel 7x7", "2.5", {"kernel_size": 7}, "move_up_depthwise"),
    Change("kernel_9", "Kernel 9x9", "2.5", {"kernel_size": 9}, "move_up_depthwise", kept=False),
    Change("kernel_11", "Kernel 11x11", "2.5", {"kernel_size": 11}, "move_up_depthwise", kept=False),
    Change("gelu", "ReLU to GELU", "2.6", {"activation": "gelu"}),
    Change("fewer_activations", "Fewer activations", "2.6", {"activations": 1}),
    Change("fewer_norms", "Fewer norms", "2.6", {"norms": 1}),
    Change("layer_norm", "BatchNorm to LayerNorm", "2.6", {"norm": "layer"}),
    Change("separate_downsampling", "Separate downsampling", "2.6", {"downsampling": "separate", "stage_norms": True}),
)

# Each change in a sentence.
TEXTS = {
    "resnet": "The starting point: a ResNet of bottleneck blocks (stride on the 3x3), trained with the modern recipe.",
    "stage_ratio": "Move blocks towards the third stage: a ratio of 1:1:3:1 (1:1:9:1 in larger models), as in Swin.",
    "patchify_stem": "One 4x4 convolution of stride 4 in place of the 7x7 convolution and the max-pool.",
    "depthwise": "The 3x3 convolution works on each channel alone: far fewer multiply-accumulates, less capacity.",
    "width": "Spend what that saved on width, up to Swin's number of channels.",
    "inverted_bottleneck": "Narrow, wide, narrow: four times the width inside, as in MobileNetV2 and a transformer.",
    "move_up_depthwise": "The depthwise convolution moves before the 1x1 layers, where there are fewer channels.",
    "kernel_5": "The depthwise kernel grows from 3x3 to 5x5; a side branch of the sweep.",
    "kernel_7": "The depthwise kernel grows from 3x3 to 7x7; the paper keeps this one.",
    "kernel_9": "The depthwise kernel grows from 3x3 to 9x9; a side branch of the sweep.",
    "kernel_11": "The depthwise kernel grows from 3x3 to 11x11; a side branch of the sweep.",
    "gelu": "GELU in place of ReLU.",
    "fewer_activations": "One activation a block, between the two 1x1 layers.",
    "fewer_norms": "One norm a block, before the first 1x1 layer.",
    "layer_norm": "LayerNorm in place of BatchNorm.",
    "separate_downsampling": "2x2 convolutions of stride 2 between the stages, with norms for stability: ConvNeXt.",
}

# The sizes at which the path is walked: the choices of three steps that depend on the regime.
REGIMES: dict[str, dict[str, dict[str, Any]]] = {
    "micro": {
        "resnet": {"depths": (1, 1, 2, 1), "width": 16},
        "stage_ratio": {"depths": (1, 1, 3, 1)},
        "width": {"width": 24},
    },
    "tiny": {
        "resnet": {"depths": (3, 4, 6, 3), "width": 64},
        "stage_ratio": {"depths": (3, 3, 9, 3)},
        "width": {"width": 96},
    },
    "base": {
        "resnet": {"depths": (3, 24, 36, 3), "width": 64},
        "stage_ratio": {"depths": (3, 3, 27, 3), "width": 84},
        "width": {"width": 128},
    },
}

# The paper's figures, one line per step: ResNet-50 regime (top-1, deviation, GMACs), ResNet-200 regime (top-1, GMACs).
PAPER = {
    "resnet": ((78.82, 0.07, 4.09), (81.14, 15.01)),
    "stage_ratio": ((79.36, 0.07, 4.53), (81.33, 14.52)),
    "patchify_stem": ((79.51, 0.18, 4.42), (81.59, 14.38)),
    "depthwise": ((78.28, 0.08, 2.35), (80.54, 7.23)),
    "width": ((80.50, 0.02, 5.27), (81.85, 16.76)),
    "inverted_bottleneck": ((80.64, 0.03, 4.64), (82.64, 15.68)),
    "move_up_depthwise": ((79.92, 0.08, 4.07), (82.04, 14.63)),
    "kernel_5": ((80.35, 0.08, 4.10), (82.32, 14.70)),
    "kernel_7": ((80.57, 0.14, 4.15), (82.30, 14.81)),
    "kernel_9": ((80.57, 0.06, 4.21), (82.27, 14.95)),
    "kernel_11": ((80.47, 0.11, 4.29), (82.18, 15.13)),
    "gelu": ((80.62, 0.14, 4.15), (82.19, 14.81)),
    "fewer_activations": ((81.27, 0.06, 4.15), (82.71, 14.81)),
    "fewer_norms": ((81.41, 0.09, 4.15), (83.17, 14.81)),
    "layer_norm": ((81.47, 0.09, 4.46), (83.35, 14.81)),
    "separate_downsampling": ((81.97, 0.06, 4.49), (83.60, 15.35)),
}

# ImageNet-1K top-1 (%) and GMACs of the models that the paper compares the two ends of the roadmap with.
PAPER_REFERENCES = {
    "micro": {"ResNet-50, original recipe": (76.13, 4.09), "Swin-T": (81.30, 4.50)},
    "tiny": {"ResNet-50, original recipe": (76.13, 4.09), "Swin-T": (81.30, 4.50)},
    "base": {"ResNet-200, original recipe": (78.20, 15.01), "Swin-B": (83.50, 15.43)},
}


def roadmap(regime: str = "tiny") -> tuple[Step, ...]:
    """The sixteen steps from ResNet to ConvNeXt, in the paper's order.

    Args:
        regime: ``tiny`` (ResNet-50 to ConvNeXt-T), ``base`` (ResNet-200 to ConvNeXt-B) or ``micro`` (the same path at
            a depth and width that two CPU cores train in seconds).
    """
    if regime not in REGIMES:
        raise unknown_name("regime", regime, REGIMES)
    steps: dict[str, Step] = {}
    last: str | None = None
    for row in CHANGES:
        before = row.before or last
        choices = row.choices | REGIMES[regime].get(row.key, {})
        design = replace(steps[before].design, **choices) if before else Design(**choices)
        paper = paper_figures(regime, row.key)
        steps[row.key] = Step(row.key, row.title, TEXTS[row.key], row.section, before, design, row.kept, paper)
        last = row.key if row.kept else last
    return tuple(steps.values())


def paper_figures(regime: str, key: str) -> PaperFigures:
    """The paper's figures for a step; ``micro`` shows those of the ResNet-50 regime."""
    (top1, std, gmacs), (top1_200, gmacs_200) = PAPER[key]
    return PaperFigures(top1_200, None, gmacs_200) if regime == "base" else PaperFigures(top1, std, gmacs)
