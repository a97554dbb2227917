"""The report: figures that hold the figures, and a page that needs nothing from outside."""

import copy
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from matplotlib.patches import Rectangle
from PIL import Image

from convnext.plotting import render
from convnext.study.plan import make_plan
from convnext.study.report import render_page
from convnext.study.runner import run_study
from convnext.study.study_figure import draw
from tests.study.conftest import REFERENCE


class Page(HTMLParser):
    """Rows of the table, addresses, and the text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.addresses: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]

    def handle_data(self, data: str) -> None:
        if self.rows and self.rows[-1]:
            self.rows[-1][-1] += data


def test_files(study_folder: Path) -> None:
    with Image.open(study_folder / "roadmap.png") as picture:
        assert picture.width > 1000
    assert (study_folder / "roadmap.svg").read_text().count("<svg") == 1
    assert (study_folder / "report.html").stat().st_size > 10_000


def test_the_figure_shows_every_step(results: dict[str, Any]) -> None:
    figure = draw(results)
    accuracy, macs, paper, bubbles = figure.get_axes()
    assert [label.get_text() for label in accuracy.get_yticklabels()] == [
        "Depthwise first  1",
        "Kernel 7x7  2",
        "Kernel 9x9  3",
    ]
    for step in results["steps"]:
        assert f"{step['top1_mean']:.2f}" in [text.get_text() for text in accuracy.texts]
        assert f"{step['macs'] / 1e6:.2f}" in [text.get_text() for text in macs.texts]
        assert f"{step['paper']['top1']:.2f}" in [text.get_text() for text in paper.texts]
    assert "paper" in paper.get_title()
    assert "paper" not in accuracy.get_title()
    assert REFERENCE.removeprefix("timm/") in [text.get_text() for text in bubbles.texts]
    hatched = [patch for patch in accuracy.patches if isinstance(patch, Rectangle) and patch.get_hatch()]
    assert [patch.get_y() for patch in hatched] == [pytest.approx(1.6)]


def test_the_picture_is_the_same_for_the_same_results(results: dict[str, Any]) -> None:
    assert render(draw(results), "svg") == render(draw(copy.deepcopy(results)), "svg")


def test_without_training_there_is_no_accuracy_of_ours(tmp_path: Path) -> None:
    (*_, last) = run_study(make_plan(regime="micro", train=False, out=tmp_path / "out"))
    figure = draw(last.results)
    assert [axes.get_xlabel() for axes in figure.get_axes()] == [
        "multiply-accumulates per image, 10⁶",
        "ImageNet-1K top-1 accuracy, %",
    ]
    page = render_page(last.results, "<svg></svg>")
    assert "not trained" in page
    assert len(Page(page).rows) == 17


def test_the_page_stands_alone(study_folder: Path, results: dict[str, Any]) -> None:
    text = (study_folder / "report.html").read_text()
    page = Page(text)
    assert all(address.startswith("#") for address in page.addresses)
    assert not re.findall(r"(?:src|href|url\()\s*=?\s*[\"']?https?:", text)
    heading, *rows = page.rows
    assert heading[1:4] == ["step", "params", "MACs"]
    assert [row[1].strip() for row in rows] == ["Depthwise first", "Kernel 7x7", "Kernel 9x9", REFERENCE]
    for row, step in zip(rows, results["steps"], strict=False):
        assert f"{step['top1_mean']:.2f}" in row[7]
        assert f"{step['paper']['gmacs']:.2f}" == row[-1].strip()
    assert "convnext roadmap --regime micro --data digits" in text
    assert "Paper, section 2.5" in text


def test_the_page_warns_of_noise(results: dict[str, Any]) -> None:
    pair = {"from": "move_up_depthwise", "to": "kernel_7", "difference": -0.25, "threshold": 0.5, "within": True}
    results["noise"] = {"std": 0.5, "confidence": 0.95, "comparisons": [pair]}
    text = render_page(results, "<svg></svg>")
    assert re.search(r"Within the noise.*Depthwise first → Kernel 7x7 \(-0.25\)", text, re.DOTALL)
    results["noise"]["comparisons"] = [pair | {"within": False}]
    text = render_page(results, "<svg></svg>")
    assert "Within the noise" not in text
    assert "exceeds what chance would do" in text
    results["noise"]["comparisons"] = []
    assert "nothing to compare" in render_page(results, "<svg></svg>")
    results["noise"]["std"] = None
    assert "One seed." in render_page(results, "<svg></svg>")


def test_names_from_outside_are_escaped(results: dict[str, Any]) -> None:
    results["data"] = "<script>alert(1)</script>"
    assert "<script>alert" not in render_page(results, "<svg></svg>")
