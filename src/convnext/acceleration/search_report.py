"""The report of a search for the fastest variant, and its place in the user's cache."""

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from convnext.acceleration import enabled
from convnext.environment import __version__, processor, vector_instructions
from convnext.errors import RunError
from convnext.files import read_json, user_cache, write_json
from convnext.quantities import per_second

NO_TIME = "not tried, the time was up"


@dataclass(frozen=True)
class Trial:
    """A variant of the model, as it was tried.

    Attributes:
        name: eager, channels_last, folded (LayerScale and norms multiplied into the layers beside them), kernels (this
            package's, for inference), fused (those in Triton), compiled (torch.compile) or int8.
        precision: fp32, bf16 or int8.
        images_per_second: the median; None where it was not measured.
        difference: the largest from the model's own outputs, relative to the model's largest absolute output.
        agreement: the fraction of images with the model's top-1; None where outputs are not rows of logits.
        seconds: what it took to make it.
        dropped: why it cannot be chosen; empty where it can.
    """

    name: str
    precision: str
    images_per_second: float | None = None
    difference: float | None = None
    agreement: float | None = None
    seconds: float = 0
    dropped: str = ""

    def __str__(self) -> str:
        figures = [f"{self.name} {self.precision}".ljust(20)]
        if self.images_per_second is not None:
            figures.append(f"{per_second(self.images_per_second)} images/s")
        if self.difference is not None:
            figures.append(f"differs by {self.difference:.1e}")
        if self.agreement is not None:
            figures.append(f"top-1 agrees on {100 * self.agreement:.1f} %")
        return "  ".join(figures + ([f"dropped: {self.dropped}"] if self.dropped else []))


@dataclass(frozen=True)
class Report:
    """The variants that were tried, and the choice.

    Attributes:
        choice: the name of the variant chosen.
        precision: its precision.
        tried: every variant, in order; the first is the model as it came.
        batch: images that were measured at a time.
        seconds: those that the search was allowed.
        remembered: true if the choice and the figures are an earlier call's.
    """

    choice: str
    precision: str
    tried: tuple[Trial, ...]
    batch: int
    seconds: float
    remembered: bool = False

    @property
    def chosen(self) -> Trial:
        """The variant chosen."""
        return next(row for row in self.tried if (row.name, row.precision) == (self.choice, self.precision))

    @property
    def is_cut_short(self) -> bool:
        """True if a longer search would have tried more."""
        return any(row.dropped == NO_TIME for row in self.tried)

    @property
    def speedup(self) -> float:
        """The speed relative to the model as it came."""
        before, after = self.tried[0].images_per_second, self.chosen.images_per_second
        return after / before if before and after else 1.0

    @property
    def summary(self) -> str:
        """The choice in a line."""
        source = "remembered" if self.remembered else "measured"
        return f"{self.choice} {self.precision}, speedup {self.speedup:.2f}x ({source}, batch {self.batch})"

    def __str__(self) -> str:
        return "\n".join([self.summary, *(f"  {row}" for row in self.tried)])


def key_of(model: nn.Module, example: Tensor, precision: str) -> str:
    """The cache's name for a search: machine, versions, the model's structure (not its weights), shape, precision."""
    device = example.device
    facts = {
        "processor": [processor(), vector_instructions()],
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
        "versions": [torch.__version__, __version__],
        "kernels": enabled(),
        "network": repr(model),
        "parameters": [[name, list(value.shape), str(value.dtype)] for name, value in model.state_dict().items()],
        "images": list(example.shape),
        "precision": precision,
    }
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]


def recall(key: str) -> Report | None:
    """The report in the cache; None where there is none that can be read."""
    try:
        document: dict[str, Any] = read_json(user_cache("optimize") / f"{key}.json")
        tried = tuple(Trial(**row) for row in document.pop("tried"))
        report = Report(**document | {"tried": tried, "remembered": True})
        assert report.chosen
    except (RunError, RuntimeError, TypeError, ValueError, KeyError, StopIteration):  # RuntimeError: a user has no home
        return None
    return report


def remember(key: str, report: Report) -> None:
    """Write a report to the cache; where that cannot be written to, the next call searches again."""
    try:
        write_json(user_cache("optimize") / f"{key}.json", asdict(report))
    except (RunError, RuntimeError):
        return
