"""`convnext.load` and what it answers: the network's own probabilities, in the images' order, whatever they come as."""

import dataclasses
import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import convnext
from convnext import Classifier, Prediction
from convnext.data import load_data
from convnext.data.preprocessing import Preprocessing
from convnext.errors import RunError, UsageError
from convnext.inference.classifier import Candidate
from convnext.training.recipes import digits
from tests.conftest import MakeFolder
from tests.runs import MakeRun


class Colours(nn.Module):
    """As logits, the means of the three channels."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean((2, 3))


COLOURS = Classifier(
    Colours(), ("red", "green", "blue"), Preprocessing(8, 1.0, mean=(0,) * 3, std=(0.1,) * 3), "colours"
)
RED, GREEN, BLUE = (Image.new("RGB", (20, 10), colour) for colour in ("#ff0000", "#00ff00", "#0000ff"))


def test_a_run_answers_as_its_network_does(make_folder: MakeFolder, make_run: MakeRun) -> None:
    data = make_folder({"cat": 5, "dog": 5})
    classifier = convnext.load(make_run(data, image_size=48), device="cpu")
    paths = sorted(data.rglob("*.jpg"))
    predictions = classifier.predict(paths, top=2, batch_size=3)
    images = torch.stack([Preprocessing.published(48)(Image.open(path)) for path in paths])
    with torch.inference_mode():
        expected = classifier.model(images).softmax(1)
    assert [prediction.path for prediction in predictions] == [str(path) for path in paths]
    for prediction, row in zip(predictions, expected.tolist(), strict=True):
        assert dict(prediction.top) == pytest.approx(dict(zip(("cat", "dog"), row, strict=True)), abs=1e-5)
        assert prediction.probability == prediction.top[0].probability == pytest.approx(max(row), abs=1e-5)
        assert prediction.label == prediction.top[0].label == ("cat", "dog")[row.index(max(row))]
        assert prediction.error is None


@pytest.mark.slow
def test_a_run_on_digits_knows_them_as_files_again(tmp_path: Path) -> None:
    """Images that were held in memory in training are prepared alike when they come as files: nothing is cut off."""
    run = convnext.train(dataclasses.replace(digits(), epochs=3, model="roadmap_micro/kernel_7"), tmp_path / "run")
    val = load_data("digits").val
    for index in range(len(val)):
        image, _ = val.read(index)
        assert isinstance(image, Image.Image)
        image.save(tmp_path / f"{index}.png")
    predictions = convnext.load(run.dir).predict([tmp_path / f"{index}.png" for index in range(len(val))], top=1)
    right = [p.label == str(int(label)) for p, label in zip(predictions, val.labels, strict=True)]  # pyright: ignore
    assert 100 * sum(right) / len(right) == pytest.approx(run.best["top1"], abs=0.6)


def test_order_is_kept_and_what_cannot_be_read_is_answered_with_why(tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    RED.save(tmp_path / "red.png")
    inputs = [BLUE, tmp_path / "broken.jpg", np.asarray(GREEN), str(tmp_path / "red.png"), "gone.jpg"]
    predictions = COLOURS.predict(inputs, batch_size=2)
    assert [prediction.label for prediction in predictions] == ["blue", None, "green", "red", None]
    assert [prediction.path for prediction in predictions] == [
        None, str(tmp_path / "broken.jpg"), None, str(tmp_path / "red.png"), "gone.jpg",
    ]  # fmt: skip
    assert predictions[1] == Prediction(
        str(tmp_path / "broken.jpg"), None, None, (), "no image of a kind that can be read"
    )
    assert predictions[4].error == "no such file"


def test_one_image_is_a_list_of_one() -> None:
    for one in (RED, np.asarray(RED), torch.tensor([255, 0, 0], dtype=torch.uint8).view(3, 1, 1).expand(3, 9, 9)):
        assert [prediction.label for prediction in COLOURS.predict(one)] == ["red"]
    assert COLOURS.predict([]) == []


def test_prepared_tensors() -> None:
    prepared = torch.stack([COLOURS.preprocessing(picture) for picture in (GREEN, BLUE)])
    assert COLOURS.predict(prepared) == COLOURS.predict([GREEN, BLUE])


def test_plain_data() -> None:
    prediction = Prediction("a.jpg", "cat", 0.75, (Candidate("cat", 0.75), Candidate("dog", 0.25)))
    assert prediction.to_dict() == {
        "path": "a.jpg",
        "label": "cat",
        "probability": 0.75,
        "top": [{"label": "cat", "probability": 0.75}, {"label": "dog", "probability": 0.25}],
        "error": None,
    }
    assert json.loads(json.dumps(COLOURS.predict(RED)[0].to_dict()))["label"] == "red"


def test_top_is_all_classes_at_most() -> None:
    (prediction,) = COLOURS.predict(RED, top=9)
    assert prediction.top[0].label == "red"
    assert sum(candidate.probability for candidate in prediction.top) == pytest.approx(1)
    assert len(COLOURS.predict(RED, top=1)[0].top) == 1


def test_the_same_open_picture_twice(tmp_path: Path) -> None:
    """Read from its file by several threads at once."""
    Image.effect_noise((2000, 2000), 50).save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as picture:
        assert len(set(COLOURS.predict([picture] * 20))) == 1


def test_an_endless_stream_is_answered_as_it_comes() -> None:
    given = 0

    def endless() -> Iterator[Image.Image]:
        nonlocal given
        while True:
            given += 1
            yield (RED, GREEN, BLUE)[given % 3]

    answers = COLOURS.stream(endless(), batch_size=4)
    assert [answer.label for answer in islice(answers, 100)] == ["green", "blue", "red"] * 33 + ["green"]
    answers.close()
    assert given < 150


def test_wrong_values(make_run: MakeRun) -> None:
    with pytest.raises(UsageError, match="top is 0"):
        COLOURS.predict(RED, top=0)
    with pytest.raises(UsageError, match="batch_size is 0"):
        COLOURS.stream(RED, batch_size=0)
    with pytest.raises(UsageError, match="'tpu'"):
        convnext.load(make_run("digits"), device="tpu")
    two = Classifier(Colours(), ("a", "b"), COLOURS.preprocessing, "two")
    with pytest.raises(UsageError, match=r"two .* \(1, 3\)"):
        two.predict(RED)


def test_damaged_weights_give_no_answer() -> None:
    class Nothing(Colours):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return super().forward(images) * math.nan

    classifier = Classifier(Nothing(), COLOURS.classes, COLOURS.preprocessing, "nothing")
    with pytest.raises(RunError, match="nothing are not finite"):
        classifier.predict(RED)


def test_too_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def too_large(*arguments: Any) -> None:  # noqa: ARG001
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(COLOURS.model, "forward", too_large)
    with pytest.raises(RunError, match=r"2 images.*cpu"):
        COLOURS.predict([RED, RED])


def test_predicting_from_a_run_imports_no_library_that_it_does_not_need(
    make_folder: MakeFolder, make_run: MakeRun
) -> None:
    """The seconds before the first answer are torch's own."""
    data = make_folder({"cat": 4, "dog": 4})
    code = f"""
import sys
from convnext.cli import main
status = main(["predict", {str(make_run(data))!r}, {str(data / "cat" / "0.jpg")!r}])
heavy = "timm torchvision torchmetrics matplotlib sklearn scipy pandas transformers cv2 simplejpeg huggingface_hub"
loaded = [name for name in heavy.split() if name in sys.modules]
sys.exit(f"status {{status}}, loaded {{loaded}}" if status or loaded else 0)
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.mark.slow
@pytest.mark.parametrize("classes", [2, 1000])
def test_predicting_from_a_weights_file_imports_no_other_library(classes: int, tmp_path: Path) -> None:
    """ImageNet's names, which libraries have, cost none of their import."""
    convnext.save_weights(convnext.create_model("convnext_atto", num_classes=classes), tmp_path / "a.pth")
    RED.save(tmp_path / "a.png")
    code = f"""
import sys
from convnext.cli import main
status = main(["predict", {str(tmp_path / "a.pth")!r}, {str(tmp_path / "a.png")!r}])
loaded = [name for name in ("timm", "torchvision", "transformers", "huggingface_hub") if name in sys.modules]
sys.exit(f"status {{status}}, loaded {{loaded}}" if status or loaded else 0)
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.mark.slow
def test_ten_thousand_images_in_bounded_memory(tmp_path: Path, make_run: MakeRun) -> None:
    """The peak for 10,000 photographs is that for 300; in order, with every 1,000th a broken one."""
    run = make_run("digits")
    photo = tmp_path / "photo.jpg"
    Image.effect_noise((320, 240), 90).convert("RGB").save(photo)
    (tmp_path / "images").mkdir()
    for index in range(10_000):
        path = tmp_path / "images" / f"{index:05}.jpg"
        path.write_bytes(b"broken") if index % 1000 == 7 else os.link(photo, path)
    code = f"""
import resource, sys
from pathlib import Path
import convnext
classifier = convnext.load({str(run)!r}, device="cpu")
paths = sorted(Path({str(tmp_path / "images")!r}).iterdir())[:int(sys.argv[1])]
answers = [(a.path, a.error is None) for a in classifier.stream(paths)]
assert [path for path, _ in answers] == [str(path) for path in paths]
assert [int(Path(path).stem) for path, good in answers if not good] == list(range(7, len(paths), 1000))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
    peaks = [
        int(subprocess.run([sys.executable, "-c", code, count], check=True, capture_output=True).stdout)
        for count in ("300", "10000")
    ]
    assert peaks[1] - peaks[0] < 60_000  # KiB; the pixels of all would be 2.3 GB, prepared 31 MB
