"""What torch's operators are called in the field: kinds of layers, in the words of the paper's figure 4."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from convnext.explanation.execution import Operation

LayerKind = Literal[
    "convolution",
    "linear",
    "attention",
    "norm",
    "activation",
    "pool",
    "scale",
    "add",
    "multiply",
    "concatenate",
    "parameter",
    "drop",
    "shift",
    "other",
]
TIMES = "\N{MULTIPLICATION SIGN}"  # as people write sizes: 7×7
MATRIX_PRODUCTS = ("addmm", "mm", "bmm", "baddbmm")
SOFTMAX = ("_softmax", "_safe_softmax")
FUSED_ATTENTION = "_scaled_dot_product"
NORMS = {"native_batch_norm": "BN", "native_layer_norm": "LN", "native_group_norm": "GN"}
STATISTICS = {"linalg_vector_norm", "mean", "var", "var_mean", "std", "rsqrt", "norm"}
ACTIVATIONS = {
    "relu": "ReLU",
    "gelu": "GELU",
    "silu": "SiLU",
    "elu": "ELU",
    "mish": "Mish",
    "tanh": "tanh",
    "sigmoid": "sigmoid",
    "leaky_relu": "leaky ReLU",
    "hardswish": "hard swish",
    "hardsigmoid": "hard sigmoid",
    "hardtanh": "hard tanh",
    "_prelu_kernel": "PReLU",
    "_softmax": "softmax",
    "_safe_softmax": "softmax",
}
POOLS = {"max_pool2d_with_indices": "max-pool", "avg_pool2d": "average pool"}
JOINS: dict[str, tuple[LayerKind, str]] = {
    "add": ("add", "+"),
    "mul": ("multiply", TIMES),
    "cat": ("concatenate", "concatenate"),
}
COMPOSITES = {"GlobalResponseNorm": "GRN", "GlobalResponseNormMlp": "GRN"}


@dataclass(frozen=True)
class Meaning:
    """What operations do together.

    Attributes:
        kind: of layer.
        text: in words; empty where these depend on what comes in.
        channels: that it puts out; None for as many as come in.
        in_channels: that it takes in, of convolutions and linear layers.
        kernel: height and width, of convolutions and pools.
        stride: the same.
        groups: of a convolution.
        rate: of what drops something at random.
        heads: of attention.
        tokens: that each of its positions attends to.
    """

    kind: LayerKind
    text: str
    channels: int | None = None
    in_channels: int | None = None
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    groups: int = 1
    rate: float = 0.0
    heads: int = 0
    tokens: int = 0


def meaning(members: Sequence[Operation], module: nn.Module | None) -> Meaning:
    """What operations do.

    Args:
        members: one, or those that :func:`convnext.explanation.layer_reading.grouped` took together.
        module: that computes them.
    """
    last = members[-1]
    operator, maps = last.operator, len(last.inputs)
    arguments: Sequence[Any] = last.arguments
    if len(members) > 1:
        return together(members, type(module).__name__)
    if operator.startswith(FUSED_ATTENTION):
        heads, width = last.shape[1], last.shape[-1]
        return Meaning("attention", "", channels=heads * width, heads=heads, tokens=arguments[1][2])
    if operator == "convolution":
        return convolution(arguments)
    if operator in MATRIX_PRODUCTS and maps == 1:
        factor = arguments[1] if operator in ("addmm", "baddbmm") else arguments[0]
        return Meaning("linear", "", channels=last.shape[-1], in_channels=factor[-1])
    if operator in NORMS:
        channels = math.prod(arguments[1]) if operator == "native_layer_norm" else arguments[0][1]
        return Meaning("norm", NORMS[operator], channels=channels)
    if operator in ACTIVATIONS:
        return Meaning("activation", "ReLU6" if is_relu6(operator, arguments) else ACTIVATIONS[operator])
    if operator in POOLS:
        return pool(POOLS[operator], arguments)
    if operator in ("mean", "_adaptive_avg_pool2d"):
        count = math.prod(last.shape)
        whole = count < math.prod(arguments[0]) and count in arguments[0]
        return Meaning("pool", "global average pool" if whole else f"average pool to {spelt(last.shape[-2:])}")
    if operator == "drop":
        is_dropout = isinstance(module, nn.modules.dropout._DropoutNd)
        return Meaning("drop", "dropout" if is_dropout else "drop path", rate=arguments[1])
    if operator == "roll":
        return Meaning("shift", f"shift by {', '.join(map(str, arguments[1]))}")
    if operator in JOINS and (maps > 1 or (operator == "cat" and not last.parameters)):
        return Meaning(*JOINS[operator])
    if operator in JOINS and last.parameters:
        names = ", ".join(name.rpartition(".")[2] for name in last.parameters)
        texts = {"mul": "LayerScale", "add": f"+ {names}", "cat": f"with {names}"}
        return Meaning("scale" if operator == "mul" else "parameter", texts[operator])
    return Meaning("other", operator.strip("_").replace("_", " "))


def together(members: Sequence[Operation], name: str) -> Meaning:
    """What several operations do: attention, or a norm or activation that a module of some name computes by itself."""
    for operation in members:
        if operation.operator in SOFTMAX:
            *_, heads, _, tokens = operation.shape
            return Meaning("attention", "", channels=heads * members[-1].shape[-1], heads=heads, tokens=tokens)
    is_norm = any(operation.operator in STATISTICS for operation in members)
    return Meaning("norm" if is_norm else "other", COMPOSITES.get(name, name))


def convolution(arguments: Sequence[Any]) -> Meaning:
    """A convolution, by the arguments of torch's operator."""
    image, weight, _, stride, _, dilation, transposed, _, groups = arguments
    kernel, stride = tuple(weight[2:]), tuple(stride) * (len(weight) - 2 if len(stride) == 1 else 1)
    channels = weight[1] * groups if transposed else weight[0]
    depthwise = groups > 1 and groups == image[1]
    text = f"{'d' if depthwise else ''}{spelt(kernel)}, {channels}{strided(stride)}"
    if transposed:
        text = f"transposed {text}"
    if groups > 1 and not depthwise:
        text += f", {groups} groups"
    if max(dilation) > 1:
        text += f", dilation {max(dilation)}"
    return Meaning("convolution", text, channels, image[1], kernel, stride, groups)


def pool(name: str, arguments: Sequence[Any]) -> Meaning:
    """A pool, by the arguments of torch's operator: without a stride, it is the kernel."""
    kernel = pair(arguments[1])
    stride = pair(arguments[2]) if len(arguments) > 2 and arguments[2] else kernel
    return Meaning("pool", f"{spelt(kernel)} {name}{strided(stride)}", kernel=kernel, stride=stride)


def is_relu6(operator: str, arguments: Sequence[Any]) -> bool:
    """Whether an activation is cut off at 0 and 6."""
    return operator == "hardtanh" and tuple(arguments[1:3]) == (0, 6)


def pair(value: Any) -> tuple[int, ...]:
    """Height and width, of one number or of both."""
    values = tuple(value) if isinstance(value, list | tuple) else (value,)
    return values * 2 if len(values) == 1 else values


def spelt(kernel: Sequence[int]) -> str:
    """A kernel's size: 7x7."""
    return "x".join(map(str, kernel))


def strided(stride: Sequence[int]) -> str:
    """A stride in words, where it is not 1."""
    if all(step == 1 for step in stride):
        return ""
    return f", /{stride[0]}" if len(set(stride)) == 1 else f", /{spelt(stride)}"
