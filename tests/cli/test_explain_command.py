"""`convnext explain RUN IMAGE...` as a user types it: what it prints where, what it draws, and how it ends."""

import io
import json
import os
import sys
from pathlib import Path

import pytest
from matplotlib.figure import Figure

import convnext
from convnext.cli import main
from tests.conftest import MakeFolder
from tests.runs import MakeRun

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def run(tmp_path: Path, make_folder: MakeFolder, make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> str:
    """A folder to work in with a run, and images in photos/."""
    monkeypatch.chdir(tmp_path)
    make_folder({"cat": 2, "dog": 2}).rename("photos")
    make_run("photos")
    return "run"


def test_a_figure_for_each_picture(run: str, capsys: Capture) -> None:
    assert main(["explain", run, "photos/cat/0.jpg", "photos/dog/0.jpg"]) == 0
    said = capsys.readouterr()
    files = ["run/explain/0.png", "run/explain/dog-0.png"]
    assert [line.rpartition(" ")[2] for line in said.out.splitlines()] == files
    assert said.err == "Figures, as .png and .svg: run/explain\n"
    (answer,) = convnext.load(run).predict("photos/cat/0.jpg")
    assert said.out.startswith(f"photos/cat/0.jpg: {answer.label} ")
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


def test_odd_names_and_a_list_on_standard_input(run: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    """The figures' names are plain, whatever the pictures' are."""
    drawn: list[str] = []
    monkeypatch.setattr("convnext.plotting.write_figure", lambda _, path: drawn.append(str(path)))
    names = ["..jpg", "a [red].jpg", "A-RED.jpg", os.fsdecode(b"e\xff.jpg"), "x" * 200 + ".jpg"]
    for name in names:
        os.link("photos/cat/0.jpg", name)
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(names[1:])))
    assert main(["explain", run, "./..jpg", "-", "--out", "here"]) == 0
    assert drawn == [f"here/{file}.png" for file in ("picture", "a-red", "A-RED-2", "e", "x" * 80)]
    assert "e\\udcff.jpg: " in capsys.readouterr().out
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n"))
    assert main(["explain", run, "-"]) == 2
    assert "no images: standard input lists none" in capsys.readouterr().err


def test_ctrl_c_says_what_is_left(run: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    from convnext.plotting import write_figure

    def write(figure: Figure, path: Path) -> bytes:
        if path.stem != "0":
            raise KeyboardInterrupt
        return write_figure(figure, path)

    monkeypatch.setattr("convnext.plotting.write_figure", write)
    assert main(["explain", run, "photos/cat"]) == 130
    assert capsys.readouterr().err == "Interrupted after 1 images; their figures are in run/explain\n"
    assert Path("run/explain/0.png").exists()


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["nowhere", "photos"], 2, "no run folder nowhere"),
        (["run"], 2, "no images: name files, folders or patterns"),
        (["run", "photos", "--label", "cta"], 2, "unknown class 'cta': did you mean cat"),
        (["run", "photos", "--top", "0"], 2, "top is 0, needs 1 or more"),
        (["run", "photos", "--device", "tpu"], 2, "device 'tpu' cannot be used here"),
        (["run", "photos", "--data", "photos"], 2, "--data is for --receptive-field, --activity, --similarity"),
        (["run", "--activity", "--label", "cat"], 2, "--label is the class"),
        (["run", "photos", "--out", "text"], 1, "cannot write text/0.png"),
        (["roadmap_micro/kernel_6", "photos"], 2, "roadmap_micro/kernel_6"),
        (["features.safetensors", "photos"], 2, "features.safetensors has no classifier, so there is no class"),
    ],
)
@pytest.mark.usefixtures("run")
def test_errors_are_one_line(words: list[str], status: int, message: str, capsys: Capture) -> None:
    Path("text").write_text("")
    convnext.save_weights(convnext.create_model("convnext_atto", num_classes=0), "features.safetensors")
    assert main(["explain", *words]) == status
    said = capsys.readouterr()
    assert said.err.splitlines()[-1].startswith("error: ")
    assert message in said.err.splitlines()[-1]
    assert said.out == ""


@pytest.fixture
def runs(make_folder: MakeFolder, make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Two runs on the same images."""
    monkeypatch.chdir(tmp_path)
    make_folder({"cat": 16, "dog": 16}).rename("photos")
    make_run("photos", "first")
    make_run("photos", "second", model="roadmap_micro/resnet")
    return ["first", "second"]


def test_the_architecture_of_a_run_is_its_cost(runs: list[str], capsys: Capture) -> None:
    assert main(["explain", runs[0], "--architecture", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    cost = convnext.cost(convnext.load(runs[0]).model, 32)
    assert (document["params"], document["macs"], document["image_size"]) == (cost.params, cost.macs, [32, 32])
    assert document["figure"] == "first/explain/architecture.png"
    assert Path(document["figure"]).with_suffix(".svg").exists()
    assert main(["explain", runs[0], "--architecture", "--image-size", "64", "--json", "--out", "elsewhere"]) == 0
    assert json.loads(capsys.readouterr().out)["image_size"] == [64, 64]
    assert main(["explain", runs[0], "roadmap_micro/gelu", "--architecture", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["difference"]["design"] == {"activation": ["relu", "gelu"]}
    assert [model["image_size"] for model in document["models"]] == [[32, 32], [32, 32]]  # one image for both


def test_names_files_and_tags_are_drawn_without_a_download(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    convnext.save_weights(convnext.create_model("convnext_atto", num_classes=7), "seven.safetensors")
    for name, classes in (("convnext_atto", 1000), ("seven.safetensors", 7), ("convnext_tiny.in22k", 21841)):
        assert main(["explain", name, "--architecture", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["parts"][-1]["out"] == [classes]
    assert main(["explain", "convnext_atto", "--architecture"]) == 0
    assert "d7x7, 40" in capsys.readouterr().out


def test_the_similarity_of_two_runs(runs: list[str], capsys: Capture) -> None:
    assert main(["explain", *runs, "--similarity", "--data", "photos", "--json", "--device", "cpu"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["models"], document["images"]) == (runs, 32)
    assert (len(document["values"]), len(document["values"][0])) == (6, 5)
    assert Path(document["figure"]).exists()
    assert main(["explain", runs[0], "--similarity", "--device", "cpu"]) == 0
    assert "columns: first, untrained" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["a", "b", "c", "--architecture"], "--architecture"),
        (["a", "b", "c", "--similarity"], "--similarity"),
        (["convnext_tinny", "--architecture"], "convnext_tiny"),
        (["convnext_tiny", "--architecture", "--image-size", "16"], "16x16"),
        (["convnext_tiny", "--architecture", "--image-size", "0"], "0"),
        (["convnext_tiny", "--architecture", "--similarity"], "--architecture and --similarity"),
        (["convnext_tiny.nothing", "--architecture"], "nothing"),
        (["torchvision/resnet18", "--architecture"], "torchvision/resnet18"),
        (["roadmap_micro/resnet", "--similarity", "--data", "nowhere"], "nowhere"),
        (["roadmap_micro/resnet", "--similarity", "--image-size", "64"], "--image-size"),
    ],
)
def test_wrong_arguments_are_refused(
    arguments: list[str], named: str, capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["explain", *arguments]) == 2
    said = capsys.readouterr()
    assert named in said.err
    assert said.out == ""
