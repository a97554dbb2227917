"""A benchmark: every row in a process of its own, taking turns round by round, and what came of it as a document."""

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from convnext.acceleration.clock import alternate
from convnext.benchmark.benchmark_plan import Plan
from convnext.benchmark.case import CEILING, Case
from convnext.benchmark.peers import PEERS
from convnext.benchmark.race import beaten
from convnext.benchmark.ratios import ceiling_of, document_row, growth, share_of_ceiling, times_best_peer, to_best_peer
from convnext.benchmark.row_process import Row, RowProcess
from convnext.environment import environment, installed_version
from convnext.errors import RunError
from convnext.quantities import duration

AHEAD = 1  # processes that start while another prepares: importing takes seconds and little else


class Benchmark:
    """What a plan comes to. :meth:`run` measures; :meth:`document` is what there is so far.

    Attributes:
        plan: what is measured.
        groups: the rows of each group that was begun.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.groups: list[list[Row]] = []

    def run(self) -> Iterator[str]:
        """Measure group after group; yields what is being done, in a line each time.

        Raises:
            RunError: not one row of a network could be measured.
        """
        yield from self.plan.notes
        with tempfile.TemporaryDirectory() as folder:
            files = {}
            for number, (name, model) in enumerate(self.plan.models.items()):
                files[name] = str(Path(folder, f"{number}.pt"))
                torch.save(model, files[name])
            for cases in self.plan.groups:
                yield from self.measure([replace(case, file=files.get(case.name)) for case in cases])
        rows = [row for row in self.rows() if row.case.library != CEILING]
        if not any(row.seconds for row in rows):
            raise RunError(f"nothing could be measured: {rows[0].case}: {rows[0].error}")

    def measure(self, cases: list[Case]) -> Iterator[str]:
        """One group: prepare each row's process, then let all take turns."""
        rows = [Row(case) for case in cases]
        self.groups.append(rows)
        with ExitStack() as stack:
            processes: list[RowProcess] = []
            for number, row in enumerate(rows, start=1):
                for ahead in rows[len(processes) : number + AHEAD]:
                    processes.append(RowProcess(ahead, self.plan.threads, self.plan.cpus))
                    stack.callback(processes[-1].close)
                yield f"{number} of {len(rows)}: {row.case}"
                yield from processes[number - 1].prepare()
                if row.error:
                    yield f"not measured: {row.case}: {row.error}"
            turns = {number: process.turn for number, process in enumerate(processes) if not process.row.error}
            spent = 0.0
            for number in range(1, self.plan.rounds + 1):
                took = alternate(turns, rounds=1, warm_up=0)
                spent += sum(seconds for times in took.values() for seconds in times)
                yield f"round {number} of {self.plan.rounds}, {duration(spent)}"
                if number == self.plan.rounds or (spent > self.plan.seconds and number >= self.plan.least):
                    break
                for row, why in beaten(rows) if self.plan.race else ():
                    row.ended = why
                    ended = rows.index(row)
                    del turns[ended]
                    processes[ended].close()
                    yield f"ended: {row.case}: {why}"

    def rows(self) -> list[Row]:
        """All rows that were begun."""
        return [row for group in self.groups for row in group]

    def document(self) -> dict[str, Any]:
        """The ``--json`` document of what was measured so far."""
        rows, shares = [], []
        for group in self.groups:
            ceilings = [row for row in group if row.case.library == CEILING]
            for row in group:
                if row.case.library != CEILING:
                    share = share_of_ceiling(row, ceilings, self.plan.macs[row.case.name])
                    rows.append(row)
                    shares.append(share)
        return {
            "environment": self.environment(),
            "ceiling": ceiling_of(self.rows(), self.plan.macs),
            "rows": [document_row(*facts) for facts in zip(rows, shares, times_best_peer(rows), strict=True)],
            "ratios": {"to_best_peer": to_best_peer(rows), "growth": growth(rows, shares)},
            "notes": self.plan.notes,
        }

    def environment(self) -> dict[str, Any]:
        """The machine and versions, with the threads and processors that each process was held to."""
        facts = environment()
        facts["versions"] |= {name: installed_version(name) for name in PEERS if name not in facts["versions"]}
        return facts | {
            "device": str(self.plan.device),
            "threads": self.plan.threads,
            "processors": sorted(self.plan.cpus) or None,
        }
