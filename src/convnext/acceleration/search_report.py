"""What :func:`convnext.optimize` tried and found."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from convnext.quantities import per_second

TOO_LATE = "not tried, the time was up"


@dataclass(frozen=True)
class Tried:
    """A form of the network.

    Attributes:
        name: eager, channels_last, folded (LayerScale and norms multiplied into the layers beside them), kernels (this
            package's, for inference), compiled (torch.compile with freezing) or int8.
        precision: fp32, bf16 or int8.
        images_per_second: the median; None where it was not measured.
        difference: the largest of an output from the network's own, relative to the network's largest absolute output.
        agreement: for how many of the images the largest output is the same, from 0 to 1; None where outputs are not
            rows of logits.
        seconds: what it took to make it ready.
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
    """What was tried, and what was chosen.

    Attributes:
        choice: name of the form chosen.
        precision: of the form chosen.
        tried: every form, in order; the first is the network as it came.
        batch: images that were measured at a time.
        seconds: that the search was allowed.
        remembered: whether the choice is that of an earlier call, whose figures these then are.
    """

    choice: str
    precision: str
    tried: tuple[Tried, ...]
    batch: int
    seconds: float
    remembered: bool = False

    @property
    def chosen(self) -> Tried:
        """The figures of the form chosen."""
        return next(row for row in self.tried if (row.name, row.precision) == (self.choice, self.precision))

    @property
    def cut_short(self) -> bool:
        """Whether a longer search would have tried more."""
        return any(row.dropped == TOO_LATE for row in self.tried)

    @property
    def times_as_fast(self) -> float:
        """How many times as fast as the network as it came."""
        before, after = self.tried[0].images_per_second, self.chosen.images_per_second
        return after / before if before and after else 1.0

    def __str__(self) -> str:
        source = "remembered" if self.remembered else "measured"
        line = f"{self.choice} {self.precision}, {self.times_as_fast:.2f} times as fast ({source}, batch {self.batch})"
        return "\n".join([line, *(f"  {row}" for row in self.tried)])

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data."""
        return asdict(self)


def report_from(document: dict[str, Any], remembered: bool) -> Report:
    """The report of :meth:`Report.to_dict`.

    Raises:
        TypeError, ValueError, KeyError: the document is another.
    """
    rows: Iterable[dict[str, Any]] = document["tried"]
    tried, batch, seconds = tuple(Tried(**row) for row in rows), document["batch"], document["seconds"]
    report = Report(document["choice"], document["precision"], tried, batch, seconds, remembered)
    if all((row.name, row.precision) != (report.choice, report.precision) for row in report.tried):
        raise ValueError("the choice is none of the forms")
    return report
