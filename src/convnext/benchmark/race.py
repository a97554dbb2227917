"""The race between the settings of a network: which of them need no further turn, as another is clearly faster."""

from collections.abc import Iterable, Iterator

from convnext.benchmark.ratios import KIND, grouped
from convnext.benchmark.row_process import Row

OPENING = 2  # rounds before the first row may end
# A turn takes its time and what the machine's other work adds: in training on two shared cores a seventh on average and
# up to half. Of the best of n turns that is an n-th, so the margin narrows as rounds go by. In races of ten rounds with
# such turns drawn at random, the faster of two rows ends in 2 of 100 if it is faster by 5 %, in 2 of 1,000 if by 10 %.
NOISE = 0.4
LEAST = 0.05


def margin(rounds: int) -> float:
    """By how much the best of so many turns of two equal rows may differ."""
    return max(LEAST, NOISE / rounds)


def beaten(rows: Iterable[Row]) -> Iterator[tuple[Row, str]]:
    """The rows that are clearly slower, by their best turns, than the fastest of their kind, and why in words.

    A kind is a network from a library, in a mode, precision and batch. Its fastest row always goes on.
    """
    for _, kind in grouped((row for row in rows if row.runs), *KIND):
        fastest = max(kind, key=best_rate)
        for row in kind:
            rounds, times = len(row.seconds), best_rate(fastest) / best_rate(row)
            if rounds >= OPENING and times > 1 + margin(rounds):
                yield row, f"{fastest.case.setting} is {times:.2f} times as fast by the best of {rounds} turns"


def best_rate(row: Row) -> float:
    """Images, or FLOP, a second in the best turn."""
    return max(row.rates)
