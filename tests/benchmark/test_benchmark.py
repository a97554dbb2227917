"""The command as a user types it, small."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import convnext
from convnext.benchmark.benchmark_plan import Network, Plan, make_plan
from convnext.benchmark.case import Case
from convnext.benchmark.comparison import Benchmark
from convnext.benchmark.peak_memory import PeakMemory
from convnext.benchmark.pinning import choose_threads, processors_for, siblings
from convnext.benchmark.row_process import Row, RowProcess
from convnext.cli import main

Capture = pytest.CaptureFixture[str]
SMALL = ["--image-size", "32", "--batch", "2", "--rounds", "2", "--no-compile", "--precision", "fp32"]


@pytest.mark.slow
def test_json_is_alone_on_stdout(capsys: Capture) -> None:
    words = ["benchmark", "convnext_atto", "--against", "timm,torchvision", "--mode", "training", *SMALL, "--json"]
    assert main(words) == 0
    said = capsys.readouterr()
    document = json.loads(said.out)
    rows = {(row["library"], row["setting"]): row for row in document["rows"]}
    ours = {("convnext", "eager+kernels"), ("convnext", "channels_last+kernels"), ("convnext", "channels_last")}
    assert set(rows) == ours | {("timm", "eager"), ("timm", "channels_last")}
    for row in rows.values():
        assert (row["name"], row["mode"], row["precision"], row["batch"]) == ("convnext_atto", "training", "fp32", 2)
        low, median, high = row["quantiles"]
        assert 0 < low <= row["images_per_second"] == median <= high
        # Weights, gradients and the optimizer's two averages.
        assert row["peak_memory"] is None or row["peak_memory"] > 4 * 4 * 3_695_520
        assert 0 < row["share_of_ceiling"] < 1.5
        assert (row["times_best_peer"] > 0, row["error"], row["rounds"], row["ended"]) == (True, None, 2, None)
    assert 1 in {rows["timm", setting]["times_best_peer"] for setting in ("eager", "channels_last")}
    assert document["ceiling"]["fp32"]["gflops"] > 0
    (ratio,) = document["ratios"]["to_best_peer"]
    assert ratio["times_as_fast"] > 0
    assert ratio["peer"]["library"] == "timm"
    assert document["environment"]["threads"] == torch.get_num_threads()
    assert "torchvision has no network like convnext_atto" in said.err
    assert "round 2 of 2" in said.err


@pytest.mark.slow
def test_several_batches_and_a_weights_file(tmp_path: Path, capsys: Capture) -> None:
    model = convnext.create_model("convnext_atto", num_classes=3)
    file = tmp_path / "[a] network.safetensors"
    convnext.save_weights(model, str(file))
    words = ["benchmark", str(file), *SMALL]
    words[words.index("--batch") + 1] = "1,2"
    assert main(words) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "[a] network" in out
    assert "batch 1 to 2: the slowest batch has" in out
    assert "GFLOP/s" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["convnext_tinny"], "did you mean the model convnext_tiny"),
        (["torchvision/resnet51"], "unknown reference 'torchvision/resnet51': did you mean torchvision/resnet50"),
        (["roadmap_tiny/gelo"], "unknown model 'roadmap_tiny/gelo': did you mean roadmap_tiny/gelu"),
        (["gone.safetensors"], "gone.safetensors"),
        (["runs/gone"], "no run folder runs/gone"),
        (["--against", "tim"], "unknown library 'tim': did you mean timm"),
        (["--mode", "train"], "unknown mode 'train': did you mean training"),
        (["--mode", ""], "no mode is named"),
        (["--batch", "0"], "batch is 0, needs 1 or more"),
        (["--batch", "8,x"], "batch is '8,x', needs whole numbers separated by commas"),
        (["--batch", ","], "no batch is named"),
        (["--rounds", "0"], "rounds is 0, needs 1 or more"),
        (["--seconds", "0"], "seconds is 0, needs more than 0"),
        (["--seconds", "nan"], "seconds is nan, needs more than 0"),
        (["--precision", "int4"], "unknown precision 'int4'"),
        (["--image-size", "20"], "convnext_tiny: image size 20x20"),
        (["--image-size", "0"], "image size is 0, needs 1 or more"),
        (["torchvision/vit_b_16", "--image-size", "100"], "torchvision/vit_b_16"),
        (["--threads", "0"], "threads is 0, needs 1 to"),
        (["--device", "abacus"], "device 'abacus' cannot be used here"),
    ],
)
def test_wrong_words(words: list[str], message: str, capsys: Capture) -> None:
    assert main(["benchmark", *words]) == 2
    said = capsys.readouterr()
    assert message in said.err
    assert said.out == ""


def test_bf16_without_instructions(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setattr("convnext.device.has_cpu_bf16", lambda: False)
    assert main(["benchmark", "--precision", "bf16", "--device", "cpu"]) == 2
    assert "precision bf16 needs a processor with bf16 instructions" in capsys.readouterr().err
    plan = make_plan([Network("convnext_atto")], device="cpu")
    assert {case.precision for group in plan.groups for case in group} == {"fp32"}


@pytest.mark.slow
def test_rows_that_fail_leave_the_others() -> None:
    plan = make_plan(
        [Network("torchvision/resnet18")],
        modes=["training"],
        batches=[1],
        precisions=["fp32"],
        image_size=32,
        compiled=False,
        rounds=1,
        device="cpu",
    )
    benchmark = Benchmark(plan)
    with pytest.raises(convnext.RunError, match=r"nothing could be measured: .*Expected more than 1 value"):
        list(benchmark.run())
    document = benchmark.document()
    assert all("Expected more than 1 value" in row["error"] for row in document["rows"])
    assert document["ceiling"]["fp32"]["gflops"] > 0
    json.dumps(document, allow_nan=False)


@pytest.mark.parametrize(
    ("batch", "kill", "reason"),
    [
        (10**12, False, "out of memory at batch 1000000000000: take a smaller --batch"),
        (2, True, "its process was killed, most likely since memory ran out at batch 2"),
    ],
)
def test_what_ends_a_row_is_its_error(batch: int, kill: bool, reason: str) -> None:
    row = Row(Case("convnext_atto", "convnext", "inference", "fp32", batch, "eager", image_size=32))
    process = RowProcess(row, 1, set())
    try:
        if kill:
            process.process.kill()
        process.prepare()
        assert row.error == reason
        process.turn()
        assert row.seconds == []
        assert process.process.poll() is not None  # what it held is free while the others go on
    finally:
        process.close()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs signals")
def test_ctrl_c_keeps_what_was_measured(tmp_path: Path) -> None:
    words = ["benchmark", "convnext_atto", *SMALL, "--rounds", "100000", "--seconds", "1000", "--json"]
    words[words.index("--rounds") : words.index("--rounds") + 2] = []
    with subprocess.Popen(
        [sys.executable, "-m", "convnext", *words],
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
        document, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said.endswith("Interrupted. What was measured until then is on stdout.\n")
    assert "Traceback" not in said
    rows = json.loads(document)["rows"]
    assert all(row["images_per_second"] > 0 and row["rounds"] >= 2 for row in rows)


def test_threads_are_pinned_to_cores_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = {0: "0,4", 4: "0,4", 1: "1,5", 5: "1,5"}
    monkeypatch.setattr("convnext.benchmark.pinning.allowed", lambda: {0, 1, 4, 5})
    monkeypatch.setattr("convnext.benchmark.pinning.siblings", pairs.__getitem__)
    assert processors_for(2) == {0, 1}
    assert processors_for(3) == {0, 1, 4}
    assert processors_for(5) == set()
    assert choose_threads(4) == 4
    with pytest.raises(convnext.UsageError, match="threads is 5, needs 1 to 4"):
        choose_threads(5)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /sys")
def test_a_processor_is_its_own_sibling() -> None:
    assert siblings(min(os.sched_getaffinity(0)))


def test_peak_memory_is_that_of_what_ran() -> None:
    memory = PeakMemory(torch.device("cpu"))
    memory.begin()
    torch.ones(16 << 20).sum()  # 4 bytes each
    peak = memory.bytes()
    assert peak is not None
    assert 60 << 20 < peak < 200 << 20


def test_a_plan_has_a_row_for_each_setting() -> None:
    plan = make_plan(
        [Network("convnext_tiny"), Network("torchvision/resnet50")],
        against=["timm", "torchvision", "transformers"],
        modes=["inference", "training"],
        batches=[1, 16],
        precisions=["fp32"],
    )
    assert isinstance(plan, Plan)
    assert [(group[0].mode, group[0].batch) for group in plan.groups] == [
        ("inference", 1),
        ("inference", 16),
        ("training", 1),
        ("training", 16),
    ]
    assert len(plan.groups[0]) == 1 + 4 * 3 + 1 + 3
    assert len(plan.groups[2]) == 1 + 4 + 3 * 3 + 3
    assert plan.macs["convnext_tiny"] == 4_455_531_264
    assert plan.notes == [
        f"{library} has no network like torchvision/resnet50: it is measured without"
        for library in ("timm", "transformers")
    ]
