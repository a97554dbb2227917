"""`results.json`: what a study counted, measured and trained, and which differences lie within the noise."""

import dataclasses
import statistics
from collections.abc import Sequence
from typing import Any

from convnext.environment import environment
from convnext.models.roadmap import PAPER_REFERENCES
from convnext.study.plan import Entry, Plan
from convnext.training.run import read_run

CONFIDENCE = 0.95


def collect(plan: Plan, speed: dict[str, Any], warnings: Sequence[str] = (), trained: bool = True) -> dict[str, Any]:
    """The results document of a study as it stands.

    Args:
        plan: the study; finished trainings are read from its folder.
        speed: ``images_per_second`` by entry, and how it was measured.
        warnings: what went wrong on the way.
        trained: False leaves the trained fields null.
    """
    rows = [entry_document(plan, entry, speed["images_per_second"].get(entry.key), trained) for entry in plan.entries]
    steps = [row for row, entry in zip(rows, plan.entries, strict=True) if entry.step]
    return {
        "regime": plan.regime,
        "data": plan.recipe.data,
        "image_size": plan.recipe.image_size,
        "num_classes": plan.num_classes,
        "recipe": plan.recipe.to_dict() if trained else None,
        "environment": environment(),
        "speed": {name: value for name, value in speed.items() if name != "images_per_second"},
        "steps": steps,
        "references": [row for row, entry in zip(rows, plan.entries, strict=True) if not entry.step],
        "paper_references": [
            {"name": name, "top1": top1, "gmacs": gmacs}
            for name, (top1, gmacs) in PAPER_REFERENCES[plan.regime].items()
        ],
        "noise": noise(steps),
        "warnings": list(warnings),
    }


def entry_document(plan: Plan, entry: Entry, images_per_second: float | None, trained: bool) -> dict[str, Any]:
    """One step's or reference's row."""
    document: dict[str, Any] = {"key": entry.key}
    if entry.step:
        step = entry.step
        document |= {
            "title": step.title,
            "change": step.change,
            "section": step.section,
            "before": step.before,
            "kept": step.kept,
            "design": dataclasses.asdict(step.design) | {"depths": list(step.design.depths)},
        }
    document |= dataclasses.asdict(entry.cost) | {"images_per_second": images_per_second}
    document |= accuracy(plan, entry) if trained else dict.fromkeys(("top1", "top1_mean", "top1_std", "train_seconds"))
    if entry.step:
        document["paper"] = dataclasses.asdict(entry.step.paper)
    return document


def accuracy(plan: Plan, entry: Entry) -> dict[str, Any]:
    """Held-out accuracy (%) after the last epoch of each finished training, in the order of the seeds."""
    runs = [read_run(plan.recipe_of(entry, seed), plan.run_folder(entry, seed)) for seed in finished_seeds(plan, entry)]
    top1 = [run.metrics[-1]["top1"] for run in runs]
    return {
        "top1": top1,
        "top1_mean": statistics.fmean(top1) if top1 else None,
        "top1_std": statistics.stdev(top1) if len(top1) > 1 else None,
        "train_seconds": statistics.fmean(run.seconds for run in runs) if runs else None,
    }


def finished_seeds(plan: Plan, entry: Entry) -> list[int]:
    """The seeds whose training in the plan's folder is finished."""
    if plan.folder is None:
        return []
    parent = plan.run_folder(entry, 0).parent
    seeds = sorted(int(path.name.removeprefix("seed-")) for path in parent.glob("seed-*"))
    return [seed for seed in seeds if is_finished(plan, entry, seed)]


def is_finished(plan: Plan, entry: Entry, seed: int) -> bool:
    """Whether every epoch of a training is behind it."""
    run = read_run(plan.recipe_of(entry, seed), plan.run_folder(entry, seed))
    return len(run.metrics) >= plan.recipe.epochs


def noise(steps: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """Which changes cannot be told from the noise of the seeds; None before there are accuracies.

    The deviation is pooled over the steps, since a few seeds say little for a single one. A change counts as real when
    it exceeds the least significant difference, ``t * deviation * sqrt(1/n + 1/m)``, at 95 % confidence.
    """
    trained = {step["key"]: step for step in steps if step["top1"]}
    if not trained:
        return None
    freedom = sum(len(step["top1"]) - 1 for step in trained.values())
    pairs = [(trained[step["before"]], step) for step in trained.values() if step["before"] in trained]
    if freedom == 0:
        return {
            "std": None,
            "confidence": CONFIDENCE,
            "compared": len(pairs),
            "within": [step["key"] for _, step in pairs],
        }
    from scipy.stats import t

    squares = sum((len(step["top1"]) - 1) * step["top1_std"] ** 2 for step in trained.values() if step["top1_std"])
    std = (squares / freedom) ** 0.5
    quantile = float(t.ppf((1 + CONFIDENCE) / 2, freedom))
    within = []
    for before, step in pairs:
        threshold = quantile * std * (1 / len(before["top1"]) + 1 / len(step["top1"])) ** 0.5
        if abs(step["top1_mean"] - before["top1_mean"]) <= threshold:
            within.append(step["key"])
    return {"std": std, "confidence": CONFIDENCE, "compared": len(pairs), "within": within}
