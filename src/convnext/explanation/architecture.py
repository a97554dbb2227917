"""The architecture of this package's models, stage by stage, and what differs between two of them."""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from convnext.errors import UsageError
from convnext.models import Design
from convnext.models.convnext import IsotropicConvNeXt, StagedNetwork
from convnext.models.cost import run_on_meta
from convnext.models.layers import DropPath, GlobalResponseNorm, PointwiseLinear
from convnext.quantities import quantity

MAX_IMAGE_SIZE = 8192  # pixels
NORMS = {nn.LayerNorm: "LN", nn.BatchNorm2d: "BN", nn.BatchNorm1d: "BN", GlobalResponseNorm: "GRN"}


@dataclass(frozen=True)
class Layer:
    """One layer: ``out`` is (H, W, C) or (C,); ``inputs`` are the places of the layers whose outputs it takes."""

    place: int
    kind: str
    text: str
    module: str
    out: tuple[int, ...]
    inputs: tuple[int, ...]
    in_channels: int | None = None
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    groups: int = 1
    drop_rate: float = 0.0
    params: int = 0
    macs: int = 0
    on_shortcut: bool = False

    @property
    def family(self) -> str:
        """Equal for layers of two models that are compared: a 1x1 convolution is a linear layer."""
        return "linear" if set(self.kernel) == {1} else self.kind

    @property
    def function(self) -> tuple[object, ...]:
        """Equal for layers that differ in width alone."""
        return (self.family, self.kernel, self.stride, self.groups > 1, self.on_shortcut)


@dataclass(frozen=True)
class Block:
    """Layers in the order of computation, those of the shortcut right before the addition."""

    module: str
    class_name: str
    layers: tuple[Layer, ...]

    @property
    def signature(self) -> list[str]:
        """Equal for blocks that compute the same function with other weights."""
        return [layer.text for layer in self.layers if layer.kind != "drop"]


@dataclass(frozen=True)
class Part:
    """The stem, a stage, the downsampling between two stages, or the head."""

    kind: str
    title: str
    blocks: tuple[Block, ...]

    @property
    def layers(self) -> list[Layer]:
        """The layers of all blocks."""
        return [layer for block in self.blocks for layer in block.layers]

    def summary(self) -> list[str]:
        """The size of the output, the parameters and the multiply-accumulates, as text."""
        costs = totals(self.layers)
        return [size(costs["out"]), f"{quantity(costs['params'])} params", f"{quantity(costs['macs'])} MACs"]

    def groups(self) -> list[tuple[str, Block]]:
        """Each kind of block once, the last of its kind, with its count; the most frequent kind first."""
        counts = Counter(tuple(block.signature) for block in self.blocks)
        last = {tuple(block.signature): block for block in self.blocks}
        return [
            (f"{count} \N{MULTIPLICATION SIGN} " if count > 1 else "", last[key]) for key, count in counts.most_common()
        ]


@dataclass(frozen=True)
class Architecture:
    """A model's parts in order, with the design that it was built from where it has one."""

    name: str
    image_size: tuple[int, int]
    parts: tuple[Part, ...]
    design: Design | None = None

    @property
    def layers(self) -> list[Layer]:
        """The layers of all parts."""
        return [layer for part in self.parts for layer in part.layers]

    def to_dict(self) -> dict[str, Any]:
        """The document of ``convnext explain --architecture --json``."""
        costs = totals(self.layers)
        document = {"name": self.name, "image_size": list(self.image_size), "unused_params": {}, "parts": []}
        for part in self.parts:
            blocks = [
                {
                    "module": block.module,
                    "class": block.class_name,
                    "layers": list(map(dataclasses.asdict, block.layers)),
                }
                | totals(block.layers)
                for block in part.blocks
            ]
            depth = len(blocks) if part.kind == "stage" else None
            facts = {"kind": part.kind, "title": part.title, "depth": depth, "blocks": blocks}
            document["parts"].append(facts | totals(part.layers))
        return document | {"params": costs["params"], "macs": costs["macs"]}


def totals(layers: Sequence[Layer]) -> dict[str, Any]:
    """Output size and costs of successive layers."""
    params, macs = (sum(getattr(layer, what) for layer in layers) for what in ("params", "macs"))
    return {"out": list(layers[-1].out), "params": params, "macs": macs}


def size(out: Sequence[int]) -> str:
    """An output size: 56 x 56 x 96."""
    return "\N{MULTIPLICATION SIGN}".join(map(str, out))


def architecture(model: nn.Module, name: str, image_size: int = 224) -> Architecture:
    """Read the layers of a model from one pass on the meta device.

    Args:
        model: ConvNeXt, isotropic ConvNeXt, or the network of a :class:`Design`.
        name: its name in figures and tables.
        image_size: height and width in pixels.

    Raises:
        UsageError: the model is not this package's, or the image is too small for it.
    """
    if not isinstance(model, StagedNetwork | IsotropicConvNeXt):
        raise UsageError(
            f"{name} is a {type(model).__name__}: --architecture draws ConvNeXts and the steps of the roadmap; "
            "ResNet-50, for example, is roadmap_tiny/resnet"
        )
    if not 1 <= image_size <= MAX_IMAGE_SIZE:
        raise UsageError(f"image size is {image_size}, needs a number of pixels from 1 to {MAX_IMAGE_SIZE}")
    read = Reader(model, image_size)
    if isinstance(model, IsotropicConvNeXt):
        parts = [read.part("stem", "stem", "stem"), read.stage(1, "blocks", model.blocks)]
    else:
        parts = [read.part("stem", "stem", "downsample_layers.0")]
        for i, stage in enumerate(model.stages):
            if i:
                between = read.part("downsampling", f"between stages {i} and {i + 1}", f"downsample_layers.{i}")
                parts += [between] if between.layers else []
            parts.append(read.stage(i + 1, f"stages.{i}", stage))
    pool = read.layer("pool", "global average pool", "", parts[-1].layers[-1].out[-1:])  # not a module
    head = [pool, *read.part("head", "head", "norm").layers, *read.part("head", "head", "head").layers]
    parts.append(Part("head", "head", (Block("", "", tuple(head)),)))
    return Architecture(name, (image_size, image_size), tuple(parts), getattr(model, "design", None))


class Reader:
    """Turns the modules that one pass calls into layers, part by part in the order of computation."""

    def __init__(self, model: nn.Module, image_size: int) -> None:
        self.place = -1  # of the last layer; -1 is the image
        self.out: tuple[int, ...] = ()  # of the last layer
        self.calls: dict[str, tuple[nn.Module, tuple[int, ...]]] = {}
        hooks = [
            module.register_forward_hook(self.recorder(name))
            for name, module in model.named_modules()
            if not isinstance(module, nn.Identity | nn.Sequential | nn.ModuleList) and not list(module.children())
        ]
        try:
            run_on_meta(model, image_size)
        finally:
            for hook in hooks:
                hook.remove()

    def recorder(self, name: str) -> Any:
        """A hook that records a module with the shape of its output, without the batch."""

        def record(module: nn.Module, _: Any, output: torch.Tensor) -> None:
            self.calls[name] = module, tuple(output.shape[1:])

        return record

    def part(self, kind: str, title: str, path: str) -> Part:
        """A part without blocks: the modules below a path."""
        calls = {name: call for name, call in self.calls.items() if f"{name}.".startswith(f"{path}.")}
        return Part(kind, title, (Block("", "", tuple(self.read(name, *call) for name, call in calls.items())),))

    def stage(self, number: int, path: str, blocks: nn.Module) -> Part:
        """A stage, from 1 on."""
        read = (self.block(f"{path}.{name}", block) for name, block in blocks.named_children())
        return Part("stage", f"stage {number}", tuple(read))

    def block(self, path: str, block: nn.Module) -> Block:
        """The residual branch with LayerScale and drop path, the shortcut, the addition and what follows it."""
        entry = self.place
        names = [name for name, (module, _) in self.calls.items() if name.startswith(f"{path}.") and is_active(module)]
        shortcut = [name for name in names if name.startswith(f"{path}.shortcut.")]
        final = [name for name in names if name == f"{path}.final_act"]
        drop = [name for name in names if name == f"{path}.drop_path"]
        layers = [self.read(name, *self.calls[name]) for name in names if name not in shortcut + final + drop]
        out, gamma = layers[-1].out, getattr(block, "gamma", None)
        if gamma is not None:
            layers.append(self.layer("scale", "LayerScale", path, out, params=gamma.numel()))
        layers += [self.read(name, *self.calls[name]) for name in drop]
        branch = self.place
        for i, name in enumerate(shortcut):
            inputs = (entry if i == 0 else self.place,)
            layers.append(dataclasses.replace(self.read(name, *self.calls[name]), inputs=inputs, on_shortcut=True))
        source = self.place if shortcut else entry
        layers.append(dataclasses.replace(self.layer("add", "+", path, out), inputs=(branch, source)))
        layers += [self.read(name, *self.calls[name]) for name in final]
        return Block(path, type(block).__name__, tuple(layers))

    def layer(self, kind: str, text: str, module: str, out: tuple[int, ...], **facts: Any) -> Layer:
        """The next layer, after the one before it."""
        self.place, self.out = self.place + 1, out
        return Layer(self.place, kind, text, module, out, (self.place - 1,), **facts)

    def read(self, name: str, module: nn.Module, shape: tuple[int, ...]) -> Layer:
        """The layer of one leaf module, whose output has a shape (C, H, W), (H, W, C) or (C,)."""
        is_nchw = isinstance(module, nn.Conv2d | nn.MaxPool2d | PointwiseLinear)
        changes_size = is_nchw or isinstance(module, nn.Linear)
        out = self.out if not changes_size else (*shape[1:], shape[0]) if is_nchw else shape
        facts: dict[str, Any] = {"params": sum(parameter.numel() for parameter in module.parameters())}
        if isinstance(module, nn.Conv2d):
            side, step, groups = module.kernel_size[0], module.stride[0], module.groups
            text = f"{'d' * (groups > 1)}{side}x{side}, {out[-1]}" + f", /{step}" * (step > 1)
            facts |= {
                "kernel": (side, side),
                "stride": (step, step),
                "groups": groups,
                "in_channels": module.in_channels,
            }
            return self.layer("convolution", text, name, out, macs=module.weight.numel() * out[0] * out[1], **facts)
        if isinstance(module, nn.Linear):
            positions, text = (out[0] * out[1], "1x1") if len(out) == 3 else (1, "linear")
            facts |= {"in_channels": module.in_features, "macs": module.weight.numel() * positions}
            return self.layer("linear", f"{text}, {out[-1]}", name, out, **facts)
        if isinstance(module, nn.MaxPool2d):
            side, step = int(module.kernel_size), int(module.stride)  # pyright: ignore[reportArgumentType]
            return self.layer(
                "pool", f"{side}x{side} max-pool, /{step}", name, out, kernel=(side, side), stride=(step, step)
            )
        if isinstance(module, DropPath):
            return self.layer("drop", "drop path", name, out, drop_rate=module.rate)
        norm = next((text for kind, text in NORMS.items() if isinstance(module, kind)), None)
        return self.layer(
            "norm" if norm else "activation", norm or type(module).__name__.removesuffix("2d"), name, out, **facts
        )


def is_active(module: nn.Module) -> bool:
    """True unless a module is stochastic depth that never drops."""
    return not isinstance(module, DropPath) or module.rate > 0
