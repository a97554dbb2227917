"""What a format is asked to write, and what it gives back."""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from torch import Tensor, nn

from convnext.inference.card import Card


@dataclass(frozen=True)
class Order:
    """What to write.

    Attributes:
        model: the network, in fp32 on the processor; left as it is.
        card: what the file is to be, and to say of itself.
        path: the file; its folder is empty, and what else the format needs may stand in it.
        calibration: prepared images (N, C, H, W) for int8.
    """

    model: nn.Module
    card: Card
    path: Path
    calibration: Tensor | None = None


class Written(NamedTuple):
    """What was written: all files, that which a user names last; and what should be said of them."""

    files: list[Path]
    notes: tuple[str, ...] = ()
