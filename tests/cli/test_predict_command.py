"""`convnext predict` as a user types it: what it prints where, what it writes, and how it ends."""

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import convnext
from convnext.cli import main
from convnext.cli.predict_command import FEW
from tests.conftest import MakeFolder
from tests.runs import MakeRun

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def photos(
    tmp_path: Path, make_folder: MakeFolder, make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> dict[str, convnext.Prediction]:
    """A folder to work in with a run, and images in photos/; returned is what the run answers for each."""
    monkeypatch.chdir(tmp_path)
    data = make_folder({"cat": 3, "dog": 3}).rename("photos")
    make_run("photos")
    Path("photos/notes.txt").write_text("no picture")
    paths = [str(path.relative_to(tmp_path)) for path in sorted((tmp_path / data).rglob("*.jpg"))]
    return dict(zip(paths, convnext.load("run").predict(paths), strict=True))


def entries(text: str) -> list[tuple[str, str | None]]:
    """Path and label of every entry of a document."""
    return [(entry["path"], entry["label"]) for entry in json.loads(text)]


def of(photos: dict[str, convnext.Prediction], *paths: str) -> list[tuple[str, str | None]]:
    return [(path, photos[path].label) for path in paths]


def test_lines_where_it_is_no_terminal(photos: dict[str, convnext.Prediction], capsys: Capture) -> None:
    assert main(["predict", "run", "photos/dog/1.jpg", "photos/cat/0.jpg"]) == 0
    said = capsys.readouterr()
    first = photos["photos/dog/1.jpg"].top
    found = ", ".join(f"{label} {100 * probability:.1f} %" for label, probability in first)
    assert said.out.splitlines()[0] == f"photos/dog/1.jpg: {found}"
    assert [line.partition(":")[0] for line in said.out.splitlines()] == ["photos/dog/1.jpg", "photos/cat/0.jpg"]
    assert said.err == ""


def test_json_is_alone_on_stdout(photos: dict[str, convnext.Prediction], capsys: Capture) -> None:
    assert main(["predict", "run", "photos", "--json", "--batch", "2"]) == 0
    document = json.loads(capsys.readouterr().out)
    expected = [answer.to_dict() for answer in photos.values()]
    assert [list(entry) for entry in document] == [["path", "label", "probability", "top", "error"]] * 6
    for entry, other in zip(document, expected, strict=True):
        assert entry["path"] == other["path"]
        assert entry["label"] == other["label"]
        assert entry["probability"] == pytest.approx(other["probability"], abs=1e-5)
        assert [candidate["label"] for candidate in entry["top"]] == [candidate["label"] for candidate in other["top"]]


@pytest.mark.parametrize(
    ("words", "paths"),
    [
        (["photos/cat"], ["photos/cat/0.jpg", "photos/cat/1.jpg", "photos/cat/2.jpg"]),
        (["photos/*/1.jpg"], ["photos/cat/1.jpg", "photos/dog/1.jpg"]),
        (["photos/**/[02].jpg"], ["photos/cat/0.jpg", "photos/cat/2.jpg", "photos/dog/0.jpg", "photos/dog/2.jpg"]),
        (["photos/d*"], ["photos/dog/0.jpg", "photos/dog/1.jpg", "photos/dog/2.jpg"]),
        (["photos/dog/0.jpg", "photos/cat/0.jpg", "photos/dog/0.jpg"], ["photos/dog/0.jpg", "photos/cat/0.jpg"] * 2),
    ],
)
def test_files_folders_and_patterns(
    photos: dict[str, convnext.Prediction], capsys: Capture, words: list[str], paths: list[str]
) -> None:
    assert main(["predict", "run", *words, "--json"]) == 0
    expected = of(photos, *paths)
    assert entries(capsys.readouterr().out) == expected[: 3 if len(words) == 3 else None]


def test_a_list_on_standard_input(
    photos: dict[str, convnext.Prediction], capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("photos/dog/2.jpg\r\n\nphotos/cat/*.jpg\nphotos/cat/2.jpg"))
    assert main(["predict", "run", "photos/cat/0.jpg", "-", "--json"]) == 1
    said = capsys.readouterr()
    assert entries(said.out) == [
        *of(photos, "photos/cat/0.jpg", "photos/dog/2.jpg"),
        ("photos/cat/*.jpg", None),  # in a list, a path is a path
        *of(photos, "photos/cat/2.jpg"),
    ]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n"))
    assert main(["predict", "run", "-"]) == 2
    assert "no images: standard input lists none" in capsys.readouterr().err


def test_names_that_look_like_patterns_or_are_no_text(photos: dict[str, convnext.Prediction], capfd: Any) -> None:
    names = ["a [red].jpg", "b*.jpg", "c d.jpg", "-", os.fsdecode(b"e\xff.jpg")]
    for name in names:
        os.link("photos/cat/0.jpg", name)
    words = [name if name != "-" else "./-" for name in names]
    assert main(["predict", "run", *words, "--json"]) == 0
    label = photos["photos/cat/0.jpg"].label
    assert entries(capfd.readouterr().out) == [(word, label) for word in words]
    assert main(["predict", "run", *words]) == 0
    assert "e\\udcff.jpg: " in capfd.readouterr().out
    assert main(["predict", "run", *words, "--out", "answers.csv"]) == 0
    assert b"\ne\xff.jpg," in Path("answers.csv").read_bytes()


def test_what_cannot_be_read_is_named_at_the_end(photos: dict[str, convnext.Prediction], capsys: Capture) -> None:
    Path("empty").mkdir()
    Path("bomb.png").write_bytes(b"")
    Image.new("1", (10_000, 10_000)).save("bomb.png")
    words = ["photos/notes.txt", "photos/cat/0.jpg", "gone.jpg", "no*.jpg", "empty", "bomb.png", "photos/cat/1.jpg"]
    assert main(["predict", "run", *words, "https://example.org/a.jpg", "--json"]) == 1
    said = capsys.readouterr()
    good = dict(of(photos, "photos/cat/0.jpg", "photos/cat/1.jpg"))
    assert entries(said.out) == [(word, good.get(word)) for word in [*words, "https://example.org/a.jpg"]]
    lines = said.err.splitlines()
    named = [word for word in [*words, "https://example.org/a.jpg"] if word not in good]
    assert [line.partition(": ")[2].partition(": ")[0].split()[-1] for line in lines[:-1]] == named
    assert "6 of 8 images" in lines[-1]


def test_progress_goes_to_stderr(
    photos: dict[str, convnext.Prediction], capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("convnext.console.PLAIN_SECONDS", 0)
    assert main(["predict", "run", "photos", "--json"]) == 0
    said = capsys.readouterr()
    assert len(json.loads(said.out)) == len(photos)
    assert [line.partition(" images  ")[0] for line in said.err.splitlines()] == [f"run: {i} of 6" for i in range(1, 7)]
    monkeypatch.setattr(sys, "stdin", io.StringIO("photos/cat/0.jpg\n"))
    assert main(["predict", "run", "-", "--json"]) == 0
    assert capsys.readouterr().err.startswith("run: 1 images  ")


def test_csv(photos: dict[str, convnext.Prediction], capsys: Capture) -> None:
    assert main(["predict", "run", "photos", "gone.jpg", "--out", "deep/answers.csv"]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.splitlines()[0] == "Predictions: deep/answers.csv"
    with Path("deep/answers.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["path", "label", "probability", "error", "label2", "probability2"]
    for row, answer in zip(rows[1:-1], photos.values(), strict=True):
        assert row[:2] == [answer.path, answer.label]
        assert float(row[2]) == pytest.approx(answer.probability, abs=1e-5)
        assert [row[3], row[4]] == ["", answer.top[1].label]
    assert rows[-1] == ["gone.jpg", "", "", "no such file"]


@pytest.mark.parametrize("suffix", ["json", "jsonl", "JSON"])
def test_json_files_and_the_same_words_twice(
    photos: dict[str, convnext.Prediction], capsys: Capture, suffix: str
) -> None:
    out = Path(f"answers.{suffix}")
    for words in (["photos/cat"], ["photos/cat"], ["photos"]):
        assert main(["predict", "run", *words, "--top", "1", "--out", str(out), "--json"]) == 0
        printed = json.loads(capsys.readouterr().out)
        text = out.read_text()
        written = list(map(json.loads, text.splitlines())) if suffix == "jsonl" else json.loads(text)
        assert written == printed
        assert all(len(entry["top"]) == 1 for entry in written)
    assert len(written) == len(photos)
    assert sorted(path.name for path in Path().iterdir()) == sorted([out.name, "photos", "run"])


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["nowhere", "photos"], 2, "no run folder nowhere"),
        (["run"], 2, "no images: name files, folders or patterns"),
        (["run", "photos", "--out", "answers.txt"], 2, "answers.txt"),
        (["run", "photos", "--out", "run.json"], 2, "run.json is a folder: name a file in it"),
        (["run", "photos", "--out", "photos/notes.txt/a.csv"], 1, "cannot write photos/notes.txt/a.csv"),
        (["run", "photos", "--top", "0"], 2, "top is 0, needs 1 or more"),
        (["run", "photos", "--batch", "0"], 2, "batch_size is 0, needs 1 or more"),
        (["run", "photos", "--device", "tpu"], 2, "device 'tpu' cannot be used here"),
    ],
)
@pytest.mark.usefixtures("photos")
def test_errors_are_one_line(words: list[str], status: int, message: str, capsys: Capture) -> None:
    Path("run.json").mkdir()
    assert main(["predict", *words]) == status
    said = capsys.readouterr()
    assert said.err.startswith("error: ")
    assert message in said.err
    assert said.err.count("\n") == 1
    assert said.out == ""
    assert not Path("answers.txt").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("photos")
def test_a_full_disk_keeps_the_answers_of_before() -> None:
    """In a process that may not write files of more than 1 kB, as a stand-in for a full disk."""
    Path("answers.csv").write_text("before")
    code = """
import resource, signal
from convnext.cli import main
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
raise SystemExit(main(["predict", "run", *["photos"] * 5, "--out", "answers.csv"]))
"""
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert answer.returncode == 1, answer.stderr
    assert "error: the disk is full: answers.csv" in answer.stderr
    assert Path("answers.csv").read_text() == "before"
    assert not list(Path().glob(".answers*"))


@pytest.mark.usefixtures("photos")
@pytest.mark.slow
def test_ctrl_c_says_what_is_left() -> None:
    Path("answers.csv").write_text("before")
    words = [sys.executable, "-m", "convnext", "predict", "run", "-", "--out", "answers.csv", "--batch", "2"]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stderr is not None
        process.stdin.write("photos/cat/0.jpg\n" * 1000)  # and more seems to come
        process.stdin.flush()
        deadline = time.monotonic() + 60
        while not list(Path().glob(".answers.csv.*")) and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        said = process.stderr.read()
        assert process.wait(30) == 130
    assert said.startswith("Interrupted after ")
    assert said.endswith(" images. answers.csv is as it was before.\n")
    assert Path("answers.csv").read_text() == "before"
    assert not list(Path().glob(".answers*"))


@pytest.mark.skipif(sys.platform == "win32", reason="needs a terminal that is a file")
@pytest.mark.usefixtures("photos")
@pytest.mark.slow
def test_a_terminal_gets_bars_for_few_images_and_lines_for_many() -> None:
    few = on_a_terminal(["predict", "run", "photos/cat/0.jpg", "gone.jpg"])
    assert "█" in few
    assert few.count("%") == 2
    assert "no prediction for gone.jpg: no such file" in few
    many = on_a_terminal(["predict", "run", *["photos/cat/0.jpg"] * (FEW + 1)])
    assert "█" not in many
    assert many.count("photos/cat/0.jpg: ") == FEW + 1


def on_a_terminal(words: list[str]) -> str:
    """What a command shows where stdout and stderr are a terminal."""
    import pty

    master, slave = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "100"}
    with subprocess.Popen(
        [sys.executable, "-m", "convnext", *words], stdout=slave, stderr=slave, stdin=slave, env=environment
    ):
        os.close(slave)
        shown = b""
        while True:
            try:
                part = os.read(master, 4096)
            except OSError:  # how Linux says that the other side has closed
                break
            if not part:
                break
            shown += part
    os.close(master)
    return shown.decode()
