"""`convnext evaluate` as a user types it: what it prints where, what it writes, and how it ends."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from convnext.cli import main
from convnext.evaluation.evaluation_report import FILES
from tests.conftest import MakeFolder
from tests.runs import MakeRun

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_table_and_files(make_folder: MakeFolder, make_run: MakeRun, capsys: Capture) -> None:
    data = make_folder({"cat": 10, "dog": 10})
    make_run(data)
    assert main(["evaluate", "run", "--workers", "0"]) == 0
    said = capsys.readouterr()
    assert "4 images held out in training" in said.out
    assert all(word in said.out for word in ("top-1", "top-5", "calibration error", "images/s", "cat", "dog"))
    assert sorted(path.name for path in Path("run/evaluation").iterdir()) == sorted(FILES)
    assert said.err == "Figures, evaluation.json and per_class.csv: run/evaluation\n"


def test_json_is_alone_on_stdout(make_folder: MakeFolder, make_run: MakeRun, capsys: Capture) -> None:
    data = make_folder({"a/cat": 10, "a/dog": 10, "b/cat": 3})
    make_run(data / "a")
    (data / "b" / "cat" / "broken.jpg").write_bytes(b"no picture")
    assert main(["evaluate", "run", str(data / "b"), "--workers", "0", "--json", "--out", "there"]) == 0
    said = capsys.readouterr()
    document = json.loads(said.out)
    assert document == json.loads(Path("there/evaluation.json").read_text())
    assert (document["run"], document["images"], document["part"]) == ("run", 3, "all its images")
    assert len(document["unreadable"]) == 1
    assert "broken.jpg" in document["unreadable"][0]
    assert "skipped, cannot be read:" in said.err
    assert "has images of 1 of the 2 classes; none of dog" in said.err
    assert not Path("run/evaluation").exists()


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["nowhere"], 2, "no run folder nowhere"),
        (["."], 2, "recipe.json is missing"),
        (["run", "digts"], 2, "unknown data 'digts': did you mean digits"),
        (["run", "--batch-size", "0"], 2, "batch_size is 0"),
        (["run", "digits"], 2, "digits has 10 classes that run does not know: 0, 1"),
        (["torchvision/resnet50"], 2, "comes without data"),
        (["unfinished"], 1, "has no finished epoch yet"),
        (["run", "--out", "run/recipe.json"], 1, "cannot write run/recipe.json/evaluation.json"),
    ],
)
def test_errors_are_one_line(
    words: list[str], status: int, message: str, make_folder: MakeFolder, make_run: MakeRun, capsys: Capture
) -> None:
    make_run(make_folder({"cat": 4, "dog": 4}), workers=0)
    shutil.copytree("run", "unfinished")
    Path("unfinished/best.safetensors").unlink()
    assert main(["evaluate", *words, "--workers", "0"]) == status
    said = capsys.readouterr()
    assert said.err.startswith("error: ")
    assert message in said.err
    assert said.err.count("\n") == 1
    assert said.out == ""


@pytest.mark.slow
def test_under_torchrun_the_processes_share_the_images(
    make_folder: MakeFolder, make_run: MakeRun, capsys: Capture
) -> None:
    make_run(make_folder({"cat": 30, "dog": 31}), val_fraction=0.5)
    assert main(["evaluate", "run", "--workers", "0", "--json", "--out", "alone"]) == 0
    alone = json.loads(capsys.readouterr().out)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    words = ["-m", "convnext", "evaluate", "run", "--workers", "0", "--json", "--out", "together", "--device", "cpu"]
    answer = subprocess.run([*torchrun, *words], capture_output=True, text=True, check=False, timeout=200)
    assert answer.returncode == 0, answer.stderr
    together = json.loads(answer.stdout)
    assert together["images"] == alone["images"] == 31
    assert together["confusion"] == alone["confusion"]
    assert together["loss"] == pytest.approx(alone["loss"], rel=1e-5)
