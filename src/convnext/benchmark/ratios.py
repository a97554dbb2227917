"""What the rows say together: how many times as fast as the best peer, which part of the ceiling, how batches grow."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from functools import reduce
from typing import Any

from convnext.acceleration.clock import quartiles, times_as_fast
from convnext.benchmark.case import CEILING, OURS
from convnext.benchmark.ceiling import flop_of_image
from convnext.benchmark.row_process import Row

KIND = ("name", "library", "mode", "precision", "batch")  # what rows have alike that differ in their setting alone
FLAT = 0.1  # by which images a second may differ between batches and still count as the same


def to_best_peer(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """Our best setting over the best setting of all peers: for each network, mode and batch, in each precision and in
    ``any`` of them.

    In a precision it is the median of the rounds' ratios; across precisions, which do not take turns, that of medians.
    """
    found = []
    for (name, mode, batch), group in grouped(rows, "name", "mode", "batch"):
        precisions = list(dict.fromkeys(row.case.precision for row in group))
        for precision in [*precisions, *(["any"] if len(precisions) > 1 else [])]:
            chosen = [row for row in group if precision in ("any", row.case.precision)]
            ours = best(row for row in chosen if row.case.library == OURS)
            peer = best(row for row in chosen if row.case.library != OURS)
            if ours is None or peer is None:
                continue
            same = ours.case.precision == peer.case.precision
            times = row_ratio(ours, peer) if same else median_rate(ours) / median_rate(peer)
            found.append(
                {
                    "name": name,
                    "mode": mode,
                    "batch": batch,
                    "precision": precision,
                    "ours": {"precision": ours.case.precision, "setting": ours.case.setting},
                    "peer": {
                        "library": peer.case.library,
                        "precision": peer.case.precision,
                        "setting": peer.case.setting,
                    },
                    "times_as_fast": round(times, 3),
                }
            )
    return found


def times_best_peer(rows: Iterable[Row]) -> list[float | None]:
    """How many times as fast each row is as the best peer's of its network, mode, batch and precision."""
    rows = list(rows)
    found: dict[int, float] = {}
    for _, group in grouped(rows, "name", "mode", "batch", "precision"):
        peer = best(row for row in group if row.case.library != OURS)
        if peer is not None and len({row.case.library for row in group}) > 1:
            found |= {id(row): row_ratio(row, peer) for row in group if row.seconds}
    return [found.get(id(row)) for row in rows]


def row_ratio(ours: Row, theirs: Row) -> float:
    """How many times as fast a row is as another, by the rounds that both have: the first ones, in which all began."""
    pairs = list(zip(ours.rates, theirs.rates, strict=False))
    return times_as_fast([1 / rate for rate, _ in pairs], [1 / rate for _, rate in pairs])


def best(rows: Iterable[Row]) -> Row | None:
    """The fastest row: within a precision by the rounds that two of them both have, across precisions by the median
    rate. A row that was ended is not, since another that went on beats it, whatever its few rounds were like."""
    chosen = (row for row in rows if row.seconds and not row.ended)
    winners = [reduce(faster, group) for _, group in grouped(chosen, "precision")]
    return max(winners, key=median_rate, default=None)


def faster(one: Row, other: Row) -> Row:
    """The faster of two rows that took turns."""
    return other if row_ratio(other, one) > 1 else one


def median_rate(row: Row) -> float:
    """Images, or FLOP, a second."""
    return statistics.median(row.rates)


def share_of_ceiling(row: Row, ceilings: Iterable[Row], macs: int) -> float | None:
    """Which part of the rate of matrix products, measured in the same rounds, a network's own products reach."""
    for ceiling in ceilings:
        if ceiling.case.precision == row.case.precision and ceiling.seconds and row.seconds:
            return flop_of_image(macs, row.case.mode) * row_ratio(row, ceiling)
    return None


def growth(rows: Sequence[Row], shares: Iterable[float | None]) -> list[dict[str, Any]]:
    """How speed and memory go with the batch, for each row that was measured at several.

    Their speeds are compared as shares of the ceiling, which takes turns with each: batches need not take turns with
    each other.
    """
    share_of = {id(row): share for row, share in zip(rows, shares, strict=True) if share is not None}
    found = []
    for key, group in grouped(rows, "name", "library", "mode", "precision", "setting"):
        measured = sorted((row for row in group if id(row) in share_of), key=lambda row: row.case.batch)
        if len(measured) < 2:
            continue
        speeds = [share_of[id(row)] for row in measured]
        batches = [row.case.batch for row in measured]
        found.append(
            dict(zip(("name", "library", "mode", "precision", "setting"), key, strict=True))
            | {
                "batches": batches,
                "lowest_of_highest": round(min(speeds) / max(speeds), 3),
                "flat": min(speeds) >= (1 - FLAT) * max(speeds),
            }
            | memory_line(batches, [row.peak_memory for row in measured])
        )
    return found


def memory_line(batches: Sequence[int], memory: Sequence[int | None]) -> dict[str, Any]:
    """The straight line through peak memory: bytes for an image more, and by how much points lie off it at most, in
    parts of the largest."""
    known = [value for value in memory if value is not None]
    if len(known) < len(batches):
        return {"bytes_per_image": None, "memory_off_line": None}
    slope, start = statistics.linear_regression(batches, known)
    off = max(abs(value - start - slope * batch) for batch, value in zip(batches, known, strict=True))
    return {"bytes_per_image": round(slope), "memory_off_line": round(off / max(known), 3)}


def document_row(row: Row, share: float | None, times: float | None) -> dict[str, Any]:
    """A row of the ``--json`` document."""
    case = row.case
    rates = quartiles(row.rates) if row.seconds else None
    return {
        "name": case.name,
        "library": case.library,
        "mode": case.mode,
        "precision": case.precision,
        "batch": case.batch,
        "setting": case.setting,
        "images_per_second": round(rates[1], 3) if rates else None,
        "quantiles": [round(rate, 3) for rate in rates] if rates else None,
        "peak_memory": row.peak_memory,
        "share_of_ceiling": None if share is None else round(share, 3),
        "times_best_peer": None if times is None else round(times, 3),
        "rounds": len(row.seconds),
        "ended": row.ended,
        "error": row.error,
    }


def ceiling_of(rows: Iterable[Row], macs: Mapping[str, int]) -> dict[str, Any]:
    """The ceiling of each precision: the median rate of matrix products over all rounds, and the images a second that
    no network could exceed at it."""
    found = {}
    for (precision,), group in grouped((row for row in rows if row.case.library == CEILING), "precision"):
        rates = [rate for row in group for rate in row.rates]
        if not rates:
            continue
        low, median, high = quartiles(rates)
        found[precision] = {
            "gflops": round(median / 1e9, 1),
            "quantiles": [round(rate / 1e9, 1) for rate in (low, median, high)],
            "images_per_second": {
                name: {mode: round(median / flop_of_image(count, mode), 2) for mode in ("inference", "training")}
                for name, count in macs.items()
            },
        }
    return found


def grouped(rows: Iterable[Row], *fields: str) -> list[tuple[tuple[Any, ...], list[Row]]]:
    """Rows by fields of their case, in the order in which each group's first comes."""
    rows = list(rows)
    keys = list(dict.fromkeys(tuple(getattr(row.case, field) for field in fields) for row in rows))
    by_key = {key: [] for key in keys}
    for row in rows:
        by_key[tuple(getattr(row.case, field) for field in fields)].append(row)
    return list(by_key.items())
