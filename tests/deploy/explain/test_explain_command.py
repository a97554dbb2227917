"""`convnext explain RUN IMAGE...` as a user types it: what it prints where, what it draws, and how it ends."""

import json
from pathlib import Path

import pytest

import convnext
from convnext.cli import main
from tests.conftest import MakeFolder
from tests.deploy.conftest import MakeRun

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def run(tmp_path: Path, make_folder: MakeFolder, make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> str:
    """A folder to work in with a run, and images in photos/."""
    monkeypatch.chdir(tmp_path)
    make_folder({"cat": 2, "dog": 2}).rename("photos")
    make_run("photos")
    return "run"


def test_a_figure_for_each_picture(run: str, capsys: Capture) -> None:
    assert main(["explain", run, "photos/cat", "photos/dog/0.jpg"]) == 0
    said = capsys.readouterr()
    files = ["run/explain/0.png", "run/explain/1.png", "run/explain/dog-0.png"]
    assert [line.rpartition(" ")[2] for line in said.out.splitlines()] == files
    assert said.err == "Figures, as .png and .svg: run/explain\n"
    answers = convnext.load(run).predict(["photos/cat", "photos/cat/0.jpg"])
    assert said.out.startswith(f"photos/cat/0.jpg: {answers[1].label} ")
    for file in files:
        assert Path(file).read_bytes().startswith(b"\x89PNG")
        assert Path(file).with_suffix(".svg").exists()


def test_json_is_alone_on_stdout_and_names_what_cannot_be_read(run: str, capsys: Capture) -> None:
    Path("empty").mkdir()
    Path("text.jpg").write_text("no picture")
    Path("cut.jpg").write_bytes(Path("photos/cat/0.jpg").read_bytes()[:300])
    words = ["text.jpg", "photos/dog/1.jpg", "cut.jpg", "empty"]
    assert main(["explain", run, *words, "--json", "--label", "cat", "--top", "1", "--out", "figures"]) == 1
    said = capsys.readouterr()
    document = json.loads(said.out)
    assert [entry["path"] for entry in document] == words
    assert [entry["error"] is None for entry in document] == [False, True, False, False]
    assert [entry["figure"] for entry in document] == [None, "figures/1.png", None, None]
    good = document[1]
    assert good["explained"] == "cat"
    assert len(good["top"]) == 1
    assert 0 < good["explained_probability"] <= good["probability"] == good["top"][0]["probability"]
    assert said.err.splitlines()[-1] == "error: 3 of 4 images could not be read, they are named above"
    assert sorted(path.name for path in Path("figures").iterdir()) == ["1.png", "1.svg"]
