"""The report of a study: figure files and one self-contained HTML page."""

from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2

from convnext.files import write_atomically
from convnext.plotting import write_figure
from convnext.quantities import duration, per_second, quantity, spread
from convnext.study.study_figure import draw


def write_report(results: dict[str, Any], folder: Path) -> Path:
    """Write ``roadmap.png``, ``roadmap.svg`` and ``report.html``; returns the page's path.

    Args:
        results: the document of :func:`convnext.study.results.collect`.
        folder: where to.
    """
    svg = write_figure(draw(results), folder / "roadmap")
    page = folder / "report.html"
    write_atomically(page, render_page(results, svg.decode()))
    return page


def render_page(results: dict[str, Any], svg: str) -> str:
    """The page: table, figure, the change of each step, the command, and the differences within the noise."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters |= {"quantity": quantity, "duration": duration, "per_second": per_second, "spread": spread}
    template = environment.from_string(files("convnext.study").joinpath("report.html.jinja").read_text("utf-8"))
    rows = [*results["steps"], *results["references"]]
    return template.render(
        results=results,
        svg=svg[svg.index("<svg") :],  # without the XML declaration, which HTML does not know
        trained=any(row["top1"] for row in rows),
        seeds=max((len(row["top1"] or ()) for row in rows), default=0),
        titles={step["key"]: step["title"] for step in results["steps"]},
    )
