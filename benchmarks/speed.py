"""How fast is ConvNeXt-T here, in inference and training, against timm's, torchvision's and transformers' own?

What ``convnext benchmark`` measures, for the tables that the targets are about: every library in every setting, with
ResNet-50 for scale, and one setting of ours in growing batches. Prints each target beside what was reached, and writes
``results/speed-TABLE-MACHINE.csv``. Training is measured in bf16 where the machine has it. A group of rows has three
rounds at least; after ``--seconds`` of them, by default a table's own, it begins no further one. Usage:
``python benchmarks/speed.py [--tables training,inference,latency,growth,training-growth] [--rounds 15]
[--seconds SECONDS]``.
"""

import argparse
import itertools
import sys
from dataclasses import dataclass, replace
from typing import Any

from result_files import processor_kind, write_rows

from convnext.benchmark.benchmark_plan import Plan, choose_precisions, make_plan, open_model
from convnext.benchmark.benchmark_table import tables
from convnext.benchmark.comparison import Benchmark
from convnext.benchmark.configurations import CEILING, Configuration
from convnext.benchmark.peers import PEERS
from convnext.console import console_on
from convnext.device import choose_device

NETWORK, SCALE = "convnext_tiny", "torchvision/resnet50"
MIN_ROUNDS = 3


@dataclass(frozen=True)
class Table:
    """Rows that are measured together.

    Attributes:
        mode: inference or training.
        batches: images at a time; several are interleaved.
        peers: whether other libraries' networks stand beside ours.
        scale: whether ResNet-50 does.
        precisions: those of them that the machine has; none of them for all that it has.
        compiled: whether torch.compile's settings are measured, which takes a minute more a row.
        settings: those that are measured; none of them for all.
        seconds: after which the rows of a precision begin no further round.
    """

    mode: str
    batches: tuple[int, ...]
    peers: bool = True
    scale: bool = True
    precisions: tuple[str, ...] = ()
    compiled: bool = True
    settings: tuple[str, ...] = ()
    seconds: float = 240


# A round of all settings in training takes two minutes on two cores, a turn of 64 images 40 s.
TABLES = {
    "training": Table("training", (8,), precisions=("bf16",), seconds=600),
    "inference": Table("inference", (16,)),
    "latency": Table("inference", (1,)),
    "growth": Table("inference", (8, 16, 32, 64), peers=False, scale=False, settings=("optimized",), seconds=120),
    "training-growth": Table(
        "training",
        (8, 16, 32, 64),
        peers=False,
        scale=False,
        precisions=("bf16",),
        settings=("channels_last+kernels",),
        seconds=180,
    ),
}
# What each table has to reach: times as fast as the best peer setting, and the share of the ceiling, by precision.
TO_BEST_PEER = {
    "training": {"any": 1.4},
    "inference": {"fp32": 1.0, "bf16": 1.1},
    "latency": {"any": 1.1},
}
SHARE_OF_CEILING = {"training": {"fp32": 0.70, "bf16": 0.70}, "inference": {"fp32": 0.97, "bf16": 0.90}}
LOWEST_OF_HIGHEST = 0.90  # images a second of the slowest batch beside the fastest


def plan_of(table: Table, rounds: int, seconds: float | None) -> Plan:
    """What a table measures on this machine."""
    device = choose_device("auto")
    plan = make_plan(
        [open_model(NETWORK), *([open_model(SCALE)] if table.scale else [])],
        against=PEERS if table.peers else (),
        modes=[table.mode],
        precisions=[known for known in choose_precisions((), device) if known in table.precisions],
        batches=table.batches,
        compiled=table.compiled,
        rounds=rounds,
        seconds=table.seconds if seconds is None else seconds,
    )
    chosen = [
        [case for case in group if case.library == CEILING or not table.settings or case.setting in table.settings]
        for group in plan.groups
    ]
    return replace(plan, groups=interleaved(chosen), min_rounds=MIN_ROUNDS)


def interleaved(groups: list[list[Configuration]]) -> list[list[Configuration]]:
    """The groups of a precision as one, with one ceiling, with batches interleaved: a machine's speed changes."""
    together: dict[str, list[Configuration]] = {}
    for case in itertools.chain(*groups):
        cases = together.setdefault(case.precision, [])
        if not (case.library == CEILING and cases):
            cases.append(case)
    return list(together.values())


def verdicts(name: str, document: dict[str, Any]) -> list[str]:
    """Each target of a table beside what was reached, a line each."""
    ratios = {
        ratio["precision"]: ratio["times_as_fast"]
        for ratio in document["ratios"]["to_best_peer"]
        if ratio["name"] == NETWORK
    }
    if len(ratios) == 1:
        ratios["any"] = next(iter(ratios.values()))
    found = [
        verdict(f"{name}, {precision}, times the best peer", ratios[precision], target)
        for precision, target in TO_BEST_PEER.get(name, {}).items()
        if precision in ratios
    ]
    shares: dict[str, list[float]] = {}
    for row in document["rows"]:
        if (row["name"], row["library"]) == (NETWORK, "convnext") and row["share_of_ceiling"] is not None:
            shares.setdefault(row["precision"], []).append(row["share_of_ceiling"])
    found += [
        verdict(f"{name}, {precision}, share of the ceiling", max(shares[precision]), target)
        for precision, target in SHARE_OF_CEILING.get(name, {}).items()
        if precision in shares
    ]
    for grown in document["ratios"]["growth"]:
        words = f"{name}, {grown['precision']} {grown['setting']}, slowest batch of fastest"
        found.append(verdict(words, grown["lowest_of_highest"], LOWEST_OF_HIGHEST))
    return found


def verdict(words: str, reached: float, target: float) -> str:
    """A target and what was reached."""
    return f"{words}: {reached:.2f}, target {target:.2f}, {'reached' if reached >= target else 'NOT reached'}"


def flat_row(row: dict[str, Any]) -> dict[str, Any]:
    """A row for a result file."""
    low, _, high = row["quantiles"] or ("", "", "")
    return row | {"quantiles": f"{low} to {high}"}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", default=",".join(TABLES))
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float)
    options = parser.parse_args()
    said, device = [], choose_device("auto")
    machine = processor_kind() if device.type == "cpu" else device.type
    for name in options.tables.split(","):
        benchmark = Benchmark(plan_of(TABLES[name], options.rounds, options.seconds))
        for line in benchmark.run():
            print(line, file=sys.stderr, flush=True)
        document = benchmark.document()
        console_on(sys.stdout).print(tables(document))
        said += verdicts(name, document)
        write_rows(f"speed-{name}-{machine}", [flat_row(row) for row in document["rows"]], ("transformers",))
    print("\n".join(said))


if __name__ == "__main__":
    main()
