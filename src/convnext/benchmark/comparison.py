"""A benchmark: configurations in a process each, measured interleaved round by round, and the document of results."""

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from convnext.acceleration.clock import alternate
from convnext.benchmark import ratios
from convnext.benchmark.benchmark_plan import Plan
from convnext.benchmark.configurations import CEILING, Configuration
from convnext.benchmark.peers import PEERS
from convnext.benchmark.worker_process import Measurement, WorkerProcess
from convnext.environment import environment, installed_version
from convnext.errors import RunError
from convnext.quantities import duration

AHEAD = 1  # processes that start while another prepares: importing takes seconds and little CPU


class Benchmark:
    """Measures a plan: :meth:`run` measures; :meth:`document` gives the results so far.

    Attributes:
        plan: what is measured.
        groups: the measurements of each group that was begun.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.groups: list[list[Measurement]] = []

    def run(self) -> Iterator[str]:
        """Measure group after group; yields a line of progress for each step.

        Raises:
            RunError: not one configuration could be measured.
        """
        yield from self.plan.notes
        with tempfile.TemporaryDirectory() as folder:
            files = {}
            for number, (name, model) in enumerate(self.plan.models.items()):
                files[name] = str(Path(folder, f"{number}.pt"))
                torch.save(model, files[name])
            for group in self.plan.groups:
                yield from self.measure([replace(one, file=files.get(one.name)) for one in group])
        measured = [one for group in self.groups for one in group if one.configuration.library != CEILING]
        if not any(one.seconds for one in measured):
            raise RunError(f"nothing could be measured: {measured[0].configuration}: {measured[0].error}")

    def measure(self, configurations: list[Configuration]) -> Iterator[str]:
        """Measure one group: prepare the process of each configuration, then run all of them round by round."""
        plan, measurements = self.plan, [Measurement(configuration) for configuration in configurations]
        self.groups.append(measurements)
        with ExitStack() as stack:
            processes: list[WorkerProcess] = []
            for number, measurement in enumerate(measurements, start=1):
                for ahead in measurements[len(processes) : number + AHEAD]:
                    processes.append(WorkerProcess(ahead, plan.threads, plan.cpus))
                    stack.callback(processes[-1].close)
                yield f"{number} of {len(measurements)}: {measurement.configuration}"
                yield from processes[number - 1].prepare()
                if measurement.error:
                    yield f"not measured: {measurement.configuration}: {measurement.error}"
            calls = {i: process.run_round for i, process in enumerate(processes) if not process.measurement.error}
            spent = 0.0
            for number in range(1, plan.rounds + 1):
                times = alternate(calls, rounds=1, warm_up=0)
                spent += sum(seconds for (seconds,) in times.values())
                yield f"round {number} of {plan.rounds}, {duration(spent)}"
                if number == plan.rounds or (spent > plan.seconds and number >= plan.min_rounds):
                    break
                for measurement, reason in ratios.beaten(measurements) if plan.race else ():
                    measurement.ended = reason
                    i = measurements.index(measurement)
                    del calls[i]
                    processes[i].close()
                    yield f"ended: {measurement.configuration}: {reason}"

    def document(self) -> dict[str, Any]:
        """The ``--json`` document of what was measured so far."""
        plan, measured, shares, ceilings = self.plan, [], [], []
        for group in self.groups:
            own_ceilings = [one for one in group if one.configuration.library == CEILING]
            models = [one for one in group if one.configuration.library != CEILING]
            ceilings += own_ceilings
            measured += models
            shares += [ratios.share_of_ceiling(one, own_ceilings, plan.macs[one.configuration.name]) for one in models]
        speedups = ratios.times_best_peer(measured)
        facts = environment()
        facts["versions"] |= {name: installed_version(name) for name in PEERS if name not in facts["versions"]}
        facts |= {"device": str(plan.device), "threads": plan.threads, "processors": sorted(plan.cpus) or None}
        return {
            "environment": facts,
            "ceiling": ratios.ceiling_of(ceilings, plan.macs),
            "rows": [ratios.document_row(*row) for row in zip(measured, shares, speedups, strict=True)],
            "ratios": {"to_best_peer": ratios.to_best_peer(measured), "growth": ratios.growth(measured, shares)},
            "notes": plan.notes,
        }
