"""Run a study: measure every model, train every seed that is not finished yet, and report."""

import math
import time
from collections.abc import Generator, Iterable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch

from convnext.device import choose_device
from convnext.errors import DivergedError, RunError
from convnext.files import locked, write_json
from convnext.models.cost import images_per_second
from convnext.study.plan import Entry, Plan
from convnext.study.results import collect, finished_run
from convnext.training.build import build_model
from convnext.training.fit import fit
from convnext.training.progress import Progress

BATCH_MACS = {"cpu": 4e9, "gpu": 1e12}  # the speed of inference is measured on batches of about this much work
MAX_BATCH = 64
COST_SECONDS = 9  # for measuring without training: the whole command takes 20 s at most
MIN_SEEDS = 2  # trained whatever the time limit: one seed says nothing about noise


@dataclass(frozen=True)
class Update:
    """The state of a study.

    Attributes:
        results: the results document so far.
        done: finished trainings.
        total: all trainings.
        limited: a time limit may end the study before that.
        entry: the model in training, or whose training has just ended; None before the first.
        seed: of that training.
        progress: of that training; None when it has just ended.
        top1: of the training that has just ended, in %; None if it failed.
        seconds_left: for all trainings at this command's pace, at most what the time limit leaves; None at first.
        warnings: for the user, new since the last update.
    """

    results: dict[str, Any]
    done: int
    total: int
    limited: bool = False
    entry: Entry | None = None
    seed: int = 0
    progress: Progress | None = None
    top1: float | None = None
    seconds_left: float | None = None
    warnings: tuple[str, ...] = ()


def run_study(plan: Plan) -> Generator[Update, None, None]:
    """Run a plan seed by seed: all models with the first seed before any with the second.

    Finished trainings are kept, one that was killed resumes after its last epoch. ``results.json`` is written whenever
    a training ends. A time limit ends the study after a round of seeds, though not before the second.
    """
    with locked(plan.folder) if plan.folder else nullcontext():
        if plan.folder:
            plan.record()
        study = StudyRunner(plan)
        yield study.last
        for seed in range(plan.seeds):
            start = time.monotonic()
            for entry in study.entries:
                yield from study.train(entry, seed)
            if seed + 1 >= MIN_SEEDS and study.remaining() < time.monotonic() - start:
                break


class StudyRunner:
    """Measures the models of a plan, then trains one at a time; ``last`` is the last update."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.start = plan, time.monotonic()
        self.entries = [entry for entry in plan.entries if entry.key in plan.asked] if plan.train else []
        self.speed, self.warnings = measure_speed(plan), list(plan.notes)
        if unmeasured := len(plan.entries) - len(self.speed["images_per_second"]):
            self.warnings.append(
                f"the speed of {unmeasured} of {len(plan.entries)} models was not measured, the machine is too busy: "
                "repeat the command when it is not"
            )
        total, warnings = len(self.entries) * plan.seeds, tuple(self.warnings)
        self.last = Update(self.save(), 0, total, limited=plan.minutes is not None, warnings=warnings)
        self.trained, self.training_start = 0, time.monotonic()  # by this command

    def train(self, entry: Entry, seed: int) -> Generator[Update, None, None]:
        """Train one model with one seed, if that is not finished yet; a loss that diverges becomes a warning."""
        recipe, folder = self.plan.recipe_of(entry, seed), self.plan.run_folder(entry, seed)
        if finished_run(self.plan, entry, seed):
            self.last = replace(self.last, done=self.last.done + 1)
            return
        failure = ()
        try:
            for progress in fit(recipe, folder):
                left = self.seconds_left(progress, seed)
                yield self.update(progress.warnings, entry=entry, seed=seed, progress=progress, seconds_left=left)
        except DivergedError as error:
            failure = (f"{entry.key}, seed {seed}: {error}",)
        self.trained += 1
        run, done = finished_run(self.plan, entry, seed), self.last.done + 1
        top1 = run.metrics[-1]["top1"] if run else None
        yield self.update(failure, entry=entry, seed=seed, progress=None, done=done, top1=top1)

    def update(self, warnings: Iterable[str], **changes: Any) -> Update:
        """The last update with changes, and the warnings that were not reported before; saves finished trainings."""
        new = tuple(warning for warning in warnings if warning not in self.warnings)
        self.warnings += new
        if changes["progress"] is None:
            changes["results"] = self.save()
        self.last = replace(self.last, warnings=new, **changes)
        return self.last

    def save(self) -> dict[str, Any]:
        """The results document so far, which is written where the plan has a folder."""
        results = collect(self.plan, self.speed, self.warnings)
        if self.plan.folder:
            write_json(self.plan.folder / "results.json", results)
        return results

    def remaining(self) -> float:
        """Seconds until the time limit."""
        limit = math.inf if self.plan.minutes is None else 60 * self.plan.minutes
        return self.start + limit - time.monotonic()

    def seconds_left(self, progress: Progress, seed: int) -> float | None:
        """Seconds for all trainings at this command's pace, at most what the time limit leaves."""
        trained = self.trained + progress.fraction
        if not trained:
            return None
        pace = (time.monotonic() - self.training_start) / trained
        left = pace * (self.last.total - self.last.done - progress.fraction)
        return min(left, max(0.0, self.remaining())) if seed + 1 >= MIN_SEEDS else left


def measure_speed(plan: Plan) -> dict[str, Any]:
    """Images/s of every model at inference: the best of some rounds over all of them, on one batch.

    The models are interleaved, so that a slow moment of the machine does not fall on one alone; without training there
    is one round, which ends when its time is over. The batch is about as large as keeps one pass short. Weights are
    zero: the arithmetic is the same, and random ones would take longer than the measurement.

    Raises:
        RunError: a model cannot run.
    """
    rounds, seconds = (3, 0.1) if plan.train else (1, 0.0)
    deadline = math.inf if plan.train else time.monotonic() + COST_SECONDS
    device = choose_device(plan.recipe.device)
    budget = BATCH_MACS["cpu" if device.type == "cpu" else "gpu"]
    largest = max(entry.cost.macs for entry in plan.entries if entry.step)
    batch = max(1, min(MAX_BATCH, int(budget / largest)))
    images = torch.randn(batch, 3, plan.recipe.image_size, plan.recipe.image_size, device=device)
    images = images.to(memory_format=torch.channels_last)
    measured: dict[str, float] = {}
    for entry in plan.entries * rounds:
        if time.monotonic() > deadline:
            break
        with torch.device("meta"):
            model = build_model(plan.recipe_of(entry, 0), plan.num_classes)
        model = model.to_empty(device=device).to(memory_format=torch.channels_last)  # pyright: ignore
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()
            for buffer in model.buffers():  # variances are 1, indices 0
                buffer.fill_(1 if buffer.is_floating_point() else 0)
        try:
            rate = images_per_second(model, images, seconds)
        except (RuntimeError, IndexError, AssertionError, ValueError) as error:
            raise RunError(f"{entry.key} cannot run on this machine ({error}): leave it out") from error
        measured[entry.key] = max(measured.get(entry.key, 0.0), rate)
    return {"batch": batch, "device": str(device), "precision": "fp32", "images_per_second": measured}
