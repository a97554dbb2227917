"""Run a study: measure every network, train every seed that is not done yet, and report."""

import math
import time
from collections.abc import Generator
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

MACS_A_BATCH = {"cpu": 4e9, "gpu": 1e12}  # the speed of inference is measured on batches of about this much work
LARGEST_BATCH = 64
COST_SECONDS = 9  # for measuring without training: the whole call takes 20 s at most
LEAST_SEEDS = 2  # trained whatever the time limit: one seed says nothing about noise


@dataclass(frozen=True)
class Update:
    """News from a study.

    Attributes:
        results: the results document as it stands.
        done: finished trainings.
        total: all of them.
        limited: whether a time limit may end the study before that.
        entry: the network in training, or whose training has just ended; None before the first.
        seed: of that training.
        progress: of that training; None when it has just ended.
        top1: of the training that has just ended, in %; None if it failed.
        seconds_left: for all trainings at this call's pace, at most what the time limit leaves; None at first.
        warnings: what should be said aloud, new since the update before.
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
    """Run a plan seed by seed, all networks with the first seed before any with the second.

    Finished trainings are kept, one that was killed goes on after its last epoch. ``results.json`` is written whenever
    a training ends. A time limit ends the study after a round of seeds, though not before the second.
    """
    start = time.monotonic()
    with locked(plan.folder) if plan.folder else nullcontext():
        if plan.folder:
            plan.record()
        speed = measure_speed(plan)
        warnings = list(plan.notes)
        if speed["unmeasured"]:
            missing = f"{len(speed['unmeasured'])} of {len(plan.entries)} networks"
            warnings.append(
                f"the speed of {missing} was not measured, the machine is too busy: call again when it is not"
            )
        asked = [entry for entry in plan.entries if entry.key in plan.asked] if plan.train else []
        results = collect(plan, speed, warnings)
        save(plan, results)
        update = Update(results, 0, len(asked) * plan.seeds, limited=plan.minutes is not None, warnings=tuple(warnings))
        yield update

        trained = 0  # in this call
        training_start = time.monotonic()
        for seed in range(plan.seeds):
            round_start = time.monotonic()
            for entry in asked:
                update = replace(update, entry=entry, seed=seed, warnings=())
                if finished_run(plan, entry, seed):
                    update = replace(update, done=update.done + 1)
                    continue
                new: tuple[str, ...] = ()
                try:
                    for progress in fit(plan.recipe_of(entry, seed), plan.run_folder(entry, seed)):
                        elapsed, part = time.monotonic() - training_start, trained + progress.fraction
                        left = elapsed * (update.total - update.done - progress.fraction) / part if part else None
                        if plan.minutes is not None and left is not None and seed >= LEAST_SEEDS - 1:
                            left = min(left, max(0.0, start + 60 * plan.minutes - time.monotonic()))
                        new = tuple(warning for warning in progress.warnings if warning not in warnings)
                        warnings += new
                        update = replace(update, progress=progress, seconds_left=left, warnings=new)
                        yield update
                    new = ()
                except DivergedError as error:
                    new = (f"{entry.key}, seed {seed}: {error}",)
                    warnings += new
                trained += 1
                results = collect(plan, speed, warnings)
                save(plan, results)
                run = finished_run(plan, entry, seed)
                top1 = run.metrics[-1]["top1"] if run else None
                update = replace(
                    update,
                    results=results,
                    done=update.done + 1,
                    progress=None,
                    top1=top1,
                    warnings=new,
                )
                yield update
            now = time.monotonic()
            late = plan.minutes is not None and now - start + (now - round_start) > 60 * plan.minutes
            if late and seed + 1 >= LEAST_SEEDS:
                break


def save(plan: Plan, results: dict[str, Any]) -> None:
    """Write the results document where the plan has a folder."""
    if plan.folder:
        write_json(plan.folder / "results.json", results)


def measure_speed(plan: Plan) -> dict[str, Any]:
    """Images per second of every network at inference: the best of some rounds over all of them, on one batch.

    In each round every network runs for a moment after a warm-up pass, so that a slow moment of the machine does not
    fall on one network alone; without training there is one round, which ends when its time is over. The batch is about
    as large as keeps a step's pass short. Weights are zero: the arithmetic is the same, and drawing them would take
    longer than the measurement.

    Raises:
        RunError: a network cannot run.
    """
    rounds, seconds = (3, 0.1) if plan.train else (1, 0.0)
    deadline = math.inf if plan.train else time.monotonic() + COST_SECONDS
    device = choose_device(plan.recipe.device)
    budget = MACS_A_BATCH["cpu" if device.type == "cpu" else "gpu"]
    largest = max(entry.cost.macs for entry in plan.entries if entry.step)
    batch = max(1, min(LARGEST_BATCH, int(budget / largest)))
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
    return {
        "batch": batch,
        "device": str(device),
        "precision": "fp32",
        "images_per_second": measured,
        "unmeasured": [entry.key for entry in plan.entries if entry.key not in measured],
    }
