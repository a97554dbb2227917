"""Run a study: measure every network, train every seed that is not done yet, and report."""

import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
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
LEAST_SEEDS = 2  # trained whatever the time limit: one seed says nothing about noise


@dataclass(frozen=True)
class Update:
    """News from a study: what is under way, and the results as they stand.

    Attributes:
        results: the document; replaced when a training ends.
        entry: the network being trained; None in between.
        seed: of that training.
        progress: of that training.
        done: finished trainings.
        total: all of them.
        warning: what should be said aloud.
    """

    results: dict[str, Any]
    entry: Entry | None = None
    seed: int = 0
    progress: Progress | None = None
    done: int = 0
    total: int = 0
    warning: str | None = None


def run_study(plan: Plan, *, seeds: int, minutes: float | None = None, train: bool = True) -> Iterator[Update]:
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
        speed = measure_speed(plan, seconds=0.3 if train else 0.0)
        warnings: list[str] = []
        results = collect(plan, speed, trained=train)
        done, total = 0, len(plan.entries) * seeds if train else 0
        yield Update(results, total=total)
        for seed in range(seeds if train else 0):
            round_start = time.monotonic()
            for entry in plan.entries:
                if seed not in finished_seeds(plan, entry):
                    try:
                        for progress in training(plan.recipe_of(entry, seed), plan.run_folder(entry, seed)):
                            said = "; ".join(progress.warnings) or None
                            yield Update(results, entry, seed, progress, done, total, said)
                    except DivergedError as error:
                        warnings.append(f"{entry.key}, seed {seed}: {error}")
                        yield Update(results, entry, seed, done=done, total=total, warning=warnings[-1])
                    results = collect(plan, speed, warnings)
                    save(plan, results)
                done += 1
                yield Update(results, done=done, total=total)
            round_seconds = time.monotonic() - round_start
            late = minutes is not None and time.monotonic() - start + round_seconds > 60 * minutes
            if late and LEAST_SEEDS <= seed + 1 < seeds:
                break
        save(plan, results)
        yield Update(results, done=done, total=done)


def save(plan: Plan, results: dict[str, Any]) -> None:
    """Write the results document where the plan has a folder."""
    if plan.folder:
        write_json(plan.folder / "results.json", results)


def measure_speed(plan: Plan, seconds: float) -> dict[str, Any]:
    """Images per second of every network at inference, one after another, each for ``seconds`` after a warm-up pass.

    All take the same batch, about as large as keeps one pass short. Weights are zero: the arithmetic is the same, and
    drawing them would take longer than the measurement.
    """
    device = choose_device(plan.recipe.device)
    budget = MACS_A_BATCH["cpu" if device.type == "cpu" else "gpu"]
    largest = max(entry.cost.macs for entry in plan.entries)
    batch = max(1, min(256, int(budget / largest)))
    images = torch.randn(batch, 3, plan.recipe.image_size, plan.recipe.image_size, device=device)
    images = images.to(memory_format=torch.channels_last)
    measured = {}
    for entry in plan.entries:
        with torch.device("meta"):
            model = build(plan.recipe_of(entry, 0), plan.num_classes)
        model = model.to_empty(device=device).to(memory_format=torch.channels_last)  # pyright: ignore
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()
            for buffer in model.buffers():
                buffer.fill_(1)
        measured[entry.key] = images_per_second(model, images, seconds)
    return {"batch": batch, "device": str(device), "precision": "fp32", "images_per_second": measured}
