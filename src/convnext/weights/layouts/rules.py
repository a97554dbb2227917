"""How a layout is written down: rules that rename and reshape tensors, from another library's names to the official
ones and back."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

FIELD = re.compile(r"\{(\w+)\}")
NUMBER, PARAMETER = r"\d+", "weight|bias"  # what a field stands for; {p} is a PARAMETER

Reshape = Callable[[Tensor], Tensor]


def same(tensor: Tensor) -> Tensor:
    """A tensor as it is."""
    return tensor


def flat(tensor: Tensor) -> Tensor:
    """One value a channel: (C, 1, 1) or (1, 1, 1, C) to (C,)."""
    return tensor.reshape(-1)


def on_map(tensor: Tensor) -> Tensor:
    """(C,) to (C, 1, 1), to scale a map (N, C, H, W)."""
    return tensor.reshape(-1, 1, 1)


def on_positions(tensor: Tensor) -> Tensor:
    """(C,) to (1, 1, 1, C), to scale (N, H, W, C)."""
    return tensor.reshape(1, 1, 1, -1)


def linear(tensor: Tensor) -> Tensor:
    """A 1x1 convolution's weight (O, I, 1, 1), or a linear layer's (O, I), to (O, I)."""
    return tensor.reshape(tensor.shape[:2]) if tensor.shape[2:].numel() == 1 else tensor


@dataclass(frozen=True)
class Rule:
    """One name of a layout and the official one, with the same fields in both.

    Attributes:
        theirs: a name with fields, as ``stages.{i}.blocks.{j}.conv_dw.{p}``; ``{p}`` is ``weight`` or ``bias``, any
            other a number.
        ours: the official name of the same tensor.
        inward: from the layout's shape to the official one.
        outward: and back.
    """

    theirs: str
    ours: str
    inward: Reshape = same
    outward: Reshape = same

    @cached_property
    def their_names(self) -> re.Pattern[str]:
        """What matches the layout's names."""
        return pattern(self.theirs)

    @cached_property
    def our_names(self) -> re.Pattern[str]:
        """What matches the official names."""
        return pattern(self.ours)


def pattern(template: str) -> re.Pattern[str]:
    """A name with fields as a regular expression."""
    parts = FIELD.split(template)  # text, field, text, ...
    fields = [f"(?P<{field}>{PARAMETER if field == 'p' else NUMBER})" for field in parts[1::2]]
    texts = [re.escape(text) for text in parts[::2]]
    return re.compile("".join(text + field for text, field in zip(texts, [*fields, ""], strict=True)))


@dataclass(frozen=True)
class Layout:
    """The names and shapes that a library keeps a ConvNeXt's tensors by.

    Attributes:
        name: what it is called by.
        anchors: names that every file of this layout has, and no other.
        rules: the first that matches a name decides.
        unused: the beginnings of names, in a network's own part of a file, that belong to another task.
        norm_eps: what its library adds to the variance in the norm behind the pooling, unless told otherwise.
    """

    name: str
    anchors: tuple[str, ...]
    rules: tuple[Rule, ...]
    unused: tuple[str, ...] = ()
    norm_eps: float | None = None

    def place(self, names: Iterable[str]) -> str | None:
        """What stands before the network's names, as ``visual.trunk.``; None where this layout's network is not there.

        Of several networks in one file, the first.
        """
        names = list(names)
        there = set(names)
        for name in names:
            prefix = name.removesuffix(self.anchors[0])
            at_a_word = name.endswith(self.anchors[0]) and (not prefix or prefix.endswith("."))
            if at_a_word and all(prefix + anchor in there for anchor in self.anchors):
                return prefix
        return None

    def to_official(self, name: str, tensor: Tensor) -> tuple[str, Tensor] | None:
        """A tensor of this layout by its official name and in its official shape; None where no rule knows it.

        One of a shape that the layout has not keeps it: who fits it to a network will name it.
        """
        for rule in self.rules:
            if match := rule.their_names.fullmatch(name):
                try:
                    shaped = rule.inward(tensor)
                except (RuntimeError, IndexError):
                    shaped = tensor
                return rule.ours.format(**match.groupdict()), shaped
        return None

    def from_official(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """An official state dict in this layout.

        Raises:
            KeyError: the layout has no name for a tensor.
        """
        written = {}
        for name, tensor in weights.items():
            matches = ((rule, rule.our_names.fullmatch(name)) for rule in self.rules)
            found = next(((rule, match) for rule, match in matches if match), None)
            if found is None:
                raise KeyError(name)
            rule, match = found
            written[rule.theirs.format(**match.groupdict())] = rule.outward(tensor)
        return written
