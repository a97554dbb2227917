"""The page's files, the documentation of the API, and docs/serve.md: complete, and true."""

import csv
import re
from itertools import product
from pathlib import Path

import pytest

from convnext.serve.limits import Limits
from convnext.serve.pages import ASSETS
from convnext.serve.schemas import ERRORS
from tests.serve.conftest import Client

ROOT = Path(__file__).parents[2]
DOCS = (ROOT / "docs" / "serve.md").read_text()


def test_every_file_is_served_and_loads_nothing_from_another_host(client: Client) -> None:
    for path, asset in ASSETS.items():
        response = client.get(path)
        assert (response.status_code, response.content) == (200, asset.content)
        assert response.headers["content-type"].startswith(asset.media_type)
        assert client.request("HEAD", path).status_code == 200
        text = response.text.replace("http://www.w3.org/2000/svg", "")
        assert "//" not in re.sub(r"^\s*//.*$|(?<=;) //.*$|(?<=,) //.*$", "", text, flags=re.MULTILINE), path
    page = client.get("/").text
    assert not re.search(r"<style|style=|<script(?! src=)|\son\w+=", page)
    links = set(re.findall(r'(?:src|href)="([^"#]+)"', page))  # relative, as a proxy may add a prefix
    assert links <= {*(path[1:] for path in ASSETS), "docs"}


def test_the_documentation_of_the_api_loads_nothing_from_another_host(client: Client) -> None:
    pytest.importorskip("fastapi_offline")
    response = client.get("/docs")
    links = re.findall(r"(?:src=|href=|url: )[\"'](.*?)[\"']", response.text)
    assert [client.get(f"/{link}").status_code for link in links] == [200] * 4
    assert "'unsafe-inline'" not in response.headers["content-security-policy"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast(scheme: str) -> None:
    """WCAG AA: 4.5 for text, 3 for the parts of controls and bars."""
    light, dark = re.findall(r":root \{(.*?)\}", ASSETS["/page.css"].content.decode(), re.DOTALL)
    colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", light if scheme == "light" else light + dark))
    text = [*product(("ink", "soft"), ("ground", "surface", "raised")), ("accent", "ground"), ("bad", "bad-soft")]
    text += [("accent-ink", "accent"), ("ink", "accent-soft")]
    parts = [("control", "surface"), ("first", "raised"), ("other", "raised"), ("accent", "surface")]
    for minimum, pairs in ((4.5, text), (3, parts)):
        for front, back in pairs:
            low, high = sorted(map(luminance, (colours[front], colours[back])))
            assert (high + 0.05) / (low + 0.05) >= minimum, (front, back)


def luminance(colour: str) -> float:
    """Relative luminance of ``#rrggbb`` by WCAG 2, from 0 to 1."""
    levels = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [level / 12.92 if level <= 0.04045 else ((level + 0.055) / 1.055) ** 2.4 for level in levels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_docs_have_the_limits_statuses_and_metrics(client: Client) -> None:
    limits = dict(re.findall(r"^\| `--([\w-]+)`.*? \| ([\d,]+) \|", DOCS, re.MULTILINE))
    assert {name: float(value.replace(",", "")) for name, value in limits.items()} == {
        name.replace("_", "-"): value for name, value in vars(Limits()).items()
    }
    assert [int(status) for status in re.findall(r"^\| (\d{3}) \|", DOCS, re.MULTILINE)] == [200, *ERRORS]
    metrics = re.findall(r"^# TYPE (convnext_\w+) ", client.get("/metrics").text, re.MULTILINE)
    names = [name for name in metrics if not name.endswith("_created")]
    assert len(names) == 6
    assert all(f"`{name}" in DOCS for name in names)


def test_docs_have_the_committed_results() -> None:
    with (ROOT / "benchmarks" / "results" / "serve-cpu-avx2.csv").open() as file:
        (row,) = csv.DictReader(file)
    head, shown = re.findall(r"^\| (requests .*|[\d,]+ \| \d+ .*) \|$", DOCS, re.MULTILINE)
    columns = [name.replace(" ", "_").replace("/s", "_per_second") for name in head.split(" | ")]
    assert [value.replace(",", "") for value in shown.split(" | ")] == [row[name] for name in columns]
