"""A benchmark on a terminal."""

from collections.abc import Iterator
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from convnext.console import table_of
from convnext.quantities import megabytes, per_second


def tables(document: dict[str, Any]) -> RenderableType:
    """The document of :meth:`convnext.benchmark.comparison.Benchmark.document`: a table, and what it says in lines."""
    facts = document["environment"]
    machine = facts["gpu"] if facts["device"].startswith("cuda") else facts["processor"]
    view = table_of(Text(f"{machine}, {facts['threads']} threads, torch {facts['versions']['torch']}"))
    for name in ("network", "library", "mode", "precision"):
        view.add_column(name, no_wrap=name != "network")
    for name in ("batch", "setting", "images/s", "quartiles", "rounds", "ceiling", "peak memory"):
        view.add_column(name, justify="left" if name == "setting" else "right", no_wrap=True)
    failed = []
    for row in document["rows"]:
        rates, share, memory = row["quantiles"], row["share_of_ceiling"], row["peak_memory"]
        view.add_row(
            Text(row["name"]),
            *(row[name] for name in ("library", "mode", "precision")),
            str(row["batch"]),
            row["setting"],
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
    """Images a second with three figures or more."""
    if images_per_second is None or images_per_second >= 100:
        return per_second(images_per_second)
    return f"{images_per_second:.{1 if images_per_second >= 10 else 2}f}"


def lines(document: dict[str, Any]) -> Iterator[str]:
    """Ceiling, ratios and growth in words."""
    for precision, ceiling in document["ceiling"].items():
        yield f"ceiling in {precision}: matrix products at {ceiling['gflops']:,.0f} GFLOP/s"
    for ratio in document["ratios"]["to_best_peer"]:
        ours, peer = ratio["ours"], ratio["peer"]
        precision = "any precision" if ratio["precision"] == "any" else ratio["precision"]
        where = f"{ratio['name']}, {ratio['mode']}, batch {ratio['batch']}, {precision}"
        settings = f"{ours['precision']} {ours['setting']} against {' '.join(peer.values())}"
        yield f"{where}: {ratio['times_as_fast']:.2f} times as fast as the best peer ({settings})"
    for grown in document["ratios"]["growth"]:
        memory = ""
        if grown["bytes_per_image"] is not None:
            each, off = megabytes(grown["bytes_per_image"]), grown["memory_off_line"]
            memory = f"; memory grows by {each} an image, within {off:.0%} of a line"
        where = ", ".join(grown[name] for name in ("name", "library", "mode", "precision", "setting"))
        yield (
            f"{where}, batch {grown['batches'][0]} to {grown['batches'][-1]}: the slowest batch has "
            f"{grown['lowest_of_highest']:.0%} of the fastest's images/s, both beside the ceiling{memory}"
        )
