"""A network's layers in the order in which they are computed, read out of the operations of a pass."""

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from convnext.explanation.execution import IMAGE, Execution, Operation
from convnext.explanation.operator_names import (
    ACTIVATIONS,
    MATRIX_PRODUCTS,
    NORMS,
    POOLS,
    SOFTMAX,
    LayerKind,
    Meaning,
    meaning,
)


@dataclass(frozen=True)
class Layer:
    """One layer at work.

    Attributes:
        place: among the network's layers, in the order in which they are computed.
        kind: what it is.
        text: in words, as the paper's figure 4 has it: ``d7x7, 96`` is a depthwise convolution that puts out 96
            channels, ``/2`` a stride.
        path: the module that computes it.
        inputs: the places of the layers whose outputs it takes; -1 for the image.
        in_channels: channels of what goes in, where the layer is a convolution or linear.
        shape: positions and channels of what comes out: (H, W, C), (tokens, C) or (C).
        kernel: height and width, of convolutions and pools.
        stride: the same.
        groups: of a convolution; the number of its channels for a depthwise one.
        rate: the probability of dropping something, in training.
        params: its parameters; those that several layers share count for the first.
        macs: its multiply-accumulates.
        calls: the modules' calls around it, the outermost first.
    """

    place: int
    kind: LayerKind
    text: str
    path: str
    inputs: tuple[int, ...]
    in_channels: int | None
    shape: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    groups: int
    rate: float
    params: int
    macs: int
    calls: tuple[int, ...]

    @property
    def channels(self) -> int:
        """Channels of what comes out."""
        return self.shape[-1]

    def to_dict(self) -> dict[str, Any]:
        """The layer as plain data."""
        return {
            "kind": self.kind,
            "text": self.text,
            "module": self.path,
            "inputs": list(self.inputs),
            "in_channels": self.in_channels,
            "out": list(self.shape),
            "kernel": list(self.kernel),
            "stride": list(self.stride),
            "groups": self.groups,
            "drop_rate": self.rate,
            "params": self.params,
            "macs": self.macs,
        }


def layers_of(execution: Execution) -> list[Layer]:
    """The layers of a pass: what attention or a norm computes in several operations is one."""
    operations = execution.operations
    groups = grouped(execution)
    order = sorted(groups, key=lambda members: members[-1])
    place_of = {number: place for place, members in enumerate(order) for number in members}
    layers: list[Layer] = []
    for place, members in enumerate(order):
        sources = (source for number in members for source in operations[number].inputs)
        inputs = tuple(dict.fromkeys(place_of.get(source, IMAGE) for source in sources if source not in members))
        layers.append(layer(execution, place, [operations[number] for number in members], inputs, layers))
    return layers


def grouped(execution: Execution) -> list[list[int]]:
    """The operations' numbers, those of a layer together."""
    operations = execution.operations
    group_of: dict[int, int] = {}
    groups: list[list[int]] = []
    for members in [*attentions(operations), *composites(execution)]:
        if not any(number in group_of for number in members):
            group_of.update(dict.fromkeys(members, len(groups)))
            groups.append(members)
    return groups + [[number] for number in range(len(operations)) if number not in group_of]


def attentions(operations: Sequence[Operation]) -> Iterator[list[int]]:
    """The operations of each attention: two products of maps with a softmax between, and what serves these alone."""
    users: dict[int, set[int]] = defaultdict(set)
    for number, operation in enumerate(operations):
        for source in operation.inputs:
            users[source].add(number)
    for number, operation in enumerate(operations):
        if operation.operator not in SOFTMAX:
            continue
        first = operation.inputs[0]
        while first != IMAGE and not is_product_of_maps(operations[first]) and len(operations[first].inputs) == 1:
            first = operations[first].inputs[0]
        last = number
        while not is_product_of_maps(operations[last]) and len(users[last]) == 1:
            (last,) = users[last]
        if IMAGE in (first, last) or not all(is_product_of_maps(operations[end]) for end in (first, last)):
            continue
        members = {first, last}
        for candidate in range(last, -1, -1):
            between = candidate > first or is_elementwise(operations[candidate])
            if between and users[candidate] and users[candidate] <= members:
                members.add(candidate)
        yield sorted(members)


def is_product_of_maps(operation: Operation) -> bool:
    """Whether an operation multiplies two matrices that both came of the image."""
    return operation.operator in MATRIX_PRODUCTS and len(operation.inputs) > 1


def is_elementwise(operation: Operation) -> bool:
    """Whether an operation is none that a network is known by: it scales, clips, adds up or normalises."""
    known = (*MATRIX_PRODUCTS, *NORMS, *ACTIVATIONS, *POOLS, "convolution", "cat", "roll", "drop")
    return operation.operator not in known


def composites(execution: Execution) -> Iterator[list[int]]:
    """The operations of each call of a module that computes a norm or an activation of its own in several of them."""
    own: dict[int, list[int]] = defaultdict(list)
    for number, operation in enumerate(execution.operations):
        if operation.calls:
            own[operation.calls[-1]].append(number)
    for call, members in own.items():
        together = members[-1] - members[0] + 1 == len(members)
        elementwise = all(is_elementwise(execution.operations[number]) for number in members)
        if len(members) > 1 and together and elementwise and not list(execution.calls[call].module.children()):
            yield members


def layer(
    execution: Execution, place: int, members: Sequence[Operation], inputs: tuple[int, ...], before: Sequence[Layer]
) -> Layer:
    """The layer of some operations, behind those before it."""
    last = members[-1]
    call = execution.calls[last.calls[-1]] if last.calls else None
    came = [before[source] for source in inputs if source != IMAGE]
    found = meaning(members, call.module if call else None)
    channels = found.channels or channels_of(last, found.kind, came)
    size = positions(last.shape, channels, came)
    return Layer(
        place=place,
        kind=found.kind,
        text=in_words(found, channels, size, came),
        path=call.path if call else "",
        inputs=inputs,
        in_channels=found.in_channels,
        shape=(*size, channels),
        kernel=found.kernel,
        stride=found.stride,
        groups=found.groups,
        rate=found.rate,
        params=sum(sum(operation.parameters.values()) for operation in members),
        macs=sum(operation.macs for operation in members),
        calls=last.calls,
    )


def in_words(found: Meaning, channels: int, size: tuple[int, ...], came: Sequence[Layer]) -> str:
    """What a layer does, where that depends on what comes in: a linear layer of a map is a 1x1 convolution."""
    if found.kind == "linear":
        return f"{'1x1' if size else 'linear'}, {channels}"
    if found.kind == "attention":
        return f"attention, {found.heads} heads{windows(found.tokens, size)}"
    if found.kind == "concatenate" and len(came) == 1 and math.prod(size) * 4 == math.prod(came[0].shape[:-1]):
        return "2x2 patches to one"
    return found.text


def channels_of(operation: Operation, kind: LayerKind, came: Sequence[Layer]) -> int:
    """Channels of what an operation puts out that has none of its own: those that came in."""
    shape = operation.shape
    if kind == "concatenate":
        along = operation.arguments[1] if len(operation.arguments) > 1 else 0
        if along % len(shape) in (1, len(shape) - 1) and not (len(shape) == 3 and along % 3 == 1):
            return shape[along]
    channels = max((one.channels for one in came), default=shape[1] if len(shape) == 4 else shape[-1])
    return channels if math.prod(shape) % channels == 0 else shape[-1]


def positions(shape: tuple[int, ...], channels: int, came: Sequence[Layer]) -> tuple[int, ...]:
    """Positions of a map (H, W) or tokens (L) among which its values lie; none for a vector."""
    count = math.prod(shape) // channels
    if count == 1:
        return ()
    for one in came:  # rows of a matrix, channels last and windows are the positions that came in
        if math.prod(one.shape[:-1]) == count:
            return one.shape[:-1]
    if len(shape) == 4:
        return tuple(shape[2:]) if shape[1] == channels else tuple(shape[1:3])
    return (count,)


def windows(tokens: int, size: tuple[int, ...]) -> str:
    """How far an attention reaches, where not over the whole map."""
    side = math.isqrt(tokens)
    if math.prod(size) <= tokens:
        return ""
    return f", {side}x{side} windows" if side * side == tokens else f" over {tokens}"
