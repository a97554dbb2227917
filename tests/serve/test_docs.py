"""What docs/serve.md says is so."""

import csv
import re
from pathlib import Path

from convnext.serve.limits import Limits
from convnext.serve.schemas import ERRORS
from tests.serve.conftest import Client

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "serve.md"


def test_the_page_in_docs_has_the_limits_and_statuses_that_there_are() -> None:
    text = PAGE.read_text()
    limits = dict(re.findall(r"^\| `--([\w-]+)`.*? \| ([\d,]+) \|", text, re.MULTILINE))
    assert {name: float(value.replace(",", "")) for name, value in limits.items()} == {
        name.replace("_", "-"): value for name, value in vars(Limits()).items()
    }
    assert [int(status) for status in re.findall(r"^\| (\d{3}) \|", text, re.MULTILINE)] == [200, *ERRORS]


def test_the_page_in_docs_names_all_figures(client: Client) -> None:
    text = PAGE.read_text()
    names = re.findall(r"^# TYPE (convnext_\w+) ", client.get("/metrics").text, re.MULTILINE)
    own = [name for name in names if not name.endswith("_created")]
    assert len(own) == 6
    assert all(f"`{name}" in text for name in own)


def test_the_results_in_docs_are_the_committed_ones() -> None:
    """Of the load test, wherever the page names its figures."""
    with (ROOT / "benchmarks" / "results" / "serve-cpu-avx2.csv").open() as file:
        (row,) = csv.DictReader(file)
    head, shown = re.findall(r"^\| (requests .*|[\d,]+ \| \d+ .*) \|$", PAGE.read_text(), re.MULTILINE)
    columns = [name.replace(" ", "_").replace("/s", "_per_second") for name in head.split(" | ")]
    assert [value.replace(",", "") for value in shown.split(" | ")] == [row[name] for name in columns]
