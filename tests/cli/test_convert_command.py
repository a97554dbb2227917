"""`convnext convert` as a user calls it."""

import json
from pathlib import Path

import pytest
import torch

import convnext
from convnext.cli import main
from convnext.data.preprocessing import Preprocessing
from tests.weights.peers import logits, randomize

Capture = pytest.CaptureFixture[str]
IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(2))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with a network of three classes in it."""
    monkeypatch.chdir(tmp_path)
    model = randomize(convnext.create_model("convnext_atto", num_classes=3))
    convnext.save_weights(model, "a.safetensors", classes=("ä", "b, c", "d"), preprocessing=Preprocessing(256, 0.9))
    return tmp_path


def test_from_one_to_the_next_and_home(here: Path, capsys: Capture) -> None:
    first = logits(convnext.load("a.safetensors").model, IMAGES)
    way = [
        ("a.safetensors", "hf", "transformers", "official"),
        ("hf", "tf", "timm", "transformers under convnext"),
        ("tf", "tv.safetensors", "torchvision", "timm"),
        ("tv.safetensors", "home.safetensors", "official", "torchvision"),
    ]
    for source, out, layout, was in way:
        assert main(["convert", source, out, "--layout", layout]) == 0
        said = capsys.readouterr()
        assert said.out == ""
        assert said.err.startswith(f"convnext_atto from {was} to {layout}: {out}")
        assert "Opens with: " in said.err
    assert (here / "home.safetensors").exists()
    home = convnext.load("home.safetensors")  # nothing is lost on the way, so nothing is warned of
    assert home.classes == ("ä", "b, c", "d")
    assert (home.preprocessing.image_size, home.preprocessing.resize_size) == (256, 284)
    assert torch.equal(logits(home.model, IMAGES), first)


def test_json(here: Path, capsys: Capture) -> None:
    assert main(["convert", "a.safetensors", "hf", "--layout", "transformers", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document == {
        "source": "a.safetensors",
        "from": "official",
        "to": "transformers",
        "model": "convnext_atto",
        "classes": 3,
        "files": ["hf/model.safetensors", "hf/config.json", "hf/preprocessor_config.json"],
        "opens_with": "transformers.AutoModelForImageClassification.from_pretrained('hf')",
    }
    config = json.loads((here / "hf" / "config.json").read_text())
    assert config["id2label"] == {"0": "ä", "1": "b, c", "2": "d"}


def test_notes_are_warnings(here: Path, capsys: Capture) -> None:
    weights = convnext.load("a.safetensors").model.state_dict()
    torch.save({"model": weights, "model_ema": weights}, here / "both.pth")
    assert main(["convert", "both.pth", "b.pth"]) == 0
    assert "warning: both.pth holds model and model_ema: took model" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["none.pth", "b.pth"], 2, "no weights at none.pth"),
        (["a.safetensors", "b.onnx"], 2, "does not say its format"),
        (["a.safetensors", "a.safetensors"], 2, "is what is to be converted itself"),
        (["empty.pth", "b.pth"], 1, "empty.pth is empty"),
        (["a.safetensors", "file/b.pth"], 1, "cannot write file/b.pth"),
        (["a.safetensors", "file", "--layout", "timm"], 2, "file is a file, a folder is needed"),
    ],
)
def test_errors_are_one_line(words: list[str], status: int, message: str, here: Path, capsys: Capture) -> None:
    (here / "empty.pth").touch()
    (here / "file").write_text("mine")
    assert main(["convert", *words]) == status
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert message in said
    assert (here / "file").read_text() == "mine"


def test_a_network_that_is_no_convnext(here: Path, capsys: Capture) -> None:
    torch.save(convnext.create_model("torchvision/resnet18", num_classes=2).state_dict(), here / "resnet.pth")
    assert main(["convert", "resnet.pth", "b.pth", "--layout", "timm"]) == 2
    assert "is of no ConvNeXt in a layout that is known" in capsys.readouterr().err
