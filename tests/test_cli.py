"""The commands as a user types them: what they print where, and how they end."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from convnext.cli import main
from tests.conftest import MakeFolder

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def wait_for(path: Path, ready: Callable[[Path], bool]) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if path.exists() and ready(path):
            return
        time.sleep(0.01)
    raise AssertionError(f"{path} did not come")


def test_help_lists_the_commands(capsys: Capture) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert all(command in text for command in ("roadmap", "train", "models"))


def test_help_of_train_shows_the_recipes_values(capsys: Capture) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["train", "cifar10", "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert "convnext_atto" in text
    assert re.search(r"--epochs INT .*\(default: 100\)", text)


def test_models_json(capsys: Capture) -> None:
    assert main(["models", "convnextv2_*", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert len(rows) == 8
    assert all(set(row) == {"name", "params", "macs", "activations", "image_size"} for row in rows)
    assert {row["name"]: row["params"] for row in rows}["convnextv2_atto"] == 3_708_400


def test_models_table(capsys: Capture) -> None:
    assert main(["models", "convnext_tiny"]) == 0
    text = capsys.readouterr().out
    assert all(figure in text for figure in ("28.59 M", "4.456 G", "13.44 M"))


def test_roadmap_json_is_alone_on_stdout(capsys: Capture) -> None:
    words = ["roadmap", "--steps", "kernel_7, gelu", "--epochs", "1", "--seeds", "1", "--out", "study", "--json"]
    assert main(words) == 0
    said = capsys.readouterr()
    results = json.loads(said.out)
    assert [step["key"] for step in results["steps"]] == ["kernel_7", "gelu"]
    assert results == json.loads(Path("study/results.json").read_text())
    assert "Report: study/report.html" in said.err
    assert all(Path("study", name).exists() for name in ("roadmap.png", "roadmap.svg", "report.html"))


def test_brackets_in_a_name_are_no_markup(make_folder: MakeFolder, capsys: Capture) -> None:
    data = make_folder({"a": 3, "b": 3}).rename("photos [red] [")
    words = ["--epochs", "1", "--image-size", "32"]
    assert main(["roadmap", "--data", str(data), "--steps", "gelu", "--seeds", "1", "--out", "study", *words]) == 0
    assert "photos [red] [" in capsys.readouterr().out
    assert main(["train", str(data), "--out", "run", *words, "--workers", "0"]) == 0
    assert "photos [red] [" in capsys.readouterr().err


def test_roadmap_without_training(capsys: Capture) -> None:
    assert main(["roadmap", "--no-train"]) == 0
    assert "separate_downsampling" in capsys.readouterr().out
    assert not list(Path().iterdir())


def test_train_json(make_folder: MakeFolder, capsys: Capture) -> None:
    data = make_folder({"cat": 8, "dog": 8})
    words = ["train", str(data), "--epochs", "1", "--image-size", "32", "--workers", "0", "--out", "run", "--json"]
    assert main(words) == 0
    said = capsys.readouterr()
    outcome = json.loads(said.out.splitlines()[-1])
    assert set(outcome) == {"run", "best_top1", "epochs", "seconds", "images_per_second"}
    assert (outcome["run"], outcome["epochs"]) == ("run", 1)
    assert "Weights:  run/best.safetensors" in said.err
    assert "Predict:  convnext predict run IMAGE...\n" in said.err
    assert json.loads(Path("run/recipe.json").read_text())["model"] == "convnext_atto"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["models", "convnext_tinny"], "unknown model 'convnext_tinny': did you mean convnext_tiny"),
        (["models", "convnext_tiny", "--image-size", "20"], "image size 20x20 is too small"),
        (["models", "torchvision/resnet51"], "did you mean torchvision/resnet50"),
        (["roadmap", "--regime", "tny"], "unknown regime 'tny': did you mean tiny"),
        (["roadmap", "--steps", "resnet,kernel_8"], "unknown step 'kernel_8': did you mean"),
        (["roadmap", "--data", "digts"], "unknown data 'digts': did you mean digits"),
        (["roadmap", "--data", "no/where"], "no/where is no folder"),
        (["roadmap", "--epochs", "0"], "epochs is 0, needs 1 or more"),
        (["roadmap", "--seeds", "0"], "seeds is 0, needs 1 or more"),
        (["roadmap", "--image-size", "16"], "image size 16 is too small"),
        (["train", "--model", "convnext_tinny"], "unknown model"),
        (["train", "--recipe", "smal"], "unknown recipe 'smal': did you mean small"),
    ],
)
def test_wrong_words_end_with_2_and_one_line(words: list[str], message: str, capsys: Capture) -> None:
    assert main(words) == 2
    said = capsys.readouterr()
    assert message in said.err
    assert said.err.startswith("error: ")
    assert said.err.count("\n") == 1
    assert said.out == ""
    assert not list(Path().iterdir())


def test_unknown_options_end_with_2(capsys: Capture) -> None:
    for words in (["roadmap", "--sedes", "2"], ["nothing"], ["train", "--epochs", "many"], ["train", "--epochs", "0"]):
        with pytest.raises(SystemExit) as ended:
            main(words)
        assert ended.value.code == 2
    said = capsys.readouterr().err
    assert "sedes" in said
    assert "epochs is 0, needs 1 or more" in said


def test_failed_work_ends_with_1(capsys: Capture) -> None:
    assert main(["train", "--lr", "1e30", "--warmup-epochs", "0", "--out", "run"]) == 1
    assert "error: the loss is not finite" in capsys.readouterr().err


@pytest.mark.slow
def test_a_reader_that_has_seen_enough() -> None:
    code = f"{sys.executable} -m convnext models 'convnext_*' --json | head -c 20"
    answer = subprocess.run(["bash", "-o", "pipefail", "-c", code], capture_output=True, text=True, check=False)
    assert answer.returncode == 0
    assert answer.stderr == ""


@pytest.mark.slow
def test_ctrl_c_in_a_training_with_reading_processes(make_folder: MakeFolder) -> None:
    data = make_folder({"cat": 60, "dog": 60})
    words = ["train", str(data), "--image-size", "64", "--workers", "2", "--batch-size", "8", "--out", "run"]
    process = subprocess.Popen([sys.executable, "-m", "convnext", *words], stderr=subprocess.PIPE, text=True)
    wait_for(Path("run/metrics.jsonl"), lambda path: path.stat().st_size > 0)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert re.search(r"Interrupted in epoch \d+, step \d+. What is finished is kept in run", said)
    assert "Traceback" not in said


@pytest.mark.slow
def test_ctrl_c_ends_with_130_and_the_next_call_goes_on() -> None:
    words = ["roadmap", "--steps", "kernel_7,gelu", "--epochs", "3", "--seeds", "1", "--out", "study"]
    process = subprocess.Popen(
        [sys.executable, "-m", "convnext", *words], stderr=subprocess.PIPE, text=True, env=os.environ | {"TERM": "dumb"}
    )
    wait_for(Path("study/runs/gelu/seed-0/metrics.jsonl"), Path.exists)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert re.search(r"Interrupted in epoch \d, step \d+. What is finished is kept in study", said)
    assert "Traceback" not in said
    kept = json.loads(Path("study/results.json").read_text())
    assert [len(step["top1"]) for step in kept["steps"]] == [1, 0]
    before = Path("study/runs/kernel_7/seed-0/last.pt").stat().st_mtime_ns
    assert main(words) == 0
    assert Path("study/runs/kernel_7/seed-0/last.pt").stat().st_mtime_ns == before
    assert [len(step["top1"]) for step in json.loads(Path("study/results.json").read_text())["steps"]] == [1, 1]


@pytest.mark.slow
def test_three_hundred_photographs_train_with_no_flag(capsys: Capture) -> None:
    """Cut from two photographs, and a third class of grey stones (smoothed noise)."""
    from scipy.ndimage import gaussian_filter
    from sklearn.datasets import load_sample_image

    draw = np.random.default_rng(0)
    for label in ("flower", "stones", "temple"):
        Path("photos", label).mkdir(parents=True)
        for i in range(100):
            if label == "stones":
                grey = gaussian_filter(draw.normal(size=(240, 320)), draw.uniform(4, 9))
                pixels = np.repeat((grey / np.abs(grey).max() * 120 + 128)[..., None], 3, 2)
            else:
                whole = load_sample_image("china.jpg" if label == "temple" else "flower.jpg")
                top, left = draw.integers(0, 427 - 240), draw.integers(0, 640 - 320)
                pixels = whole[top : top + 240, left : left + 320] * draw.uniform(0.6, 1.1)
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(f"photos/{label}/{i}.jpg")
    assert main(["train", "photos"]) == 0
    said = capsys.readouterr().err
    assert "Recipe small: 300 images in 3 classes, about 240 px, too few for the paper's recipe" in said
    run = Path("runs/convnext_atto-photos")
    assert f"Weights:  {run}/best.safetensors" in said
    assert max(json.loads(line)["top1"] for line in (run / "metrics.jsonl").read_text().splitlines()) > 95
    assert main(["evaluate", str(run), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["images"] == 60
