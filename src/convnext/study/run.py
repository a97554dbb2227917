"""Run a study: measure every network, train every seed that is not done yet, and report."""

import time
from collections.abc import Generator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch

from convnext.errors import DivergedError
from convnext.files import locked, write_json
from convnext.models.cost import images_per_second
from convnext.study.plan import Entry, Plan
from convnext.study.results import collect, finished_seeds
from convnext.training.loop import Progress, build, training
from convnext.training.machine import choose_device

MACS_A_BATCH = {"cpu": 4e9, "gpu": 1e12}  # the speed of inference is measured on batches of about this much work
LARGEST_BATCH = 64
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
        seconds_left: for all trainings at this call's pace, at most what the time limit leaves; None at first.
        warning: what should be said aloud.
    """

    results: dict[str, Any]
    done: int
    total: int
    limited: bool = False
    entry: Entry | None = None
    seed: int = 0
    progress: Progress | None = None
    seconds_left: float | None = None
    warning: str | None = None


def run_study(
    plan: Plan, *, seeds: int, minutes: float | None = None, train: bool = True
) -> Generator[Update, None, None]:
    """Run a plan seed by seed, all networks with the first seed before any with the second.

    Finished trainings are kept, one that was killed goes on after its last epoch. ``results.json`` is written whenever
    a training ends.

    Args:
        plan: the study.
        seeds: trainings of each network.
        minutes: begin no further round of seeds that would end later than this; two rounds are made in any case.
        train: False counts and measures only.
    """
    start = time.monotonic()
    with locked(plan.folder) if plan.folder else nullcontext():
        if plan.folder:
            plan.record()
        speed = measure_speed(plan, seconds=0.1, rounds=3) if train else measure_speed(plan, seconds=0, rounds=1)
        warnings: list[str] = []
        asked = [entry for entry in plan.entries if entry.key in plan.asked] if train else []
        update = Update(collect(plan, speed, trained=train), 0, len(asked) * seeds, limited=minutes is not None)
        save(plan, update.results)
        yield update

        trained = 0  # in this call
        training_start = time.monotonic()
        for seed in range(seeds):
            round_start = time.monotonic()
            for entry in asked:
                update = replace(update, entry=entry, seed=seed, warning=None)
                if seed in finished_seeds(plan, entry):
                    update = replace(update, done=update.done + 1)
                    continue
                try:
                    for progress in training(plan.recipe_of(entry, seed), plan.run_folder(entry, seed)):
                        elapsed, part = time.monotonic() - training_start, trained + progress.fraction
                        left = elapsed * (update.total - update.done - progress.fraction) / part if part else None
                        if minutes is not None and left is not None and seed >= LEAST_SEEDS - 1:
                            left = min(left, max(0.0, start + 60 * minutes - time.monotonic()))
                        said = "; ".join(progress.warnings) or None
                        update = replace(update, progress=progress, seconds_left=left, warning=said)
                        yield update
                    said = None
                except DivergedError as error:
                    said = f"{entry.key}, seed {seed}: {error}"
                    warnings.append(said)
                trained += 1
                results = collect(plan, speed, warnings)
                save(plan, results)
                update = replace(update, results=results, done=update.done + 1, progress=None, warning=said)
                yield update
            now = time.monotonic()
            late = minutes is not None and now - start + (now - round_start) > 60 * minutes
            if late and seed + 1 >= LEAST_SEEDS:
                break


def save(plan: Plan, results: dict[str, Any]) -> None:
    """Write the results document where the plan has a folder."""
    if plan.folder:
        write_json(plan.folder / "results.json", results)


def measure_speed(plan: Plan, seconds: float, rounds: int) -> dict[str, Any]:
    """Images per second of every network at inference: the best of some rounds over all of them, on one batch.

    In each round every network runs for ``seconds`` after a warm-up pass, so that a slow moment of the machine does not
    fall on one network alone. The batch is about as large as keeps a step's pass short. Weights are zero: the
    arithmetic is the same, and drawing them would take longer than the measurement.
    """
    device = choose_device(plan.recipe.device)
    budget = MACS_A_BATCH["cpu" if device.type == "cpu" else "gpu"]
    largest = max(entry.cost.macs for entry in plan.entries if entry.step)
    batch = max(1, min(LARGEST_BATCH, int(budget / largest)))
    images = torch.randn(batch, 3, plan.recipe.image_size, plan.recipe.image_size, device=device)
    images = images.to(memory_format=torch.channels_last)
    measured: dict[str, float] = {}
    for entry in plan.entries * rounds:
        with torch.device("meta"):
            model = build(plan.recipe_of(entry, 0), plan.num_classes)
        model = model.to_empty(device=device).to(memory_format=torch.channels_last)  # pyright: ignore
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()
            for buffer in model.buffers():
                buffer.fill_(1)
        measured[entry.key] = max(measured.get(entry.key, 0.0), images_per_second(model, images, seconds))
    return {"batch": batch, "device": str(device), "precision": "fp32", "images_per_second": measured}
