"""Figures from several measurements: which configurations lose the race, speedups over the best peer, the share of
the machine's matrix products that a model reaches, and how speed and memory grow with the batch size."""

import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import reduce
from typing import Any

from convnext.acceleration.clock import quartiles, times_as_fast
from convnext.benchmark.configurations import CEILING, OURS
from convnext.benchmark.machine import flop_of_image
from convnext.benchmark.worker_process import Measurement

ALL_BUT_BATCH = ("name", "library", "mode", "precision", "setting")
ALL_BUT_SETTING = ("name", "library", "mode", "precision", "batch")
FLAT = 0.1  # by which images/s may differ between batches and still count as the same
MIN_RACE_ROUNDS = 2  # before a configuration may end
# A round takes its time and what the machine's other work adds: in training on two shared cores a seventh on average
# and up to half. Of the best of n rounds that is an n-th, so the margin narrows as rounds go by. In simulated races of
# ten such rounds, the faster of two ends in 2 of 100 if it is faster by 5 %, in 2 of 1,000 if by 10 %.
NOISE, MIN_MARGIN = 0.4, 0.05


def beaten(measurements: Iterable[Measurement]) -> Iterator[tuple[Measurement, str]]:
    """The configurations that another setting of the same model clearly beats by its best round, and the reason.

    The fastest setting of a model, library, mode, precision and batch never ends.
    """
    for _, rivals in grouped((one for one in measurements if one.is_running), ALL_BUT_SETTING):
        fastest = max(rivals, key=lambda rival: max(rival.rates))
        for rival in rivals:
            rounds, speedup = len(rival.seconds), max(fastest.rates) / max(rival.rates)
            if rounds >= MIN_RACE_ROUNDS and speedup > 1 + max(MIN_MARGIN, NOISE / rounds):
                yield rival, f"speedup of {fastest.configuration.setting} {speedup:.2f}x by the best of {rounds} rounds"


def to_best_peer(measurements: Iterable[Measurement]) -> list[dict[str, Any]]:
    """The speedup of our best setting over the best setting of all peers: for each model, mode and batch, in each
    precision and in ``any`` of them.

    In one precision it is the median of the rounds' ratios; across precisions, which are not interleaved, the ratio of
    the medians.
    """
    found = []
    for key, group in grouped(measurements, ("name", "mode", "batch")):
        precisions = list(dict.fromkeys(one.configuration.precision for one in group))
        for precision in [*precisions, *(["any"] if len(precisions) > 1 else [])]:
            chosen = [one for one in group if precision in ("any", one.configuration.precision)]
            ours = best(one for one in chosen if one.configuration.library == OURS)
            peer = best(one for one in chosen if one.configuration.library != OURS)
            if ours is None or peer is None:
                continue
            is_interleaved = ours.configuration.precision == peer.configuration.precision
            speedup = speedup_of(ours, peer) if is_interleaved else median_rate(ours) / median_rate(peer)
            found.append(
                key
                | {
                    "precision": precision,
                    "ours": fields(ours, ("precision", "setting")),
                    "peer": fields(peer, ("library", "precision", "setting")),
                    "times_as_fast": round(speedup, 3),
                }
            )
    return found


def times_best_peer(measurements: Sequence[Measurement]) -> list[float | None]:
    """The speedup of each configuration over the best peer's of its model, mode, batch and precision."""
    found: dict[int, float] = {}
    for _, group in grouped(measurements, ("name", "mode", "batch", "precision")):
        peer = best(one for one in group if one.configuration.library != OURS)
        if peer is not None and len({one.configuration.library for one in group}) > 1:
            found |= {id(one): speedup_of(one, peer) for one in group if one.seconds}
    return [found.get(id(one)) for one in measurements]


def speedup_of(ours: Measurement, theirs: Measurement) -> float:
    """The speedup of one over another by the rounds that both have: the first ones, in which all began."""
    pairs = list(zip(ours.rates, theirs.rates, strict=False))
    return times_as_fast([1 / rate for rate, _ in pairs], [1 / rate for _, rate in pairs])


def best(measurements: Iterable[Measurement]) -> Measurement | None:
    """The fastest: within a precision by the rounds that two have in common, across precisions by the median rate.

    One that was ended never is, since another that went on beats it, however its few rounds compare.
    """
    chosen = (one for one in measurements if one.seconds and not one.ended)
    winners = [reduce(faster, group) for _, group in grouped(chosen, ("precision",))]
    return max(winners, key=median_rate, default=None)


def faster(one: Measurement, other: Measurement) -> Measurement:
    """The faster of two interleaved measurements."""
    return other if speedup_of(other, one) > 1 else one


def median_rate(measurement: Measurement) -> float:
    """Images/s, or FLOP/s."""
    return statistics.median(measurement.rates)


def share_of_ceiling(measurement: Measurement, ceilings: Iterable[Measurement], macs: int) -> float | None:
    """The share of the FLOP/s of matrix products, measured in the same rounds, that a model's own products reach."""
    precision = measurement.configuration.precision
    for ceiling in ceilings:
        if ceiling.configuration.precision == precision and ceiling.seconds and measurement.seconds:
            return flop_of_image(macs, measurement.configuration.mode) * speedup_of(measurement, ceiling)
    return None


def growth(measurements: Sequence[Measurement], shares: Iterable[float | None]) -> list[dict[str, Any]]:
    """Speed and memory by batch size, for each configuration that was measured at several.

    Speeds are compared as shares of the ceiling, which is interleaved with each: batches need not be with each other.
    """
    share_of = {id(one): share for one, share in zip(measurements, shares, strict=True) if share is not None}
    found = []
    known = sorted((one for one in measurements if id(one) in share_of), key=lambda one: one.configuration.batch)
    for key, group in grouped(known, ALL_BUT_BATCH):
        if len(group) < 2:
            continue
        speeds = [share_of[id(one)] for one in group]
        batches = [one.configuration.batch for one in group]
        found.append(
            key
            | {
                "batches": batches,
                "lowest_of_highest": round(min(speeds) / max(speeds), 3),
                "flat": min(speeds) >= (1 - FLAT) * max(speeds),
            }
            | memory_line(batches, [one.peak_memory for one in group])
        )
    return found


def memory_line(batches: Sequence[int], memory: Sequence[int | None]) -> dict[str, Any]:
    """A straight line fitted to peak memory: bytes per additional image, and the maximum residual as a share of the
    largest value."""
    known = [value for value in memory if value is not None]
    if len(known) < len(batches):
        return {"bytes_per_image": None, "memory_off_line": None}
    slope, start = statistics.linear_regression(batches, known)
    residual = max(abs(value - start - slope * batch) for batch, value in zip(batches, known, strict=True))
    return {"bytes_per_image": round(slope), "memory_off_line": round(residual / max(known), 3)}


def document_row(measurement: Measurement, share: float | None, speedup: float | None) -> dict[str, Any]:
    """A row of the ``--json`` document."""
    rates = quartiles(measurement.rates) if measurement.seconds else None
    return fields(measurement, ("name", "library", "mode", "precision", "batch", "setting")) | {
        "images_per_second": round(rates[1], 3) if rates else None,
        "quantiles": [round(rate, 3) for rate in rates] if rates else None,
        "peak_memory": measurement.peak_memory,
        "share_of_ceiling": None if share is None else round(share, 3),
        "times_best_peer": None if speedup is None else round(speedup, 3),
        "rounds": len(measurement.seconds),
        "ended": measurement.ended,
        "error": measurement.error,
    }


def ceiling_of(measurements: Iterable[Measurement], macs: Mapping[str, int]) -> dict[str, Any]:
    """The ceiling of each precision: the median rate of matrix products over all rounds, and the images/s that no
    model could exceed at it."""
    found = {}
    for key, group in grouped((one for one in measurements if one.configuration.library == CEILING), ("precision",)):
        rates = [rate for one in group for rate in one.rates]
        if not rates:
            continue
        low, median, high = quartiles(rates)
        found[key["precision"]] = {
            "gflops": round(median / 1e9, 1),
            "quantiles": [round(rate / 1e9, 1) for rate in (low, median, high)],
            "images_per_second": {
                name: {mode: round(median / flop_of_image(count, mode), 2) for mode in ("inference", "training")}
                for name, count in macs.items()
            },
        }
    return found


def fields(measurement: Measurement, names: Sequence[str]) -> dict[str, Any]:
    """Fields of a measurement's configuration by name."""
    return {name: getattr(measurement.configuration, name) for name in names}


def grouped(
    measurements: Iterable[Measurement], names: Sequence[str]
) -> Iterator[tuple[dict[str, Any], list[Measurement]]]:
    """Measurements by fields of their configuration, in the order in which each group's first comes."""
    groups: dict[tuple[Any, ...], list[Measurement]] = {}
    for one in measurements:
        groups.setdefault(tuple(fields(one, names).values()), []).append(one)
    for group in groups.values():
        yield fields(group[0], names), group
