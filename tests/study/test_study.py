"""The study: what it writes, how it goes on, what it refuses."""

import dataclasses
import io
import json
import shutil
import statistics
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import convnext
from convnext.errors import DivergedError, RunError, UsageError
from convnext.study import runner as study_run
from convnext.study.plan import Plan, make_plan
from convnext.study.report import render_page
from convnext.study.results import noise
from convnext.study.runner import Update, run_study
from convnext.study.study_table import follow, table
from tests.conftest import MakeFolder
from tests.study.conftest import REFERENCE, STEPS, small_plan


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
    assert results["references"][0]["key"] == REFERENCE
    assert results["environment"]["versions"]["torch"]


def test_costs_are_those_of_the_networks_that_are_trained(results: dict[str, Any]) -> None:
    model = convnext.create_model("roadmap_micro/kernel_7", num_classes=10)
    expected = convnext.cost(model, 32)
    assert (results["steps"][1]["params"], results["steps"][1]["macs"]) == (expected.params, expected.macs)


def test_a_second_call_trains_nothing(study_folder: Path, results: dict[str, Any]) -> None:
    updates = list(run_study(small_plan(study_folder, seeds=2)))
    assert all(update.progress is None for update in updates)
    again = updates[-1].results
    assert [step["top1"] for step in again["steps"]] == [step["top1"] for step in results["steps"]]
    assert [step["train_seconds"] for step in again["steps"]] == [step["train_seconds"] for step in results["steps"]]


@pytest.mark.slow
def test_a_study_cut_off_in_a_training_goes_on(results: dict[str, Any], tmp_path: Path) -> None:
    plan = small_plan(tmp_path / "out")
    for update in (updates := run_study(dataclasses.replace(plan, seeds=2))):
        if update.done == 1 and update.progress is not None and update.progress.step > 3:
            break
    updates.close()
    kept = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [len(step["top1"]) for step in kept["steps"]] == [1, 0, 0]
    (*_, last) = run_study(dataclasses.replace(plan, seeds=2))
    assert [step["top1"] for step in last.results["steps"]] == [step["top1"] for step in results["steps"]]


@pytest.mark.slow
def test_other_steps_and_references_join_a_study(study_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(study_folder, tmp_path / "copy")
    plan = small_plan(folder, steps=["resnet"], references=[])
    assert [entry.key for entry in plan.entries] == ["resnet", *STEPS, REFERENCE]
    plan.record()
    small_plan(folder, steps=["gelu"], references=[]).record()
    plan.record()  # planned before the other call was made
    keys = [entry.key for entry in small_plan(folder).entries]
    assert keys == ["resnet", *STEPS, "gelu", REFERENCE]
    trained = {update.entry.key for update in run_study(dataclasses.replace(plan, seeds=3)) if update.entry}
    assert trained == {"resnet"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 2}, "epochs is 1"),
        ({"image_size": 48}, "image_size is 32"),
        ({"steps": ["kernel_8"]}, "kernel_8"),
        ({"references": ["resnet18"]}, "torchvision/resnet18 or timm/resnet18"),
        ({"seeds": 0}, "seeds is 0"),
        ({"minutes": -1.0}, "minutes is -1.0"),
        ({"minutes": float("nan")}, "minutes is nan"),
        ({"references": ["torchvision/resnet19"]}, "torchvision/resnet18"),
        ({"epochs": 0}, "epochs is 0"),
        ({"device": "abacus"}, "abacus"),
    ],
)
def test_slips_change_nothing(study_folder: Path, change: dict[str, Any], message: str) -> None:
    before = {path: path.stat().st_mtime_ns for path in study_folder.rglob("*") if path.is_file()}
    with pytest.raises(UsageError, match=message):
        list(run_study(small_plan(study_folder, **change)))
    assert {path: path.stat().st_mtime_ns for path in study_folder.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"regime": "mikro"}, "micro"),
        ({"data": "digitz"}, "digitz"),
        ({"image_size": 16}, "--image-size 32"),
        ({"references": ["torchvision/alexnet"]}, r"torchvision/alexnet .*--image-size"),
    ],
)
def test_what_cannot_be_planned_is_named(change: dict[str, Any], named: str) -> None:
    with pytest.raises(UsageError, match=named):
        make_plan(**{"regime": "micro", "data": "digits", "image_size": 32, "train": False} | change)


def test_a_folder_of_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UsageError, match="--out"):
        small_plan(tmp_path)


@pytest.fixture(scope="module")
def limited(tmp_path_factory: pytest.TempPathFactory) -> list[Update]:
    """The updates of a study of one step and three seeds, without time for them."""
    plan = small_plan(tmp_path_factory.mktemp("limited") / "out", steps=["kernel_7"], references=[])
    return list(run_study(dataclasses.replace(plan, seeds=3, minutes=0.0)))


def test_the_time_limit_leaves_at_least_two_seeds(limited: list[Update]) -> None:
    assert len(limited[-1].results["steps"][0]["top1"]) == 2


@pytest.mark.slow
def test_a_time_limit_that_is_not_reached_changes_nothing(tmp_path: Path) -> None:
    plan = small_plan(tmp_path / "out", steps=["kernel_7"], references=[])
    (*_, last) = run_study(dataclasses.replace(plan, seeds=3, minutes=60.0))
    assert len(last.results["steps"][0]["top1"]) == 3


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_is_shown(limited: list[Update], terminal: bool) -> None:
    console = Console(file=io.StringIO(), force_terminal=terminal, width=100)
    assert follow(limited, console) == limited[-1].results
    text = console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    assert all(words in text for words in ("2 of at most 3", "kernel_7", "%"))
    assert ("img/s" in text) == terminal


@pytest.mark.slow
def test_a_training_that_diverges_does_not_end_the_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = study_run.fit

    def diverge(recipe: Any, folder: Path) -> Any:
        if recipe.model.endswith("kernel_7"):
            raise DivergedError("the loss is not finite")
        return real(recipe, folder)

    monkeypatch.setattr(study_run, "fit", diverge)
    plan = small_plan(tmp_path / "out", references=[])
    (*_, last) = run_study(dataclasses.replace(plan, seeds=1))
    assert [len(step["top1"]) for step in last.results["steps"]] == [1, 0, 1]
    (warning,) = last.results["warnings"]
    assert "kernel_7, seed 0" in warning


@pytest.mark.parametrize("regime", ["tiny", pytest.param("base", marks=pytest.mark.slow)])
def test_without_training_the_papers_networks_are_counted(regime: str) -> None:
    plan = make_plan(regime=regime, train=False, steps=["resnet", "separate_downsampling"])
    (*_, last) = run_study(plan)
    results = last.results
    assert (results["num_classes"], results["image_size"]) == (1000, 224)
    gmacs = [round(step["macs"] / 1e9, 2) for step in results["steps"]]
    assert gmacs == ([4.09, 4.46] if regime == "tiny" else [15.01, 15.35])
    for step in results["steps"]:
        assert [step[name] for name in ("top1", "top1_mean", "top1_std", "train_seconds")] == [None] * 4
        assert step["images_per_second"] > 0
    assert json.loads(json.dumps(results)) == results


def row(key: str, top1: list[float], kept: bool = True) -> dict[str, Any]:
    std = statistics.stdev(top1) if len(top1) > 1 else None
    return {
        "key": key,
        "kept": kept,
        "top1": top1,
        "top1_mean": statistics.fmean(top1) if top1 else None,
        "top1_std": std,
    }


def comparisons(document: dict[str, Any] | None) -> list[tuple[str, str, bool]]:
    assert document is not None
    return [(pair["from"], pair["to"], pair["within"]) for pair in document["comparisons"]]


def test_noise_needs_accuracies_and_two_seeds() -> None:
    assert noise("micro", [row("resnet", [])], []) is None
    single = noise("micro", [row("resnet", [90.0]), row("stage_ratio", [99.0])], [])
    assert single is not None
    assert single["std"] is None
    assert comparisons(single) == [("resnet", "stage_ratio", True)]


@pytest.mark.parametrize(("gap", "within"), [(2.26, True), (2.28, False)])
def test_least_significant_difference(gap: float, within: bool) -> None:
    """Pooled deviation 1 with 4 degrees of freedom: t = 2.776, so 2.776 * sqrt(2 / 3) = 2.267."""
    steps = [row("resnet", [89.0, 90.0, 91.0]), row("stage_ratio", [89.0 + gap, 90.0 + gap, 91.0 + gap])]
    document = noise("micro", steps, [])
    assert document is not None
    assert document["std"] == pytest.approx(1.0)
    assert document["comparisons"][0]["threshold"] == pytest.approx(2.267, abs=1e-3)
    assert comparisons(document) == [("resnet", "stage_ratio", within)]


def test_what_is_compared() -> None:
    """Each with the nearest trained step it goes back to, the last with the first, references with the last."""
    steps = [row("resnet", [9.0, 8.0]), row("width", [9.0, 8.0]), row("kernel_5", [9.0, 8.0], kept=False)]
    steps.append(row("layer_norm", [9.0, 8.0]))
    pairs = [(a, b) for a, b, _ in comparisons(noise("micro", steps, [row("timm/vgg11", [9.0, 8.0])]))]
    assert pairs == [
        ("resnet", "width"),
        ("width", "kernel_5"),
        ("width", "layer_norm"),
        ("resnet", "layer_norm"),
        ("timm/vgg11", "layer_norm"),
    ]


def test_counting_does_not_wipe_a_trained_study(study_folder: Path, results: dict[str, Any], tmp_path: Path) -> None:
    folder = shutil.copytree(study_folder, tmp_path / "copy")
    (*_, last) = run_study(small_plan(folder, train=False))
    assert [step["top1"] for step in last.results["steps"]] == [step["top1"] for step in results["steps"]]


def test_other_images_under_the_same_name_are_another_study(make_folder: MakeFolder, tmp_path: Path) -> None:
    data = make_folder({"train/cat": 3, "train/dog": 3, "val/cat": 2, "val/dog": 2})

    def plan() -> Plan:
        options: dict[str, Any] = {"steps": ["kernel_7"], "epochs": 1, "image_size": 32, "seeds": 1}
        return make_plan(regime="micro", data=str(data), out=tmp_path / "out", **options)

    (*_, last) = run_study(plan())
    assert last.results["num_classes"] == 2
    (data / "train" / "emu").mkdir()
    shutil.copy(data / "train" / "cat" / "0.jpg", data / "train" / "emu")
    with pytest.raises(UsageError, match="images is"):
        plan()


def test_unreadable_images_are_in_the_results(make_folder: MakeFolder, tmp_path: Path) -> None:
    data = make_folder({"train/cat": 6, "train/dog": 6, "val/cat": 3, "val/dog": 3})
    (data / "train" / "cat" / "2.jpg").write_text("no image")
    options: dict[str, Any] = {"steps": ["gelu", "layer_norm"], "epochs": 2, "image_size": 32, "seeds": 1}
    updates = list(run_study(make_plan(regime="micro", data=str(data), out=tmp_path / "out", **options)))
    said = [warning for update in updates for warning in update.warnings]
    assert len(said) == 1  # once, not in every epoch of every step
    assert "cat/2.jpg" in said[0]
    assert updates[-1].results["warnings"] == said
    assert [step["unreadable"] for step in updates[-1].results["steps"]] == [1, 1]


def test_odd_contents_of_the_folder(study_folder: Path, results: dict[str, Any], tmp_path: Path) -> None:
    folder = shutil.copytree(study_folder, tmp_path / "copy")
    (folder / "runs" / "kernel_7" / "seed-0.bak").mkdir()
    (*_, last) = run_study(small_plan(folder))
    assert last.results["steps"] == [
        step | {"images_per_second": pytest.approx(0, abs=1e9)} for step in results["steps"]
    ]
    (folder / "study.json").write_text("[]")
    with pytest.raises(RunError, match=r"study\.json"):
        small_plan(folder)
    (folder / "study.json").write_text("{}")
    with pytest.raises(UsageError, match="another study"):
        small_plan(folder)


def test_trainings_made_elsewhere_are_named(study_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(study_folder, tmp_path / "copy")
    path = folder / "runs" / "kernel_7" / "seed-0" / "environment.json"
    path.write_text(path.read_text().replace('"processor": "', '"processor": "Abacus '))
    (*_, last) = run_study(small_plan(folder))
    (warning,) = last.results["warnings"]
    assert "Abacus" in warning


@pytest.mark.slow
@pytest.mark.parametrize("name", ["timm/swin_tiny_patch4_window7_224", "timm/levit_128s"])
def test_the_speed_of_references_with_index_buffers(name: str) -> None:
    options: dict[str, Any] = {"steps": ["kernel_7"], "references": [name], "image_size": 224, "train": False}
    (*_, last) = run_study(make_plan(regime="micro", **options))
    assert last.results["references"][0]["images_per_second"] > 0


def test_where_time_is_over_the_speed_is_null(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study_run, "COST_SECONDS", -1)
    plan = make_plan(regime="micro", train=False)
    (first,) = run_study(plan)
    assert [step["images_per_second"] for step in first.results["steps"]] == [None] * 16
    assert "16 of 16" in first.results["warnings"][0]
    console = Console(file=io.StringIO(), width=100)
    console.print(table(first.results))
    assert "Within" not in render_page(first.results, "<svg></svg>")
