"""The study: what it writes, how it goes on, what it refuses."""

import json
import shutil
import statistics
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import convnext
from convnext.errors import DivergedError, UsageError
from convnext.study import run as study_run
from convnext.study.plan import make_plan
from convnext.study.results import noise
from convnext.study.run import run_study
from convnext.study.table import follow
from tests.study.conftest import STEPS, small_plan


def test_results_hold_the_contract(results: dict[str, Any], study_folder: Path) -> None:
    assert {"regime", "data", "recipe", "environment", "steps", "references"} <= set(results)
    assert (results["regime"], results["data"], results["recipe"]["epochs"]) == ("micro", "digits", 1)
    assert [step["key"] for step in results["steps"]] == list(STEPS)
    for row in [*results["steps"], *results["references"]]:
        log = [
            json.loads(
                (study_folder / "runs" / row["key"].replace("/", "-") / f"seed-{seed}" / "metrics.jsonl").read_text()
            )
            for seed in (0, 1)
        ]
        assert row["top1"] == [metrics["top1"] for metrics in log]
        assert row["top1_mean"] == pytest.approx(statistics.fmean(row["top1"]))
        assert row["top1_std"] == pytest.approx(statistics.stdev(row["top1"]))
        assert row["train_seconds"] == pytest.approx(statistics.fmean(metrics["seconds"] for metrics in log))
        assert min(row["params"], row["macs"], row["activations"], row["images_per_second"]) > 0
    kernel_9 = results["steps"][2]
    assert (kernel_9["kept"], kernel_9["section"], kernel_9["title"]) == (False, "2.5", "Kernel 9x9")
    assert kernel_9["design"]["kernel_size"] == 9
    assert kernel_9["paper"] == {"top1": 80.57, "top1_std": 0.06, "gmacs": 4.21}
    assert results["references"][0]["key"] == "torchvision/resnet18"
    assert results["environment"]["versions"]["torch"]


def test_costs_are_those_of_the_networks_that_are_trained(results: dict[str, Any]) -> None:
    model = convnext.create_model("roadmap_micro/kernel_7", num_classes=10)
    expected = convnext.cost(model, 32)
    assert (results["steps"][1]["params"], results["steps"][1]["macs"]) == (expected.params, expected.macs)


def test_a_second_call_trains_nothing(study_folder: Path, results: dict[str, Any]) -> None:
    updates = list(run_study(small_plan(study_folder), seeds=2))
    assert all(update.progress is None for update in updates)
    again = updates[-1].results
    assert [step["top1"] for step in again["steps"]] == [step["top1"] for step in results["steps"]]
    assert [step["train_seconds"] for step in again["steps"]] == [step["train_seconds"] for step in results["steps"]]


def test_a_study_cut_off_in_a_training_goes_on(results: dict[str, Any], tmp_path: Path) -> None:
    plan = small_plan(tmp_path / "out")
    for update in (updates := run_study(plan, seeds=2)):
        if update.done == 1 and update.progress is not None and update.progress.step > 3:
            break
    updates.close()
    kept = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [len(step["top1"]) for step in kept["steps"]] == [1, 0, 0]
    (*_, last) = run_study(plan, seeds=2)
    assert [step["top1"] for step in last.results["steps"]] == [step["top1"] for step in results["steps"]]


def test_other_steps_and_references_join_a_study(study_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(study_folder, tmp_path / "copy")
    plan = small_plan(folder, steps=["resnet"], references=[])
    assert [entry.key for entry in plan.entries] == ["resnet", *STEPS, "torchvision/resnet18"]
    trained = {update.entry.key for update in run_study(plan, seeds=3) if update.entry}
    assert trained == {"resnet"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 2}, r"another study \(epochs is 1 there, 2 here\)"),
        ({"image_size": 48}, r"another study \(image_size is 32 there, 48 here\)"),
        ({"steps": ["kernel_8"]}, "unknown step 'kernel_8': did you mean kernel_"),
        ({"references": ["torchvision/resnet19"]}, "unknown reference .*torchvision/resnet18"),
        ({"epochs": 0}, "epochs is 0, needs 1 or more"),
        ({"device": "abacus"}, "device 'abacus' cannot be used"),
    ],
)
def test_slips_change_nothing(study_folder: Path, change: dict[str, Any], message: str) -> None:
    before = {path: path.stat().st_mtime_ns for path in study_folder.rglob("*") if path.is_file()}
    with pytest.raises(UsageError, match=message):
        list(run_study(small_plan(study_folder, **change), seeds=2))
    assert {path: path.stat().st_mtime_ns for path in study_folder.rglob("*") if path.is_file()} == before


def test_unknown_regime_data_and_foreign_folders(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown regime 'mikro': did you mean micro"):
        make_plan(regime="mikro")
    with pytest.raises(UsageError, match="unknown data 'digitz'"):
        make_plan(regime="micro", data="digitz")
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UsageError, match="is there already and holds no study"):
        small_plan(tmp_path)


def test_images_too_small_say_what_to_do() -> None:
    with pytest.raises(UsageError, match=r"image size 16 is too small for roadmap_micro/.*--image-size 32"):
        small_plan(None, image_size=16, train=False)


def test_a_reference_that_cannot_take_the_images_is_named() -> None:
    with pytest.raises(UsageError, match=r"torchvision/alexnet cannot take images of 32 px .*--image-size"):
        small_plan(None, references=["torchvision/alexnet"], train=False)


@pytest.mark.parametrize(("minutes", "seeds_made"), [(0.0, 2), (60.0, 3)])
def test_the_time_limit_leaves_at_least_two_seeds(tmp_path: Path, minutes: float, seeds_made: int) -> None:
    plan = small_plan(tmp_path / "out", steps=["kernel_7"], references=[])
    (*_, last) = run_study(plan, seeds=3, minutes=minutes)
    assert len(last.results["steps"][0]["top1"]) == seeds_made


def test_a_training_that_diverges_does_not_end_the_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = study_run.training

    def diverge(recipe: Any, folder: Path) -> Any:
        if recipe.model.endswith("kernel_7"):
            raise DivergedError("the loss is not finite")
        return real(recipe, folder)

    monkeypatch.setattr(study_run, "training", diverge)
    plan = small_plan(tmp_path / "out", references=[])
    (*_, last) = run_study(plan, seeds=1)
    assert [len(step["top1"]) for step in last.results["steps"]] == [1, 0, 1]
    assert last.results["warnings"] == ["kernel_7, seed 0: the loss is not finite"]


@pytest.mark.parametrize("regime", ["tiny", "base"])
def test_without_training_the_papers_networks_are_counted(regime: str) -> None:
    plan = make_plan(regime=regime, train=False, steps=["resnet", "separate_downsampling"])
    (*_, last) = run_study(plan, seeds=2, train=False)
    results = last.results
    assert (results["num_classes"], results["image_size"]) == (1000, 224)
    gmacs = [round(step["macs"] / 1e9, 2) for step in results["steps"]]
    assert gmacs == ([4.09, 4.46] if regime == "tiny" else [15.01, 15.35])
    for step in results["steps"]:
        assert [step[name] for name in ("top1", "top1_mean", "top1_std", "train_seconds")] == [None] * 4
        assert step["images_per_second"] > 0
    assert json.loads(json.dumps(results)) == results


def steps_with(*top1: list[float]) -> list[dict[str, Any]]:
    rows = []
    for i, values in enumerate(top1):
        std = statistics.stdev(values) if len(values) > 1 else None
        row = {"key": str(i), "before": str(i - 1), "top1": values, "top1_std": std}
        rows.append(row | {"top1_mean": statistics.fmean(values) if values else None})
    return rows


def test_noise() -> None:
    assert noise(steps_with([], [])) is None
    single = noise(steps_with([90.0], [95.0]))
    assert single == {"std": None, "confidence": 0.95, "compared": 1, "within": ["1"]}
    # Pooled deviation 1 with 4 degrees of freedom: t = 2.776, least significant difference 2.776 * sqrt(2 / 3) = 2.27.
    several = noise(steps_with([89.0, 90.0, 91.0], [91.2, 92.2, 93.2]))
    assert several is not None
    assert several["std"] == pytest.approx(1.0)
    assert several["within"] == ["1"]
    apart = noise(steps_with([89.0, 90.0, 91.0], [91.3, 92.3, 93.3]))
    assert apart is not None
    assert apart["within"] == []


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_is_shown(tmp_path: Path, terminal: bool) -> None:
    with (tmp_path / "log").open("w") as file:
        console = Console(file=file, force_terminal=terminal, width=100)
        follow(run_study(small_plan(tmp_path / "out", steps=["kernel_7"], references=[]), seeds=1), console)
    text = (tmp_path / "log").read_text()
    assert all(words in text for words in ("1 of 1", "kernel_7", "%"))
    assert ("img/s" in text) == terminal
