"""Networks with their library's weights: from the library's cache, prepared its way, and what is said without them."""

from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from torchvision import models

import convnext
from convnext.data.imagenet import class_names, folder_names
from convnext.errors import RunError, UsageError
from convnext.inference.model import resolve
from tests.conftest import MakeFolder

NAME = "torchvision/shufflenet_v2_x0_5"
FILE = models.ShuffleNet_V2_X0_5_Weights.DEFAULT.url.rpartition("/")[2]


@pytest.fixture
def checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """torch.hub's folder for weights, empty; and no network."""

    def unreachable(*arguments: Any, **options: Any) -> None:  # noqa: ARG001
        raise URLError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr("torch.hub.download_url_to_file", unreachable)
    folder = tmp_path / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def weights(checkpoints: Path) -> dict[str, torch.Tensor]:
    """Random weights where torchvision's published ones are looked for."""
    state = models.shufflenet_v2_x0_5(weights=None).state_dict()
    torch.save(state, checkpoints / FILE)
    return state


def test_torchvision_is_evaluated_by_its_own_means(weights: dict[str, torch.Tensor], make_folder: MakeFolder) -> None:
    data = make_folder({"val/n01440764": 3, "val/n01443537": 2})
    evaluation = convnext.evaluate(NAME, f"imagenet:{data}", workers=0)
    model, published = models.shufflenet_v2_x0_5(weights=None), models.ShuffleNet_V2_X0_5_Weights.DEFAULT
    model.load_state_dict(weights)
    transform, losses = published.transforms(), []
    for label, folder in enumerate(("n01440764", "n01443537")):
        for path in sorted((data / "val" / folder).iterdir()):
            with torch.inference_mode():
                logits = model.eval()(transform(Image.open(path))[None])
            losses.append(torch.nn.functional.cross_entropy(logits, torch.tensor([label])).item())
    assert evaluation.metrics.rows.losses.tolist() == pytest.approx(losses, abs=1e-5)
    assert evaluation.metrics.rows.labels.tolist() == [0, 0, 0, 1, 1]
    assert evaluation.model.classes[:2] == ("tench", "goldfish")
    assert evaluation.model.weights == "ShuffleNet_V2_X0_5_Weights.IMAGENET1K_V1"
    assert "images of 2 of the 1000 classes; none of great white" in evaluation.data.notes[0]
    path = data / "val" / "n01440764" / "0.jpg"
    (prediction,) = convnext.load(NAME).predict(path, top=3)
    with torch.inference_mode():
        values, labels = model(transform(Image.open(path))[None]).softmax(1)[0].topk(3)
    assert [candidate.label for candidate in prediction.top] == [published.meta["categories"][i] for i in labels]
    assert [candidate.probability for candidate in prediction.top] == pytest.approx(values.tolist(), abs=1e-5)


@pytest.mark.usefixtures("weights")
def test_folders_may_have_the_names_of_categories(make_folder: MakeFolder) -> None:
    evaluation = convnext.evaluate(NAME, make_folder({"goldfish": 1, "toilet tissue": 1}), workers=0)
    assert evaluation.metrics.rows.labels.tolist() == [1, 999]
    with pytest.raises(UsageError, match=r"digits has 10 classes"):
        convnext.evaluate(NAME, "digits", workers=0)


def test_wordnet_names_are_in_the_order_of_the_categories() -> None:
    names, categories = folder_names(1000), class_names(1000)
    assert categories is not None
    assert len(names) == len(set(categories)) == 1000
    assert list(names) == sorted(names)
    assert categories[names["n02123045"]] == "tabby"
    assert list(categories) == models.ResNet18_Weights.DEFAULT.meta["categories"]


def test_without_a_network_the_message_says_what_to_put_where(checkpoints: Path) -> None:
    with pytest.raises(RunError) as raised:
        resolve(NAME)
    message = str(raised.value)
    assert f"fetch {models.ShuffleNet_V2_X0_5_Weights.DEFAULT.url} elsewhere" in message
    assert f"put {FILE} into {checkpoints}" in message


@pytest.mark.parametrize("damage", ["garbage", "another network", "code"])
def test_a_file_that_is_no_weights_of_the_network(checkpoints: Path, damage: str) -> None:
    path = checkpoints / FILE
    if damage == "garbage":
        path.write_bytes(b"<html>not found</html>")
    else:
        torch.save({"fc.weight": torch.zeros(2, 2)} if damage == "another network" else {"a": Path}, path)
    with pytest.raises(RunError, match=rf"{FILE} .*{NAME}"):
        resolve(NAME)


def test_unknown_networks() -> None:
    for name, known in (
        ("torchvision/resnet50.a1", "torchvision/resnet50"),
        ("timm/resnet18.nothing", "timm/resnet18.a1_in1k"),
        ("timm/vovnet57a", "timm publishes none"),
    ):
        with pytest.raises(UsageError, match=f"{name}.*{known}"):
            resolve(name)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache of timm's weights, empty; and no network."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def test_timm_is_evaluated_by_its_own_means(hub: Path, make_folder: MakeFolder) -> None:
    model = timm.create_model("test_convnext")
    repository = hub / "models--timm--test_convnext.r160_in1k"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    save_file(model.state_dict(), snapshot / "model.safetensors")
    data = make_folder({"goldfish": 2})
    evaluation = convnext.evaluate("timm/test_convnext", data, workers=0)
    config = timm.data.resolve_data_config(model=model)  # pyright: ignore[reportAttributeAccessIssue]
    transform = timm.data.create_transform(**config)  # pyright: ignore[reportAttributeAccessIssue]
    with torch.inference_mode():
        images = torch.stack([transform(Image.open(data / "goldfish" / f"{i}.jpg")) for i in range(2)])
        losses = torch.nn.functional.cross_entropy(model.eval()(images), torch.tensor([1, 1]), reduction="none")
    assert images.shape[-1] == evaluation.model.preprocessing.image_size == 160
    torch.testing.assert_close(evaluation.metrics.rows.losses, losses, rtol=1e-5, atol=1e-5)
    assert resolve("timm/test_convnext.r160_in1k").weights == "timm's test_convnext.r160_in1k"


def test_without_a_network_the_message_says_where_timms_weights_belong(hub: Path) -> None:
    with pytest.raises(RunError) as raised:
        resolve("timm/test_convnext")
    message = str(raised.value)
    assert "timm/test_convnext.r160_in1k/resolve/main/model.safetensors can be reached" in message
    assert f"copy the folder models--timm--test_convnext.r160_in1k of its cache into {hub}" in message


def test_timms_networks_with_more_classes_know_wordnets_names() -> None:
    classes, aliases = class_names(21841), folder_names(21841)
    assert classes is not None
    assert (len(classes), classes[0], aliases["n00004475"]) == (21841, "organism, being", 0)
    with pytest.raises(UsageError, match=r"timm/convnext_base.clip_laion2b has 640 classes"):
        resolve("timm/convnext_base.clip_laion2b")
