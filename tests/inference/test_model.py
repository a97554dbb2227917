"""Every kind of name in every command: what opens, and what is refused with the name in the message."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import models

import convnext
from convnext.benchmark.benchmark_plan import open_model
from convnext.cli import main
from convnext.data import load_data
from convnext.errors import RunError, UsageError
from convnext.explanation.architecture import architecture
from convnext.explanation.depthwise_kernels import depthwise_kernels
from convnext.explanation.explanations import open_explained
from convnext.inference.classifier import open_classifier
from convnext.inference.model import resolve
from convnext.training.build import build_model
from convnext.training.checkpoint import RunFolder
from convnext.training.recipe import Recipe
from convnext.weights.names import find_weights
from tests.conftest import use_cache

CLASSES = ("goldfish", "tabby")  # ImageNet's, so that every model knows the images
SHUFFLENET = models.ShuffleNet_V2_X0_5_Weights.DEFAULT.url.rpartition("/")[2]
NAMES = {
    "run": "run",
    "weights file": "a.safetensors",
    "hub folder": "hub",
    "exported": "run/model.pt2",
    "tag": "convnextv2_atto.in1k",
    "variant": "convnextv2_atto",
    "step": "roadmap_micro/kernel_7",
    "library": "torchvision/shufflenet_v2_x0_5",
}
REFUSED = {  # the kinds that a command cannot use; all others work
    "predict": ("step",),
    "evaluate": ("step",),
    "serve": ("step",),
    "export": ("step", "exported"),
    "explain": (),
    "explain --kernels": ("exported",),
    "explain --architecture": ("exported", "library"),
    "convert": ("step", "exported", "library"),
    "train --weights": ("step", "exported", "library"),
    "models": ("exported",),
    "benchmark": (),
}


class StoppedError(Exception):
    """The model is open, and the export would begin."""


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder to work in with a model of every kind; its caches of weights are its own, and nothing is downloaded."""
    here = tmp_path_factory.mktemp("names")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        use_cache(here / "cache", patch)
        patch.setenv("CONVNEXT_WEIGHTS", "published")
        patch.setenv("TORCH_HOME", "torch")
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        generator = np.random.default_rng(0)
        for i, name in enumerate(f"{label}/{i}.png" for label in CLASSES for i in range(3)):
            path = Path("pets", name)
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(generator.integers(40 * i, 40 * i + 50, (40, 40, 3), np.uint8)).save(path)
        recipe = Recipe(data="pets", model="convnext_atto", image_size=32, stem_stride=4, augment="none")
        run = RunFolder(Path("run"))
        run.begin(recipe, load_data("pets", val_fraction=recipe.val_fraction))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)  # not the seed of untrained models
            run.save_best(build_model(recipe, 2).state_dict())
        convnext.export("run", "torch")
        model = convnext.create_model("convnext_atto", num_classes=2)
        convnext.save_weights(model, "a.safetensors", classes=CLASSES)
        convnext.save_weights(model, "hub", "timm", classes=CLASSES)
        for file in ("published/convnextv2_atto_1k_224_ema.pt", f"torch/hub/checkpoints/{SHUFFLENET}"):
            Path(file).parent.mkdir(parents=True)
        published = convnext.create_model("convnextv2_atto").state_dict()
        torch.save({"model": published}, "published/convnextv2_atto_1k_224_ema.pt")
        torch.save(models.shufflenet_v2_x0_5(weights=None).state_dict(), f"torch/hub/checkpoints/{SHUFFLENET}")
        yield here


def begin_export(name: str) -> None:
    def stop(*_: Any) -> None:
        raise StoppedError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("convnext.exporting.export_job.images_to_check", stop)
        with pytest.raises(StoppedError):
            convnext.export(name, "torch", out="out.pt2")


def read_architecture(name: str) -> None:
    model = resolve(name, "none")
    architecture(model.module, model.name, 64)


def run_command(*words: str) -> None:
    """Run a command in this process; raises what its message says where it is refused."""
    with pytest.MonkeyPatch.context() as patch:
        said: list[str] = []
        patch.setattr("convnext.cli.note", said.append)
        status = main(words)
    if status:
        assert status == 2
        raise UsageError(said[-1])


COMMANDS: dict[str, Callable[[str], Any]] = {
    "predict": lambda name: run_command("predict", name, "pets/tabby/0.png", "--json"),
    "evaluate": lambda name: convnext.evaluate(name, "pets", workers=0),
    "serve": open_classifier,
    "export": begin_export,
    "explain": open_explained,
    "explain --kernels": depthwise_kernels,
    "explain --architecture": read_architecture,
    "convert": lambda name: run_command("convert", name, "out.pth"),
    "train --weights": lambda name: find_weights(name, "convnext_atto"),
    "models": lambda name: run_command("models", name, "--json"),
    "benchmark": open_model,
}


@pytest.mark.parametrize("kind", NAMES)
@pytest.mark.parametrize("command", COMMANDS)
def test_a_name_means_the_same_in_every_command(command: str, kind: str) -> None:
    if kind not in REFUSED[command]:
        COMMANDS[command](NAMES[kind])
        return
    with pytest.raises(UsageError, match=NAMES[kind]):
        COMMANDS[command](NAMES[kind])


@pytest.mark.parametrize(
    ("kind", "classes", "image_size", "gradients"),
    [
        ("run", CLASSES, 32, True),
        ("weights file", CLASSES, 224, True),
        ("hub folder", CLASSES, 224, True),
        ("exported", CLASSES, 32, False),
        ("tag", 1000, 224, True),
        ("variant", 1000, 224, True),
        ("library", 1000, 224, True),
    ],
)
def test_the_record(kind: str, classes: tuple[str, ...] | int, image_size: int, gradients: bool) -> None:
    model = resolve(NAMES[kind])
    assert model.classes == classes or len(model.classes) == classes
    assert (model.image_size, model.has_gradients, model.is_trained) == (image_size, gradients, True)
    assert not model.module.training
    assert model.macs > 1_000_000
    x = torch.randn(2, 3, image_size, image_size)
    assert model.module(x).shape == (2, len(model.classes))


def test_published_weights_stand_in_for_a_variant_only_where_weights_are_needed() -> None:
    trained, named = resolve("convnextv2_atto"), resolve("convnextv2_atto", "named")
    assert (trained.name, named.name) == ("convnextv2_atto.in1k", "convnextv2_atto")
    expected = torch.load("published/convnextv2_atto_1k_224_ema.pt", weights_only=True)["model"]
    assert all(torch.equal(tensor, expected[name]) for name, tensor in trained.module.state_dict().items())
    assert not named.is_trained
    assert "untrained" in named.notes[0]
    assert not torch.equal(named.module.state_dict()["head.weight"], expected["head.weight"])
    assert resolve("convnextv2_atto.in1k", "named").is_trained


@pytest.mark.parametrize("kind", ["run", "weights file", "hub folder", "tag", "variant", "step", "library"])
def test_without_weights_nothing_is_drawn_or_downloaded(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for function in ("fetch", "load_pretrained", "load_best"):
        monkeypatch.delattr(f"convnext.inference.model.{function}")
    model = resolve(NAMES[kind], "none")
    assert all(tensor.is_meta for tensor in model.module.parameters())


def test_the_untrained_counterpart() -> None:
    model = resolve("run")
    state, before = torch.get_rng_state(), {name: tensor.clone() for name, tensor in model.module.state_dict().items()}
    one, other = model.untrained().state_dict(), model.untrained().state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    assert [(name, one[name].shape) for name in one] == [(name, before[name].shape) for name in before]
    assert torch.equal(one["head.weight"], other["head.weight"])
    assert not torch.equal(one["head.weight"], before["head.weight"])
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.module.state_dict().items())
    assert resolve("a.safetensors").untrained().state_dict()["head.weight"].shape == (2, 320)
    assert type(resolve(NAMES["library"]).untrained()).__name__ == "ShuffleNetV2"
    with pytest.raises(UsageError, match=r"model\.pt2"):
        resolve("run/model.pt2").untrained()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ru", "there is run"),
        ("convnext_tinny", "convnext_tiny"),
        ("roadmap_micro/kernel_6", "roadmap_micro/kernel_7"),
        ("convnextv2_atto.in22k", "in1k"),
        ("torchvision/resnet51", "torchvision/resnet50"),
        ("nowhere.pth", r"nowhere\.pth"),
        ("nowhere.onnx", r"nowhere\.onnx"),
        ("a" * 300, "300 characters"),
    ],
)
@pytest.mark.parametrize("weights", ["trained", "named", "none"])
def test_names_of_nothing(name: str, message: str, weights: Any) -> None:
    with pytest.raises(UsageError, match=message):
        resolve(name, weights)


def test_an_empty_weights_file(tmp_path: Path) -> None:
    (tmp_path / "a.pth").touch()
    with pytest.raises(RunError, match=r"a\.pth is empty"):
        resolve(tmp_path / "a.pth")


def test_models_lists_a_model_of_the_users(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "run", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["name"], row["image_size"]) == ("run", 32)
    assert row["params"] == sum(tensor.numel() for tensor in resolve("run").module.parameters())
