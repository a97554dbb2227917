"""Channel activity: how many channels of each block are dead or saturated, and how alike they are."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from rich.table import Table
from torch import Tensor, nn

from convnext.errors import RunError, UsageError
from convnext.explanation.feature_maps import as_map, watching
from convnext.explanation.found import plain_table
from convnext.explanation.study_images import subjects
from convnext.inference.model import SEED
from convnext.models.convnext import Block
from convnext.models.design import DesignBlock
from convnext.models.layers import to_nchw
from convnext.training.blocks import blocks

BATCH = 4  # images at a time
DEAD = 0.1  # of the block's root mean square: a channel that is nowhere above it is dead
ACTIVATIONS = ("GELU", "GELU2d", "ReLU", "ReLU6", "SiLU", "Swish", "Hardswish", "HardSwish", "LeakyReLU", "Mish")
SATURATED = 0.95  # of all positions: a channel that is above the root mean square there is saturated


@dataclass(frozen=True)
class BlockActivity:
    """The activity of one block's hidden channels over some images.

    Attributes:
        block: its name.
        behind: what the channels are taken behind.
        channels: how many there are.
        root_mean_square: of all values.
        dead: share of channels that are nowhere, in no image, above 0.1 of the root mean square.
        saturated: share of channels that are above the root mean square at 95 % of all positions or more.
        distance: mean pairwise cosine distance between channels, (1 - cos) / 2, mean over images: 0 where all are
            alike, 0.5 where they have nothing in common (arXiv 2301.00808, section 3.2: feature collapse).
    """

    block: str
    behind: str
    channels: int
    root_mean_square: float
    dead: float
    saturated: float
    distance: float


@dataclass(frozen=True)
class NetworkActivity:
    """The activity of one network's blocks.

    Attributes:
        name: what the network was asked for by.
        weights: ``trained`` or ``untrained``.
        images: what it is over, in words.
        blocks: in their order.
    """

    name: str
    weights: str
    images: str
    blocks: tuple[BlockActivity, ...]


@dataclass(frozen=True)
class Activity:
    """The activity of some networks.

    Attributes:
        networks: each untrained and, where it is, trained.
        notes: what should be said.
    """

    networks: tuple[NetworkActivity, ...]
    notes: tuple[str, ...]
    file = "activity"

    def to_dict(self) -> dict[str, Any]:
        """The document of ``--json``."""
        networks = [vars(network) | {"blocks": [vars(block) for block in network.blocks]} for network in self.networks]
        return {
            "seed": SEED,
            "dead_below": DEAD,
            "saturated_at": SATURATED,
            "networks": networks,
            "notes": [*self.notes],
        }


def activity(names: Sequence[str], data: str | None = None, device: str = "auto") -> Activity:
    """How many channels of each block are dead or saturated, and how alike they are, trained beside untrained.

    Of this package's blocks the channels are what the last layer reads: behind GELU (V1), behind GRN (V2), behind the
    last activation of a step of the roadmap. Of other networks' blocks, behind the activation with the most channels.

    Args:
        names: runs, weights, or names of networks, which are untrained.
        data: images, by :func:`~convnext.explanation.study_images.study_images`.
        device: auto (a GPU where there is one), cpu, cuda, mps or xpu.

    Raises:
        UsageError: there is no such network or data, or a network has no blocks with activations.
        RunError: a file is damaged, or values are not finite.
    """
    networks: list[NetworkActivity] = []
    notes: list[str] = []
    for subject in subjects(names, data, device):
        notes += subject.notes
        found = block_activity(subject.model, subject.images.images)
        networks.append(NetworkActivity(subject.name, subject.weights, subject.images.name, found))
    return Activity(tuple(networks), tuple(dict.fromkeys(notes)))


class Tally:
    """One block's channels over all images, read twice: the thresholds are of the first reading."""

    def __init__(self) -> None:
        self.squares, self.values, self.positions, self.images = 0.0, 0, 0, 0
        self.largest: Tensor | None = None
        self.above: Tensor | None = None
        self.distance = 0.0

    @property
    def root_mean_square(self) -> float:
        """Of all values of the first reading."""
        return (self.squares / self.values) ** 0.5

    def first(self, hidden: Tensor) -> None:
        """Read values (N, C, P): their size, the largest of each channel, and how alike channels are."""
        self.squares += hidden.double().square().sum().item()
        self.values += hidden.numel()
        largest = hidden.amax((0, 2))
        self.largest = largest if self.largest is None else torch.maximum(self.largest, largest)
        self.distance += cosine_distance(hidden).sum().item()
        self.images += len(hidden)

    def second(self, hidden: Tensor) -> None:
        """Read them again: at how many positions each channel is above the root mean square."""
        above = (hidden > self.root_mean_square).sum((0, 2))
        self.above = above if self.above is None else self.above + above
        self.positions += len(hidden) * hidden.shape[2]

    def result(self, block: str, behind: str) -> BlockActivity:
        """What came of it."""
        assert self.largest is not None
        assert self.above is not None
        rms = self.root_mean_square
        if not torch.tensor(rms).isfinite():
            raise RunError(f"the activations of {block} are not finite: the network's weights are damaged")
        return BlockActivity(
            block,
            behind,
            channels=len(self.largest),
            root_mean_square=rms,
            dead=(self.largest <= DEAD * rms).double().mean().item(),
            saturated=(self.above >= SATURATED * self.positions).double().mean().item() if rms else 0.0,
            distance=self.distance / self.images,
        )


def cosine_distance(hidden: Tensor) -> Tensor:
    """The mean of (1 - cos) / 2 over all pairs of channels, (N, C, P) to (N); a channel of zeros is like none.

    The cosines of all pairs add up to the squared length of the sum of the channels' directions.
    """
    directions = torch.nn.functional.normalize(hidden.double(), dim=2, eps=1e-30)
    return (1 - directions.mean(1).square().sum(1)) / 2


def block_activity(model: nn.Module, images: Tensor) -> tuple[BlockActivity, ...]:
    """The activity of every block.

    Args:
        model: in evaluation mode.
        images: prepared, (N, C, H, W), on the model's device.
    """
    tallies: dict[str, Tally] = {}
    for read in (Tally.first, Tally.second):
        for batch in images.split(BATCH):
            for name, hidden in hidden_of(model, batch).items():
                read(tallies.setdefault(name, Tally()), hidden)
    if not tallies:
        raise UsageError(f"{type(model).__name__} has no blocks whose activations can be told")
    inner = dict(model.named_modules())
    return tuple(tally.result(name, behind(inner[name])) for name, tally in tallies.items())


def hidden_of(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """The hidden channels of every block by its name, (N, C, P), for images (N, C, H, W)."""
    hidden: dict[str, Tensor] = {}
    inner = blocks(model)
    own = {name: block for name, block in inner.items() if isinstance(block, Block | DesignBlock)}
    activations = {
        f"{name} {part}": module
        for name, block in inner.items()
        for part, module in block.named_modules()
        if name not in own and type(module).__name__ in ACTIVATIONS
    }

    def see(place: str, output: Any) -> None:
        name, seen = place.partition(" ")[0], as_map(output, (images.shape[2], images.shape[3]))
        if seen is not None and (name not in hidden or seen.shape[1] >= hidden[name].shape[1]):
            hidden[name] = seen.flatten(2)

    with torch.inference_mode(), read_by_last_layers(own, hidden), watching(activations, see):
        model(images)
    return {name: hidden[name] for name in inner if name in hidden}


@contextmanager
def read_by_last_layers(own: Mapping[str, nn.Module], hidden: dict[str, Tensor]) -> Iterator[None]:
    """Have what the last layers of this package's blocks read put into ``hidden``, by the block's name."""

    def hook_of(name: str) -> Callable[..., None]:
        def hook(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            read = to_nchw(inputs[0]) if type(layer) is nn.Linear else inputs[0]
            hidden[name] = read.flatten(2)

        return hook

    last = {name: block.get_submodule("pwconv2") for name, block in own.items()}
    handles = [layer.register_forward_pre_hook(hook_of(name)) for name, layer in last.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def behind(block: nn.Module) -> str:
    """What a block's hidden channels are taken behind."""
    if isinstance(block, Block):
        return "GELU" if isinstance(block.grn, nn.Identity) else "GRN"
    kinds = [type(module).__name__ for module in block.modules()]
    return [kind for kind in kinds if kind in ACTIVATIONS][-1].removesuffix("2d")


def activity_table(found: Activity) -> Table:
    """One row per block."""
    rows = [
        (
            network.name,
            network.weights,
            block.block,
            block.behind,
            str(block.channels),
            f"{100 * block.dead:.1f}",
            f"{100 * block.saturated:.1f}",
            f"{block.distance:.3f}",
        )
        for network in found.networks
        for block in network.blocks
    ]
    columns = ("network", "weights", "block", "behind", "channels", "dead, %", "saturated, %", "cosine distance")
    return plain_table("activity of the blocks' hidden channels", columns, rows, words=4)
