"""The program of a configuration's process, by calls whose seconds are given; and what ends such a process."""

import pytest

from convnext.benchmark import worker
from convnext.benchmark.configurations import Configuration
from convnext.benchmark.worker_process import Measurement, WorkerProcess


@pytest.mark.parametrize(
    ("seconds", "warm_up", "counted"),
    [
        ([0.9, 0.5, 0.5, 0.3, *[0.06] * 4], 3, 0.06),  # a round is filled by four
        ([0.01] * 3 + [0.09, 0.05, 0.07, 0.09], 3, 0.07),
        ([0.4, 0.3, 0.3, 0.5, 0.25], 3, 0.25),
        ([23, 22, 20], 1, 20),  # long: one before the first round, one that does not count, one that does
        ([60, 0.5, 0.1, 0.1], 1, 0.1),  # compiled by the first
    ],
)
def test_a_round_is_as_many_calls_as_fill_it(
    seconds: list[float], warm_up: int, counted: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = [*seconds]
    monkeypatch.setattr(worker, "call_of", lambda *_: (lambda: left.pop(0), 8))
    monkeypatch.setattr(worker, "seconds_of", lambda call: call())
    monkeypatch.setattr(worker, "give_back", lambda: None)  # takes a second where many libraries are loaded
    configuration = Configuration("convnext_atto", "convnext", "training", "fp32", 8, "channels_last+kernels")
    responses = worker.responses_of(configuration)
    assert next(responses) == {"work": 8, "notes": []}
    assert len(seconds) - len(left) == warm_up
    assert next(responses)["seconds"] == pytest.approx(counted)
    assert left == []


@pytest.mark.parametrize(("batch", "is_killed"), [(10**12, False), (2, True)])
def test_what_ends_a_process_is_its_error(batch: int, is_killed: bool) -> None:
    measurement = Measurement(
        Configuration("convnext_atto", "convnext", "inference", "fp32", batch, "eager", image_size=32)
    )
    process = WorkerProcess(measurement, 1, set())
    try:
        if is_killed:
            process.process.kill()
        process.prepare()
        assert measurement.error is not None
        assert f"batch {batch}" in measurement.error
        assert ("killed" in measurement.error) == is_killed
        process.run_round()
        assert measurement.seconds == []
        assert process.process.poll() is not None  # its memory is free while the others go on
    finally:
        process.close()
