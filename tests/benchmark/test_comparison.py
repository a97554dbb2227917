"""The command as a user types it, small; and the race between settings, in processes that take no time."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

import convnext
from convnext.benchmark.benchmark_plan import make_plan, open_model
from convnext.benchmark.benchmark_table import tables
from convnext.benchmark.comparison import Benchmark
from convnext.benchmark.configurations import CEILING, OURS
from convnext.benchmark.worker_process import Measurement
from convnext.cli import main
from tests.test_compatibility import DOCUMENTS, missing_keys

SMALL = ["--image-size", "32", "--batch", "2", "--no-compile", "--precision", "fp32", "--json"]
FILE = "[a] model.safetensors"
ROUNDS = 6
# Seconds of each configuration's rounds, the last of which is repeated.
SECONDS: dict[tuple[str, str], list[float]] = {
    (CEILING, "eager"): [9],
    (OURS, "channels_last+kernels"): [2, 1, 1],
    (OURS, "eager+kernels"): [1.04, 2, 1.04],  # as fast as the noise
    (OURS, "channels_last"): [1.5],
    ("timm", "channels_last"): [2],
    ("timm", "eager"): [2.3],  # within the margin of two rounds, not of three
    ("torchvision", "eager"): [7, 7, 7, 2.6],  # its library's best until it fails
    ("torchvision", "channels_last"): [20],
}
Documents = tuple[dict[str, Any], str]


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> Documents:
    """The document on stdout and the text on stderr of one run of the command."""
    file = tmp_path_factory.mktemp("weights") / FILE
    convnext.save_weights(convnext.create_model("convnext_atto", num_classes=3), str(file))
    arguments = ["benchmark", "convnext_atto", str(file), "--against", "timm,torchvision", "--mode", "training"]
    with redirect_stdout(StringIO()) as out, redirect_stderr(StringIO()) as err:
        assert main([*arguments, "--rounds", "2", *SMALL]) == 0
    return json.loads(out.getvalue()), err.getvalue()


def text_of(document: dict[str, Any]) -> str:
    console = Console(file=StringIO(), width=200)
    console.print(tables(document))
    return console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.slow
def test_every_setting_is_measured(printed: Documents) -> None:
    document, progress = printed
    rows = {(row["library"], row["setting"]): row for row in document["rows"] if row["name"] == "convnext_atto"}
    ours = {(OURS, "eager+kernels"), (OURS, "channels_last+kernels"), (OURS, "channels_last")}
    assert set(rows) == ours | {("timm", "eager"), ("timm", "channels_last")}
    for row in rows.values():
        assert (row["mode"], row["precision"], row["batch"]) == ("training", "fp32", 2)
        low, median, high = row["quantiles"]
        assert 0 < low <= row["images_per_second"] == median <= high
        # Weights, gradients and the optimizer's two averages.
        assert row["peak_memory"] is None or row["peak_memory"] > 4 * 4 * 3_695_520
        assert 0 < row["share_of_ceiling"] < 1.5
        assert (row["times_best_peer"] > 0, row["error"], row["rounds"], row["ended"]) == (True, None, 2, None)
    assert 1 in {rows["timm", setting]["times_best_peer"] for setting in ("eager", "channels_last")}
    assert document["ceiling"]["fp32"]["gflops"] > 0
    (ratio,) = document["ratios"]["to_best_peer"]
    assert (ratio["times_as_fast"] > 0, ratio["peer"]["library"]) == (True, "timm")
    assert document["environment"]["threads"] == torch.get_num_threads()
    assert any(note.startswith("torchvision") and "convnext_atto" in note for note in document["notes"])
    assert all(text in progress for text in (*document["notes"], "round 2 of 2"))


@pytest.mark.slow
def test_a_weights_file_is_measured(printed: Documents) -> None:
    rows = [row for row in printed[0]["rows"] if row["name"].endswith(FILE)]
    assert len(rows) == 3
    assert all(row["images_per_second"] > 0 and row["library"] == OURS for row in rows)
    assert FILE in text_of(printed[0])


@pytest.mark.slow
def test_the_document_keeps_its_keys(printed: Documents) -> None:
    text = json.dumps(DOCUMENTS["benchmark"]["document"]).replace("roadmap_micro/depthwise", "convnext_atto")
    assert missing_keys(json.loads(text), printed[0]) == []


@pytest.mark.slow
def test_configurations_that_fail_leave_the_others() -> None:
    options: dict[str, Any] = {"modes": ["training"], "batches": [1], "precisions": ["fp32"], "image_size": 32}
    models = [open_model("torchvision/resnet18")]
    benchmark = Benchmark(make_plan(models, compiled=False, rounds=1, device="cpu", **options))
    with pytest.raises(convnext.RunError, match="torchvision/resnet18"):
        list(benchmark.run())
    document = benchmark.document()
    assert all("Expected more than 1 value" in row["error"] for row in document["rows"])
    assert document["ceiling"]["fp32"]["gflops"] > 0
    json.dumps(document, allow_nan=False)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs signals")
def test_ctrl_c_keeps_what_was_measured(tmp_path: Path) -> None:
    arguments = ["benchmark", "convnext_atto", *SMALL, "--rounds", "100000", "--seconds", "1000"]
    with subprocess.Popen(
        [sys.executable, "-m", "convnext", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(Path(convnext.__file__).parents[1])},
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("round 2 of"):
                break
        process.send_signal(signal.SIGINT)
        document, progress = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Interrupted" in progress.splitlines()[-1]
    assert "Traceback" not in progress
    rows = json.loads(document)["rows"]
    assert all(row["images_per_second"] > 0 and row["rounds"] >= 2 for row in rows)


class ScriptedProcess:
    """A process that takes the seconds of SECONDS."""

    open: dict[str, bool]  # by configuration

    def __init__(self, measurement: Measurement, threads: int, cpus: set[int]) -> None:
        del threads, cpus
        self.measurement = measurement
        self.name = str(measurement.configuration)
        ScriptedProcess.open[self.name] = True

    def prepare(self) -> list[str]:
        self.measurement.work = self.measurement.configuration.batch
        return []

    def run_round(self) -> None:
        assert ScriptedProcess.open[self.name]
        rounds = SECONDS[self.measurement.configuration.library, self.measurement.configuration.setting]
        number = len(self.measurement.seconds)
        if number == 4 and len(rounds) == 4:
            self.measurement.error = "failed"
        if not self.measurement.error:
            self.measurement.seconds.append(rounds[min(number, len(rounds) - 1)])

    def close(self) -> None:
        ScriptedProcess.open[self.name] = False


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(ScriptedProcess, "open", {}, raising=False)
    monkeypatch.setattr("convnext.benchmark.comparison.WorkerProcess", ScriptedProcess)
    yield
    assert not any(ScriptedProcess.open.values())


def plan(**change: Any) -> Any:
    options = {"against": ["timm", "torchvision"], "modes": ["training"], "batches": [8], "precisions": ["fp32"]}
    models = [open_model("convnext_tiny")]
    return make_plan(models, device="cpu", compiled=False, rounds=ROUNDS, **options | change)


@pytest.mark.usefixtures("scripted")
def test_beaten_configurations_end_and_the_best_of_each_library_goes_on() -> None:
    benchmark, is_open = Benchmark(plan()), {}
    for line in benchmark.run():
        is_open[line] = sum(ScriptedProcess.open.values())
    document = benchmark.document()
    rows = {(row["library"], row["setting"]): row for row in document["rows"]}
    assert {key: (row["rounds"], bool(row["ended"])) for key, row in rows.items()} == {
        (OURS, "channels_last+kernels"): (ROUNDS, False),
        (OURS, "eager+kernels"): (ROUNDS, False),
        (OURS, "channels_last"): (2, True),
        ("timm", "channels_last"): (ROUNDS, False),
        ("timm", "eager"): (3, True),
        ("torchvision", "eager"): (4, False),
        ("torchvision", "channels_last"): (2, True),
    }
    ceilings = [one for one in benchmark.groups[0] if one.configuration.library == CEILING]
    assert [len(ceiling.seconds) for ceiling in ceilings] == [ROUNDS]
    reason = rows[OURS, "channels_last"]["ended"]
    assert "channels_last+kernels" in reason
    assert "1.50x" in reason
    # The processes that are open when a line arrives: each end closes one, and gives its reason.
    ends = {line: count for line, count in is_open.items() if line.startswith("ended: ")}
    assert list(ends.values()) == [7, 6, 5]
    assert next(iter(ends)).endswith(reason)
    assert document["ratios"]["to_best_peer"][0]["times_as_fast"] == 2
    assert "2.00x" in text_of(document)


@pytest.mark.usefixtures("scripted")
def test_no_configuration_ends_without_a_race() -> None:
    benchmark = Benchmark(plan(race=False, batches=[8, 16]))
    assert not any(line.startswith("ended") for line in benchmark.run())
    assert [row["rounds"] for row in benchmark.document()["rows"]] == ([ROUNDS] * 5 + [4, ROUNDS]) * 2
    assert "batch 8 to 16" in text_of(benchmark.document())


@pytest.mark.usefixtures("scripted")
def test_every_configuration_has_the_minimum_of_rounds() -> None:
    short = plan(seconds=1e-9)
    for minimum, rounds in ((1, 1), (3, 3), (9, ROUNDS)):
        benchmark = Benchmark(replace(short, min_rounds=minimum))
        list(benchmark.run())
        assert max(row["rounds"] for row in benchmark.document()["rows"]) == rounds
