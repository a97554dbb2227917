"""What the README and the docs show works, and the figures in them are true."""

import csv
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import convnext
from convnext.plotting import render
from convnext.study.study_figure import draw
from convnext.training.recipes import RECIPES

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SLOW = [ROOT / "README.md"]  # which trains


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=pytest.mark.slow if page in SLOW else ()) for page in PAGES],
    ids=lambda page: page.name,
)
def test_python_examples_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for code in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL):
        exec(compile(code, str(page), "exec"), {"__name__": "example"})


def test_the_family_table_is_true() -> None:
    rows = re.findall(r"`(convnext\w+)` \| ([\d,]+) \| ([\d.]+)", (ROOT / "README.md").read_text())
    assert len(rows) == 20
    for name, params, gmacs in rows:
        with torch.device("meta"):
            model = convnext.create_model(name)
        cost = convnext.cost(model)
        assert (f"{cost.params:,}", f"{cost.macs / 1e9:.3f}") == (params, gmacs), name


def test_the_recipes_table_is_true() -> None:
    text = (ROOT / "docs" / "training.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| `([\w/]+)` \| (.*) \|$", text, re.MULTILINE)
    assert [name for name, _, _ in rows] == list(RECIPES)
    for name, model, figures in rows:
        recipe = RECIPES[name]("DATA")
        average = f"{recipe.ema_decay:.5g}" if recipe.ema_decay else "-"
        rate = f"{recipe.lr:g} at {recipe.lr_batch_size}"
        numbers = [str(number) for number in (recipe.epochs, recipe.image_size, recipe.batch_size)]
        assert figures.split(" | ")[:-1] == [*numbers, rate, recipe.weights or "-", average], name
        assert model == recipe.model


def test_the_loaders_table_is_the_committed_results() -> None:
    with (ROOT / "benchmarks" / "results" / "loader-cpu.csv").open() as file:
        measured = {(row["images_per_second_per_core"], row["ratio_to_timm"]) for row in csv.DictReader(file)}
    rows = re.findall(
        r"^\| (?:timm|ours), .* \| (\d+) \| ([\d.]+) \|$", (ROOT / "docs" / "training.md").read_text(), re.M
    )
    assert len(rows) == 4
    assert set(rows) <= measured


def test_the_time_to_the_first_answer_is_the_measured_one() -> None:
    with (ROOT / "benchmarks" / "results" / "cold-start-cpu.csv").open() as file:
        measured = {row["command"]: float(row["seconds"]) for row in csv.DictReader(file)}
    (figures,) = re.findall(
        r"comes ([\d.]+) s after the command.* import takes\s([\d.]+) s", (ROOT / "README.md").read_text(), re.DOTALL
    )
    assert figures == (f"{measured['convnext predict']:.1f}", f"{measured['import torch']:.1f}")


def test_the_figure_belongs_to_the_committed_results() -> None:
    results = json.loads((ROOT / "benchmarks" / "results" / "roadmap-micro-digits.json").read_text())
    assert [step["key"] for step in results["steps"]] == [step.key for step in convnext.roadmap("micro")]
    assert all(step["top1_mean"] > 90 for step in results["steps"])
    assert results["steps"][-1]["top1_mean"] > 97
    drawn = Image.open(io.BytesIO(render(draw(results), "png"))).convert("L")
    with Image.open(ROOT / "docs" / "roadmap.png") as shown:
        assert shown.size == drawn.size
        different = np.abs(np.asarray(shown.convert("L"), float) - np.asarray(drawn, float)) > 64
    assert different.mean() < 0.002  # fonts may differ by a hair
