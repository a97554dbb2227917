"""The order of images: every rank gets its own micro-batches, and together they are the one order."""

from itertools import chain

import pytest

from convnext.data.sampling import Draw, EvaluationOrder, TrainingOrder
from convnext.errors import UsageError


def order(rank: int = 0, world_size: int = 1, accumulate: int = 1, repeats: int = 1, count: int = 50) -> TrainingOrder:
    return TrainingOrder(count, 12, repeats, 7, rank, world_size, accumulate)


def steps(batches: list[list[Draw]], parts: int) -> list[list[Draw]]:
    return [sorted(chain(*batches[i : i + parts])) for i in range(0, len(batches), parts)]


@pytest.mark.parametrize(("world_size", "accumulate"), [(1, 1), (2, 1), (1, 3), (2, 2), (3, 4)])
def test_ranks_and_micro_batches_divide_the_same_steps(world_size: int, accumulate: int) -> None:
    whole = steps(list(order()), 1)
    shares = [steps(list(order(rank, world_size, accumulate)), accumulate) for rank in range(world_size)]
    together = [sorted(chain(*step)) for step in zip(*shares, strict=True)]
    assert together == whole
    assert len(whole) == 4


def test_a_micro_batch_is_the_same_whichever_rank_has_it() -> None:
    one = dict(zip(order(0, 1, 2).positions(), order(0, 1, 2), strict=True))
    two = {}
    for rank in range(2):
        two |= dict(zip(order(rank, 2).positions(), order(rank, 2), strict=True))
    assert one == two


def test_skipped_steps_change_nothing_behind_them() -> None:
    whole, rest = order(0, 1, 2), order(0, 1, 2)
    rest.skip = 3
    assert list(rest) == list(whole)[6:]
    assert list(rest.positions()) == list(whole.positions())[6:]
    assert len(rest) == 2


def test_repetitions_come_side_by_side_and_differ() -> None:
    draws = list(order(repeats=3))
    assert len(draws) == 4
    assert sorted(draw.repeat for draw in draws[0]) == [0] * 4 + [1] * 4 + [2] * 4
    assert len({draw.image for draw in draws[0]}) == 4
    assert len({draw for batch in draws for draw in batch}) == 48


def test_evaluation_gives_each_image_to_one_rank() -> None:
    shares = [list(EvaluationOrder(11, 3, rank, 4)) for rank in range(4)]
    assert [len(list(chain(*share))) for share in shares] == [3, 3, 3, 2]
    assert sorted(draw.image for share in shares for batch in share for draw in batch) == list(range(11))
    assert list(EvaluationOrder(1, 3, 1, 2)) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"accumulate": 5}, "batch_size is 12.*--batch-size 15"),
        ({"world_size": 3, "count": 2}, "2 training images"),
    ],
)
def test_uneven_divisions_are_refused(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        order(**arguments)
