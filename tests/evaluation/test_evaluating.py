"""`evaluate` as a library's user calls it: the training's own figures again, from whatever the run was."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from PIL import Image
from torch import nn
from torch.utils.data import Dataset

import convnext
from convnext.data import load_data
from convnext.data.preprocessing import Preprocessing
from convnext.errors import RunError, UsageError
from convnext.training.recipes import digits
from tests.conftest import MakeFolder
from tests.runs import MakeRun


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_the_best_epochs_figures_come_out_again(tmp_path: Path, ema_decay: float) -> None:
    recipe = dataclasses.replace(
        digits(), epochs=2, batch_size=480, model="roadmap_micro/kernel_7", ema_decay=ema_decay
    )
    run = convnext.train(recipe, tmp_path / "run")
    evaluation = convnext.evaluate(run.dir)
    assert (evaluation.metrics.top1, evaluation.metrics.top5) == (run.best["top1"], run.best["top5"])
    assert evaluation.metrics.loss == pytest.approx(run.best["loss"], rel=1e-4)
    assert evaluation.metrics.images == run.best["images"] == 360
    assert evaluation.data.part == "images held out in training"


def test_images_of_memory_are_prepared_alike_in_files(tmp_path: Path, make_run: MakeRun) -> None:
    """Not cropped, though photographs of that size would be: the same losses but for the rounding of pixels."""
    run, val = make_run("digits"), load_data("digits").val
    for index in range(100):
        picture, label = val.read(index)
        assert isinstance(picture, Image.Image)
        (tmp_path / "files" / str(label)).mkdir(parents=True, exist_ok=True)
        picture.save(tmp_path / "files" / str(label) / f"{index:03}.png")
    expected = convnext.evaluate(run).metrics.rows
    order = sorted(range(100), key=lambda index: (int(expected.labels[index]), index))
    files = convnext.evaluate(run, tmp_path / "files", workers=0).metrics.rows
    torch.testing.assert_close(files.losses, expected.losses[order], rtol=0, atol=5e-3)


def test_a_run_of_a_reference(make_folder: MakeFolder, make_run: MakeRun) -> None:
    data = make_folder({"cat": 6, "dog": 6})
    for model in ("torchvision/shufflenet_v2_x0_5", "timm/test_convnext"):
        folder = make_run(data, name=model.replace("/", "-"), model=model)
        assert convnext.evaluate(folder, workers=0).metrics.images == 2


def test_the_document_has_the_promised_names(make_run: MakeRun) -> None:
    document = convnext.evaluate(make_run("digits")).to_dict()
    promised = {"top1", "top5", "loss", "images", "images_per_second", "per_class", "ece"}
    assert promised | {"confusion", "calibration", "unreadable", "run", "data", "classes", "notes"} <= set(document)
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    assert sum(row["support"] for row in document["per_class"]) == document["images"] == 360
    assert document["top1"] == pytest.approx(100 * sum(document["confusion"][i][i] for i in range(10)) / 360)


def test_batches_and_workers_change_nothing_but_speed(make_folder: MakeFolder, make_run: MakeRun) -> None:
    data = make_folder({"cat": 20, "dog": 20})
    (data / "cat" / "broken.jpg").write_bytes(b"no picture")
    run = make_run(data, val_fraction=0.9)
    one = convnext.evaluate(run, batch_size=7, workers=0)
    other = convnext.evaluate(run, batch_size=100, workers=2)
    assert one.metrics.images + len(one.metrics.unreadable) == len(one.data.images) == 37
    torch.testing.assert_close(one.metrics.rows.losses, other.metrics.rows.losses)
    assert one.metrics.unreadable == other.metrics.unreadable
    assert one.metrics.confusion.equal(other.metrics.confusion)


def test_a_folder_with_broken_files_only(make_folder: MakeFolder, make_run: MakeRun) -> None:
    data = make_folder({"a/cat": 2, "a/dog": 2, "b/cat": 1})
    (data / "b" / "cat" / "0.jpg").write_bytes(b"no picture")
    with pytest.raises(RunError, match=r"the first: .*0\.jpg"):
        convnext.evaluate(make_run(data / "a"), data / "b", workers=0)


def test_weights_that_are_not_finite(make_run: MakeRun) -> None:
    run = make_run("digits")
    weights = safetensors.torch.load_file(run / "best.safetensors")
    weights["head.weight"][0, 0] = math.nan
    safetensors.torch.save_file(weights, run / "best.safetensors")
    with pytest.raises(RunError, match="are not finite"):
        convnext.evaluate(run)


def test_values_out_of_range(make_run: MakeRun) -> None:
    run = make_run("digits")
    with pytest.raises(UsageError, match="batch_size is 0"):
        convnext.evaluate(run, batch_size=0)
    with pytest.raises(UsageError, match="'tpu'"):
        convnext.evaluate(run, device="tpu")


def test_too_little_memory(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    def too_large(*arguments: object) -> None:  # noqa: ARG001
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("convnext.evaluation.evaluating.evaluate_batches", too_large)
    with pytest.raises(RunError, match="batches of 64"):
        convnext.evaluate(make_run("digits"), device="cpu")


class Colours(Dataset[Any]):
    """Images of one colour each, as PIL images or as prepared tensors; the label is the brightest channel."""

    def __init__(self, prepared: bool) -> None:
        self.prepared = prepared

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> tuple[Any, int]:
        label = index % 3
        if self.prepared:
            return torch.eye(3)[label].view(3, 1, 1).expand(3, 8, 8), label
        return Image.new("RGB", (50, 40), tuple(255 * (channel == label) for channel in range(3))), label


@pytest.mark.parametrize("prepared", [False, True])
def test_a_module_and_a_dataset(prepared: bool) -> None:
    module = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())  # the means of the channels are the logits
    evaluation = convnext.evaluate(module, Colours(prepared), workers=0)
    assert (evaluation.metrics.top1, evaluation.metrics.images) == (100, 6)
    assert (evaluation.model.classes, evaluation.data.name) == (("class 0", "class 1", "class 2"), "Colours")
    assert json.loads(json.dumps(evaluation.to_dict()))["run"] == "Sequential"
    named = convnext.evaluate(
        module, Colours(prepared), classes=("r", "g", "b"), preprocessing=Preprocessing.whole(8), workers=0
    )
    assert named.model.classes == ("r", "g", "b")


def test_a_run_and_a_dataset(make_run: MakeRun) -> None:
    evaluation = convnext.evaluate(make_run("digits"), Colours(prepared=False), workers=0)
    assert evaluation.metrics.images == 6
    assert len(evaluation.model.classes) == 10


def test_features_alone_are_not_evaluated(tmp_path: Path) -> None:
    convnext.save_weights(convnext.create_model("convnext_atto", num_classes=0), tmp_path / "a.pth")
    with pytest.raises(UsageError, match=r"a.pth has no classifier"):
        convnext.evaluate(tmp_path / "a.pth", "digits", workers=0)
