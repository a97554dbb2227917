"""The results of a benchmark as a table on a terminal."""

from collections.abc import Iterator
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from convnext.console import table_of
from convnext.quantities import megabytes, per_second


def tables(document: dict[str, Any]) -> RenderableType:
    """Render the ``--json`` document of a benchmark as a table, with lines of text below it."""
    facts = document["environment"]
    machine = facts["gpu"] if facts["device"].startswith("cuda") else facts["processor"]
    view = table_of(Text(f"{machine}, {facts['threads']} threads, torch {facts['versions']['torch']}"))
    for name in ("model", "library", "mode", "precision"):
        view.add_column(name, no_wrap=name != "model")
    for name in ("batch", "setting", "images/s", "quartiles", "rounds", "ceiling", "peak memory"):
        view.add_column(name, justify="left" if name == "setting" else "right", no_wrap=True)
    failed = []
    for row in document["rows"]:
        rates, share, memory = row["quantiles"], row["share_of_ceiling"], row["peak_memory"]
        view.add_row(
            Text(row["name"]),
            *(str(row[name]) for name in ("library", "mode", "precision", "batch", "setting")),
            rate(row["images_per_second"]),
            "" if rates is None else f"{rate(rates[0])} to {rate(rates[2])}",
            str(row["rounds"]),
            "" if share is None else f"{share:.0%}",
            "" if memory is None else megabytes(memory),
        )
        if row["error"]:
            failed.append(f"not measured: {row['name']}, {row['library']}, {row['setting']}: {row['error']}")
    return Group(view, Text("\n".join([*lines(document), *failed])))


def rate(images_per_second: float | None) -> str:
    """Images/s with three figures or more."""
    if images_per_second is None or images_per_second >= 100:
        return per_second(images_per_second)
    return f"{images_per_second:.{1 if images_per_second >= 10 else 2}f}"


def lines(document: dict[str, Any]) -> Iterator[str]:
    """Ceiling, speedups and growth, a line each."""
    for precision, ceiling in document["ceiling"].items():
        yield f"ceiling in {precision}: matrix products at {ceiling['gflops']:,.0f} GFLOP/s"
    for ratio in document["ratios"]["to_best_peer"]:
        ours, precision = ratio["ours"], ratio["precision"]
        where = f"{ratio['name']}, {ratio['mode']}, batch {ratio['batch']}, {precision}"
        where += " precision" if precision == "any" else ""
        settings = f"{ours['precision']} {ours['setting']} against {' '.join(ratio['peer'].values())}"
        yield f"{where}: speedup over the best peer {ratio['times_as_fast']:.2f}x ({settings})"
    for grown in document["ratios"]["growth"]:
        memory = ""
        if grown["bytes_per_image"] is not None:
            each, off = megabytes(grown["bytes_per_image"]), grown["memory_off_line"]
            memory = f"; memory grows by {each} per image, within {off:.0%} of a line"
        where = ", ".join(grown[name] for name in ("name", "library", "mode", "precision", "setting"))
        yield (
            f"{where}, batch {grown['batches'][0]} to {grown['batches'][-1]}: the slowest batch has "
            f"{grown['lowest_of_highest']:.0%} of the fastest's images/s, both as shares of the ceiling{memory}"
        )
