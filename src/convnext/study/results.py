"""The document `results.json` of a study: costs, speeds, accuracies, and the differences within the noise."""

import dataclasses
import re
import statistics
from collections.abc import Sequence
from typing import Any

from convnext.environment import environment
from convnext.files import read_json
from convnext.models import roadmap
from convnext.models.roadmap import PAPER_REFERENCES
from convnext.study.plan import Entry, Plan
from convnext.training.run import Run, read_run

CONFIDENCE = 0.95


def collect(plan: Plan, speed: dict[str, Any], warnings: Sequence[str] = ()) -> dict[str, Any]:
    """The results document so far.

    Args:
        plan: the study; finished trainings are read from its folder. Without any, and if none are planned, the trained
            fields are null.
        speed: see :func:`convnext.study.runner.measure_speed`.
        warnings: for the user.
    """
    runs = {entry.key: finished_runs(plan, entry) for entry in plan.entries}
    trained = plan.train or any(runs.values())
    steps, references = [], []
    for entry in plan.entries:
        rate = speed["images_per_second"].get(entry.key)
        row = entry_document(entry, rate, runs[entry.key] if trained else None)
        (steps if entry.step else references).append(row)
    paper = PAPER_REFERENCES[plan.regime].items()
    return {
        "regime": plan.regime,
        "data": plan.recipe.data,
        "image_size": plan.recipe.image_size,
        "num_classes": plan.num_classes,
        "recipe": plan.shared_recipe if trained else None,
        "environment": environment(),
        "speed": {name: speed[name] for name in ("batch", "device", "precision")},
        "steps": steps,
        "references": references,
        "paper_references": [{"name": name, "top1": top1, "gmacs": gmacs} for name, (top1, gmacs) in paper],
        "noise": noise(plan.regime, steps, references) if trained else None,
        "warnings": [*warnings, *other_machines([run for by_seed in runs.values() for run in by_seed.values()])],
        "command": plan.command,
    }


def entry_document(entry: Entry, images_per_second: float | None, runs: dict[int, Run] | None) -> dict[str, Any]:
    """One step's or reference's row; without ``runs`` the trained fields are null."""
    document: dict[str, Any] = {"key": entry.key}
    if entry.step:
        step = entry.step
        document |= {name: getattr(step, name) for name in ("title", "change", "section", "before", "kept")}
        document["design"] = dataclasses.asdict(step.design) | {"depths": list(step.design.depths)}
    document |= dataclasses.asdict(entry.cost) | {"images_per_second": images_per_second}
    document |= accuracy(runs) if runs is not None else dict.fromkeys(TRAINED_FIELDS)
    if entry.step:
        document["paper"] = dataclasses.asdict(entry.step.paper)
    return document


TRAINED_FIELDS = ("seeds", "top1", "top1_mean", "top1_std", "train_seconds", "unreadable")


def accuracy(runs: dict[int, Run]) -> dict[str, Any]:
    """Held-out accuracy (%) after the last epoch of each finished training, in the order of the seeds."""
    top1 = [run.metrics[-1]["top1"] for run in runs.values()]
    return {
        "seeds": list(runs),
        "top1": top1,
        "top1_mean": statistics.fmean(top1) if top1 else None,
        "top1_std": statistics.stdev(top1) if len(top1) > 1 else None,
        "train_seconds": statistics.fmean(run.seconds for run in runs.values()) if runs else None,
        "unreadable": max((run.metrics[-1]["unreadable"] for run in runs.values()), default=0),
    }


def finished_runs(plan: Plan, entry: Entry) -> dict[int, Run]:
    """The finished trainings in the plan's folder, by seed."""
    if plan.folder is None:
        return {}
    names = [path.name for path in plan.run_folder(entry, 0).parent.glob("seed-*")]
    seeds = sorted(int(name.removeprefix("seed-")) for name in names if re.fullmatch(r"seed-\d+", name))
    runs = {seed: finished_run(plan, entry, seed) for seed in seeds}
    return {seed: run for seed, run in runs.items() if run is not None}


def finished_run(plan: Plan, entry: Entry, seed: int) -> Run | None:
    """A training, if every epoch of it is done."""
    run = read_run(plan.recipe_of(entry, seed), plan.run_folder(entry, seed))
    return run if len(run.metrics) >= plan.recipe.epochs else None


def other_machines(runs: Sequence[Run]) -> list[str]:
    """Warnings about trainings that were made on another machine or with other versions."""
    here, others = environment(), set()
    for run in runs:
        there = read_json(run.dir / "environment.json")
        if any(there.get(name) != here[name] for name in ("processor", "gpu", "versions")):
            versions = there.get("versions") or {}
            others.add(f"{there.get('gpu') or there.get('processor')}, torch {versions.get('torch')}")
    return [f"some trainings ran on another machine or other versions: {other}" for other in sorted(others)]


def noise(regime: str, steps: Sequence[dict[str, Any]], references: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """Differences in accuracy beside the noise of the seeds; None before there are accuracies.

    Each trained step is compared with its nearest trained ancestor, the last with the first, and each reference with
    the last. The standard deviation is pooled over all models, since a few seeds say little about one. A difference is
    significant, taken by itself, if it exceeds Fisher's least significant difference ``t * std * sqrt(1/n + 1/m)`` at
    95 % confidence. With one seed each, ``std`` is None and no difference is significant.
    """
    trained = {row["key"]: row for row in [*steps, *references] if row["top1"]}
    if not trained:
        return None
    path = [step["key"] for step in steps if step["kept"] and step["key"] in trained]
    pairs = [(ancestor(regime, key, trained), key) for key in trained if "/" not in key]
    pairs = [(before, key) for before, key in pairs if before is not None]
    if len(path) > 2:
        pairs.append((path[0], path[-1]))
    if path:
        pairs += [(row["key"], path[-1]) for row in references if row["key"] in trained]
    freedom = sum(len(row["top1"]) - 1 for row in trained.values())
    squares = sum((len(row["top1"]) - 1) * row["top1_std"] ** 2 for row in trained.values() if row["top1_std"])
    std = (squares / freedom) ** 0.5 if freedom else None
    scale = None  # of the least significant difference, without the numbers of seeds
    if std is not None:
        from scipy.stats import t

        scale = float(t.ppf((1 + CONFIDENCE) / 2, freedom)) * std
    comparisons = []
    for before, key in pairs:
        first, second = trained[before], trained[key]
        seeds = 1 / len(first["top1"]) + 1 / len(second["top1"])
        threshold = None if scale is None else scale * seeds**0.5
        difference = second["top1_mean"] - first["top1_mean"]
        within = threshold is None or abs(difference) <= threshold
        comparisons.append(
            {"from": before, "to": key, "difference": difference, "threshold": threshold, "within": within}
        )
    return {"std": std, "confidence": CONFIDENCE, "comparisons": comparisons}


def ancestor(regime: str, key: str, trained: dict[str, Any]) -> str | None:
    """The nearest trained step from which a step was derived."""
    before = {step.key: step.before for step in roadmap(regime)}
    name = before[key]
    while name is not None and name not in trained:
        name = before[name]
    return name
