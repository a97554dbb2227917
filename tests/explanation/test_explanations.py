"""`convnext.explain`: the maps of the right class at the right place, for pictures of every kind, and their figure."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor, nn

import convnext
from convnext.data.preprocessing import Preprocessing
from convnext.explanation.explanations import NO_GRADIENTS, open_explained
from convnext.explanation.saliency import grad_cam, occlusion
from convnext.explanation.saliency_figure import draw_explanation
from convnext.inference.classifier import Classifier
from convnext.inference.model import Model
from convnext.plotting import BLUE, ORANGE
from tests.conftest import MakeFolder
from tests.runs import MakeRun

CLASSES = ("cat", "dog", "a class with a name that is much too long for any figure")


@pytest.fixture
def classifier() -> Classifier:
    model = convnext.create_model("roadmap_micro/kernel_7", num_classes=3, layer_scale_init_value=0.5)
    return Classifier(model, CLASSES, Preprocessing.published(64), "network", "cpu")


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8))


def test_an_explanation_is_what_predict_and_the_maps_say(classifier: Classifier) -> None:
    pictures = [noise(90, 120), noise(64, 64)]
    found = convnext.explain(classifier, pictures, label="dog", top=2)
    for one, picture, answer in zip(found, pictures, classifier.predict(pictures, top=2), strict=True):
        assert [candidate.label for candidate in one.top] == [candidate.label for candidate in answer.top]
        assert [c.probability for c in one.top] == pytest.approx([c.probability for c in answer.top], abs=1e-6)
        assert one.label == "dog"
        prepared = classifier.preprocessing(picture)[None]
        assert one.probability == pytest.approx(classifier.model(prepared).softmax(1)[0, 1].item(), abs=1e-6)
        assert one.grad_cam is not None
        assert one.occlusion is not None
        assert torch.allclose(one.grad_cam, grad_cam(classifier.model, prepared, [1])[0], atol=1e-4)
        assert torch.allclose(one.occlusion, occlusion(classifier.model, prepared, [1])[0], atol=1e-6)
        assert one.seen == classifier.preprocessing.seen(*picture.size)
        assert one.layer == "stages.2.2"
    assert found[0].seen == pytest.approx((4 * 90 / 73, 16 * 120 / 97, 68 * 90 / 73, 80 * 120 / 97))
    document = found[0].to_dict()
    assert found[0].occlusion is not None
    assert document["explained"] == "dog"
    assert document["label"] == found[0].top[0].label
    assert document["occlusion_largest_fall"] == pytest.approx(found[0].occlusion.max().item())


def test_pictures_of_every_kind(classifier: Classifier, tmp_path: Path) -> None:
    picture = noise(80, 70)
    picture.save(tmp_path / "a.png")
    pixels = torch.from_numpy(np.array(picture))
    kinds = [tmp_path / "a.png", picture, pixels.numpy(), pixels.permute(2, 0, 1), tmp_path / "gone.png"]
    *found, gone = convnext.explain(classifier, kinds)
    assert [one.path for one in found] == [str(tmp_path / "a.png"), None, None, None]
    for one in found:
        assert one.occlusion is not None
        assert found[0].occlusion is not None
        assert torch.equal(one.occlusion, found[0].occlusion)
    assert gone.error == "no such file"
    assert gone.to_dict()["label"] is None
    with pytest.raises(convnext.UsageError, match="prepared floats are no pictures"):
        convnext.explain(classifier, torch.randn(3, 64, 64))


def test_runs_and_networks_by_name(tmp_path: Path, make_folder: MakeFolder, make_run: MakeRun) -> None:
    data = make_folder({"cat": 2, "dog": 2})
    (one,) = convnext.explain(make_run(data), data / "cat" / "0.jpg")
    assert one.label == convnext.load(tmp_path / "run").predict(data / "cat" / "0.jpg")[0].label
    assert one.grad_cam is not None
    assert one.grad_cam.shape == (32, 32)
    network = open_explained("roadmap_micro/kernel_7", "cpu")
    assert len(network.classes) == 1000
    assert "untrained" in network.notes[0]


class Exported(nn.Module):
    """What an exported file is opened as: no parameters, no gradients."""

    def forward(self, x: Tensor) -> Tensor:
        return x.detach().mean((2, 3)) * 5


def test_what_has_no_gradients_gets_the_other_map_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    classifier = Classifier(Exported(), CLASSES, Preprocessing.published(32), "file.onnx", "cpu")
    (one,) = convnext.explain(classifier, noise(40, 40))
    assert one.grad_cam is None
    assert one.occlusion is not None
    titles = [axes.get_title() for axes in draw_explanation(one, "file.onnx").axes]
    assert [title for title in titles if "Grad-CAM" in title] == []
    assert [title.partition(" ")[0] for title in titles if title] == ["what", "occlusion", "classes;"]
    model = Model("file.onnx", "exported", Exported(), CLASSES, Preprocessing.published(32), "")
    monkeypatch.setattr("convnext.explanation.explanations.resolve", lambda *_, **__: model)
    assert open_explained("file.onnx", "cpu").notes == (NO_GRADIENTS,)


def test_one_class() -> None:
    model = convnext.create_model("roadmap_micro/kernel_7", num_classes=1)
    (one,) = convnext.explain(Classifier(model, ("only",), Preprocessing.published(64), "", "cpu"), noise(70, 70))
    assert one.probability == 1
    assert one.occlusion is not None
    assert one.occlusion.abs().max() == 0
    draw_explanation(one, "one").draw_without_rendering()


def drawn(classifier: Classifier, picture: Image.Image, label: str | None = None, top: int = 5) -> Figure:
    (one,) = convnext.explain(classifier, picture, label=label, top=top)
    figure = draw_explanation(one, "network")
    figure.draw_without_rendering()
    return figure


def test_the_explained_class_is_orange_and_there_even_if_it_is_improbable(classifier: Classifier) -> None:
    last = convnext.explain(classifier, noise(64, 64))[0].top[-1].label
    bars = drawn(classifier, noise(64, 64), last, top=1).axes[3]
    assert [to_hex(bar.get_facecolor()).upper() for bar in bars.patches] == [BLUE, ORANGE]  # pyright: ignore
    names = [label.get_text() for label in bars.get_yticklabels()]
    assert len(names) == 2
    assert all(len(name) <= 28 for name in names)


@pytest.mark.parametrize("size", [(1, 1000), (1000, 1), (3, 2), (640, 427), (64, 200)])
@pytest.mark.parametrize("crop_mode", ["center", "border"])
def test_maps_lie_where_the_network_looks(size: tuple[int, int], crop_mode: str) -> None:
    """And the whole picture is shown with them, whatever its shape."""
    preprocessing = Preprocessing(64, 0.875, crop_mode)  # pyright: ignore[reportArgumentType]
    classifier = Classifier(Exported(), CLASSES, preprocessing, "", "cpu")
    figure = drawn(classifier, noise(*size))
    left, top, right, bottom = preprocessing.seen(*size)
    for axes in figure.axes[:2]:
        assert axes.images[0].get_extent() == [0, size[0], size[1], 0]
        assert axes.get_xlim() == (min(0, left), max(size[0], right))
        assert axes.get_ylim() == (max(size[1], bottom), min(0, top))
    assert figure.axes[1].images[1].get_extent() == pytest.approx([left, right, bottom, top])


def test_what_is_not_seen_is_dimmed() -> None:
    picture = Image.new("RGB", (100, 50), (0, 0, 0))
    classifier = Classifier(Exported(), CLASSES, Preprocessing(50, 1.0), "", "cpu")
    shown = drawn(classifier, picture).axes[0].images[0].get_array()
    assert shown is not None
    assert np.allclose(shown[:, 25:75], 0)
    assert np.allclose(shown[:, :25], 0.7)
    assert np.allclose(shown[:, 75:], 0.7)


def test_odd_names_do_not_break_the_figure(classifier: Classifier) -> None:
    (one,) = convnext.explain(classifier, noise(64, 64))
    odd = dataclasses.replace(one, path="a$^{b}$\n\udcff" * 20 + ".jpg", label="$\\frac$")
    draw_explanation(odd, "$x$").draw_without_rendering()
