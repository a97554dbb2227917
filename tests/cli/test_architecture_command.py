"""`convnext explain --architecture` and `--similarity` as a user types them."""

import json
from pathlib import Path

import pytest

import convnext
from convnext.cli import main
from tests.conftest import MakeFolder
from tests.runs import MakeRun

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder to work in."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def runs(make_folder: MakeFolder, make_run: MakeRun) -> tuple[str, str]:
    """Two runs on the same images."""
    make_folder({"cat": 16, "dog": 16}).rename("photos")
    make_run("photos", "first")
    make_run("photos", "second", model="roadmap_micro/resnet")
    return "first", "second"


def test_a_network_is_drawn_and_told(capsys: Capture) -> None:
    assert main(["explain", "convnext_atto", "--architecture"]) == 0
    said = capsys.readouterr()
    assert "d7x7, 40" in said.out
    assert said.err == "Figure, as .png and .svg: runs/explain-convnext_atto/architecture.png\n"
    figure = Path("runs/explain-convnext_atto/architecture.png")
    assert figure.read_bytes().startswith(b"\x89PNG")
    assert figure.with_suffix(".svg").exists()


def test_the_document_of_a_run_is_its_cost(runs: tuple[str, str], capsys: Capture) -> None:
    assert main(["explain", runs[0], "--architecture", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    cost = convnext.cost(convnext.load(runs[0]).model, 32)
    assert (document["params"], document["macs"]) == (cost.params, cost.macs)
    assert document["image_size"] == [32, 32]
    assert document["figure"] == "first/explain/architecture.png"
    assert Path(document["figure"]).exists()
    assert main(["explain", runs[0], "--architecture", "--image-size", "64", "--json", "--out", "elsewhere"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["image_size"] == [64, 64]
    assert Path("elsewhere/architecture.png").exists()


def test_two_networks_are_drawn_beside_each_other(runs: tuple[str, str], capsys: Capture) -> None:
    assert main(["explain", runs[0], "roadmap_micro/gelu", "--architecture", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["difference"]["design"] == {"activation": ["relu", "gelu"]}
    assert [model["image_size"] for model in document["models"]] == [[32, 32], [32, 32]]  # one image for both
    assert main(["explain", "--architecture", "roadmap_micro/kernel_7", "roadmap_micro/gelu"]) == 0
    out = capsys.readouterr().out
    assert "activation" in out
    assert "the same" in out


def test_the_similarity_of_two_runs(runs: tuple[str, str], capsys: Capture) -> None:
    assert main(["explain", *runs, "--similarity", "--data", "photos", "--json", "--device", "cpu"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["models"] == list(runs)
    assert document["images"] == 32
    assert (len(document["values"]), len(document["values"][0])) == (6, 5)
    assert document["figure"] == "first/explain/similarity.png"
    assert Path(document["figure"]).exists()
    assert main(["explain", runs[0], "--similarity", "--device", "cpu"]) == 0
    assert "columns: first, untrained" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a", "b", "c", "--architecture"], "--architecture is for one network or two, 3 were named"),
        (["a", "b", "c", "--similarity"], "--similarity is for one network or two, 3 were named"),
        (["convnext_tinny", "--architecture"], "did you mean convnext_tiny"),
        (["convnext_tiny", "--architecture", "--image-size", "16"], "image size 16x16 is too small"),
        (["convnext_tiny", "--architecture", "--similarity"], "two things to look at"),
        (["roadmap_micro/resnet", "--similarity", "--data", "nowhere"], "nowhere"),
        (["roadmap_micro/resnet", "--similarity", "--image-size", "64"], "--image-size is for --architecture"),
    ],
)
def test_wrong_words_are_refused(words: list[str], message: str, capsys: Capture) -> None:
    assert main(["explain", *words]) == 2
    said = capsys.readouterr()
    assert message in said.err
    assert said.out == ""
