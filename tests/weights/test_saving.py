"""Weights out: what each library needs beside them, what it has no form for, and folders that are in use."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
from PIL import Image
from torch import nn

import convnext
from convnext.data.preprocessing import Preprocessing
from convnext.errors import RunError, UsageError
from convnext.models.convnext import ConvNeXt
from convnext.weights.saving import convert
from convnext.weights.weights_file import open_weights
from tests.weights.peers import logits, randomize, tiny

CLASSES = ("daisy", "rose", "tulip")
SETTINGS = {
    "published": Preprocessing.published(224),
    "squashed": Preprocessing.published(384),
    "squashed early": Preprocessing(224, 1.0, "squash", "bilinear"),
    "cropped late": Preprocessing(384, 0.9, "center", "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}
IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(2))


@pytest.fixture(scope="module")
def source() -> nn.Module:
    return randomize(convnext.create_model("convnext_atto", num_classes=3))


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("layout", ["timm", "transformers"])
def test_classes_and_preprocessing_go_along(source: nn.Module, layout: Any, setting: str, tmp_path: Path) -> None:
    convnext.save_weights(source, tmp_path / "a", layout, classes=CLASSES, preprocessing=SETTINGS[setting])
    config = tmp_path / "a" / "model.safetensors"
    with safetensors.safe_open(config, framework="pt") as file:
        assert file.metadata()["format"] == "pt"
    description = open_weights(tmp_path / "a").description
    assert description.classes == CLASSES
    assert description.preprocessing is not None
    found, given = (
        one.to_dict() | {"crop_pct": one.resize_size} for one in (description.preprocessing, SETTINGS[setting])
    )
    assert found == given  # transformers writes the resized side down, which several ratios lead to


@pytest.mark.parametrize("setting", SETTINGS)
def test_transformers_prepares_images_the_same_way(source: nn.Module, setting: str, tmp_path: Path) -> None:
    from transformers import AutoImageProcessor

    convnext.save_weights(source, tmp_path / "a", "transformers", classes=CLASSES, preprocessing=SETTINGS[setting])
    processor: Any = AutoImageProcessor.from_pretrained(tmp_path / "a", backend="pil")
    pixels = np.random.default_rng(0).integers(0, 256, (450, 600, 3), np.uint8)
    picture = Image.fromarray(pixels).resize((600, 450), Image.Resampling.BOX)
    theirs = processor(picture, return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(SETTINGS[setting](picture), theirs, rtol=1e-4, atol=2e-2)


@pytest.mark.parametrize("setting", SETTINGS)
def test_timm_prepares_images_the_same_way(source: nn.Module, setting: str, tmp_path: Path) -> None:
    import timm
    from timm.data import create_transform, resolve_data_config  # pyright: ignore[reportPrivateImportUsage]

    convnext.save_weights(source, tmp_path / "a", "timm", classes=CLASSES, preprocessing=SETTINGS[setting])
    model = timm.create_model(f"local-dir:{tmp_path / 'a'}", pretrained=True)
    transform: Any = create_transform(**resolve_data_config(model=model))
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (450, 600, 3), np.uint8))
    assert torch.equal(SETTINGS[setting](picture), transform(picture))


def test_classes_reach_transformers(source: nn.Module, tmp_path: Path) -> None:
    from transformers import AutoModelForImageClassification

    convnext.save_weights(source, tmp_path / "a", "transformers", classes=CLASSES)
    model: Any = AutoModelForImageClassification.from_pretrained(tmp_path / "a")
    assert model.config.id2label == dict(enumerate(CLASSES))
    assert model.config.label2id == {name: label for label, name in enumerate(CLASSES)}


@pytest.mark.parametrize("name", ["a.safetensors", "b/a.safetensors"])
def test_a_file_by_itself_keeps_classes_and_preprocessing(source: nn.Module, name: str, tmp_path: Path) -> None:
    for layout in ("official", "timm", "torchvision"):
        path = tmp_path / layout / name
        convnext.save_weights(source, path, layout, classes=CLASSES, preprocessing=SETTINGS["squashed early"])
        classifier = convnext.load(path)  # without a warning: nothing is missing
        assert (classifier.classes, classifier.preprocessing) == (CLASSES, SETTINGS["squashed early"])
        assert torch.equal(logits(classifier.model, IMAGES), logits(source, IMAGES))


def test_torchs_format_keeps_the_weights_alone_and_that_is_said(source: nn.Module, tmp_path: Path) -> None:
    saved = convnext.save_weights(source, tmp_path / "a.pth", classes=CLASSES)
    assert "a.pth" in saved.notes[0]
    with pytest.warns(convnext.WeightsWarning) as said:
        classifier = convnext.load(tmp_path / "a.pth")
    assert classifier.classes == ("class 0", "class 1", "class 2")
    assert any("has no names for its classes (3)" in str(warning.message) for warning in said)
    assert any("does not say how images are prepared" in str(warning.message) for warning in said)


def test_networks_without_a_name_open_in_timm(tmp_path: Path) -> None:
    import timm

    for options in ({"kernel_size": 5}, {"in_chans": 2}, {"grn": True, "layer_scale_init_value": None}):
        model = tiny(**options)
        folder = tmp_path / "-".join(options)
        convnext.save_weights(model, folder, "timm")
        theirs = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        images = torch.randn(1, options.get("in_chans", 3), 64, 64)
        torch.testing.assert_close(logits(theirs, images), logits(model, images), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("layout", "name"),
    [
        ("timm", "a.safetensors"),
        ("timm", "a.pth"),
        ("torchvision", "a.pth"),
        ("torchvision", "a.safetensors"),
        ("timm", "a"),
        ("transformers", "a"),
    ],
)
@pytest.mark.parametrize("variant", ["convnext_atto", pytest.param("convnext_tiny", marks=pytest.mark.slow), None])
def test_the_line_of_python_that_is_said_opens_it(layout: Any, name: str, variant: str | None, tmp_path: Path) -> None:
    import timm
    import torchvision
    import transformers
    from torchvision.models.convnext import CNBlockConfig

    model = tiny() if variant is None else randomize(convnext.create_model(variant, num_classes=3))
    saved = convnext.save_weights(model, tmp_path / name, layout)
    names = {"timm": timm, "torchvision": torchvision, "transformers": transformers, "torch": torch}
    opened = eval(saved.opens_with, names | {"safetensors": safetensors, "CNBlockConfig": CNBlockConfig})
    if layout == "torchvision":
        assert str(opened) == "<All keys matched successfully>"
    else:
        torch.testing.assert_close(logits(opened.eval(), IMAGES), logits(model, IMAGES), rtol=1e-5, atol=1e-5)


def test_networks_of_other_libraries_are_saved_too(tmp_path: Path) -> None:
    import timm

    theirs = randomize(timm.create_model("convnext_atto", num_classes=3))
    convnext.save_weights(theirs, tmp_path / "a.safetensors")
    ours = open_weights(tmp_path / "a.safetensors")
    assert ours.layout == "official"
    torch.testing.assert_close(logits(ours.build(), IMAGES), logits(theirs, IMAGES), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_precision_stays(source: nn.Module, dtype: torch.dtype, tmp_path: Path) -> None:
    weights = {name: tensor.to(dtype) for name, tensor in source.state_dict().items()}
    torch.save(weights, tmp_path / "a.pth")
    convert(open_weights(tmp_path / "a.pth"), tmp_path / "b.safetensors", "timm")
    back = open_weights(tmp_path / "b.safetensors")
    assert all(torch.equal(tensor, weights[name]) for name, tensor in back.weights.items())
    assert {tensor.dtype for tensor in back.weights.values()} == {dtype}


@pytest.mark.parametrize(
    ("variant", "options", "layout", "lacks"),
    [
        ("convnextv2_atto", {}, "torchvision", "V2"),
        ("convnext_atto", {"num_classes": 0}, "torchvision", "classifier"),
        ("convnext_atto", {"in_chans": 4}, "torchvision", "4 channels"),
        ("convnext_atto", {"kernel_size": 5}, "transformers", "kernel size 5"),
        ("convnext_atto", {"stem_stride": 1}, "transformers", "stride 1"),
        ("convnext_atto", {"stem_stride": 1}, "timm", "stride 1"),
        ("convnext_atto", {"stem_stride": 2}, "timm", "stride 2"),
        ("convnext_isotropic_small", {}, "timm", "isotropic"),
        ("convnext_isotropic_small", {}, "transformers", "isotropic"),
        ("convnext_isotropic_small", {}, "torchvision", "isotropic"),
    ],
)
def test_what_a_library_has_no_form_for(
    variant: str, options: dict[str, Any], layout: Any, lacks: str, tmp_path: Path
) -> None:
    model = convnext.create_model(variant, **{"num_classes": 2, **options})
    with pytest.raises(UsageError, match=f"{layout}.*{lacks}"):
        convnext.save_weights(model, tmp_path / "a.pth", layout)
    assert list(tmp_path.iterdir()) == []


def test_names_that_do_not_fit(source: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"a\.onnx.*\.safetensors, \.pth"):
        convnext.save_weights(source, tmp_path / "a.onnx")
    with pytest.raises(UsageError, match="folder"):
        convnext.save_weights(source, tmp_path / "a.bin", "transformers")
    with pytest.raises(UsageError, match="timm"):
        convnext.save_weights(source, tmp_path / "a.pth", "tim")  # pyright: ignore[reportArgumentType]
    with pytest.raises(UsageError, match=r"2 .*3"):
        convnext.save_weights(source, tmp_path / "a.pth", classes=("a", "b"))
    with pytest.raises(UsageError, match="ResNet"):
        convnext.save_weights(convnext.create_model("torchvision/resnet18"), tmp_path / "a.pth")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_use_is_left_alone(source: nn.Module, tmp_path: Path) -> None:
    folder = tmp_path / "a"
    convnext.save_weights(source, folder, "transformers", classes=CLASSES)
    convnext.save_weights(source, folder, "transformers", classes=CLASSES)  # the same again replaces it
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(UsageError, match="other files"):
        convnext.save_weights(source, folder, "timm")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    (folder / "notes.txt").touch()
    with pytest.raises(UsageError, match="other files"):
        convnext.save_weights(source, folder, "transformers")


@pytest.mark.parametrize(
    "network",
    [
        "torchvision/resnet18",
        "roadmap_micro/patchify_stem",
    ],
)
def test_a_run_of_another_network_is_named(network: str, tmp_path: Path) -> None:
    model = convnext.create_model(network, num_classes=3)
    safetensors.torch.save_file(model.state_dict(), tmp_path / "best.safetensors")
    (tmp_path / "recipe.json").write_text(json.dumps({"model": network}))
    with pytest.raises(UsageError) as raised:
        open_weights(tmp_path)
    assert f"{tmp_path} is of {network}" in str(raised.value)
    assert len(str(raised.value)) < 200 + len(str(tmp_path))


def test_what_is_converted_is_never_written_over(source: nn.Module, tmp_path: Path) -> None:
    convnext.save_weights(source, tmp_path / "a", "transformers", classes=CLASSES)
    before = {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()}
    for out, layout in (("a/model.safetensors", "official"), ("a", "transformers"), ("a/../a", "transformers")):
        with pytest.raises(UsageError, match="another name"):
            convert(open_weights(tmp_path / "a"), tmp_path / out, layout)  # pyright: ignore[reportArgumentType]
    assert {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()} == before


def test_imagenets_names_reach_transformers(tmp_path: Path) -> None:
    from transformers import AutoConfig

    saved = convnext.save_weights(tiny(), tmp_path / "few", "transformers")
    assert saved.notes == ()
    model = ConvNeXt(depths=(1, 1, 1, 1), dims=(8, 16, 32, 64), num_classes=1000)
    saved = convnext.save_weights(model, tmp_path / "a", "transformers")
    assert "ImageNet" in saved.notes[0]
    labels: Any = AutoConfig.from_pretrained(tmp_path / "a").id2label
    assert (labels[0], labels[999]) == ("tench", "toilet tissue")


@pytest.mark.parametrize("channels", [1, 4])
def test_other_channels_go_through_timms_own_folder(channels: int, tmp_path: Path) -> None:
    import timm
    from timm.models import save_for_hf

    theirs = randomize(timm.create_model("convnext_atto", num_classes=3, in_chans=channels))
    save_for_hf(theirs, str(tmp_path / "theirs"))
    opened = open_weights(tmp_path / "theirs")
    images = torch.randn(1, channels, 64, 64, generator=torch.Generator().manual_seed(3))
    convert(opened, tmp_path / "back", "timm")
    back = timm.create_model(f"local-dir:{tmp_path / 'back'}", pretrained=True).eval()
    assert torch.equal(logits(back, images), logits(theirs, images))
    saved = convert(opened, tmp_path / "hf", "transformers")
    assert "3 channels" in saved.notes[0]


def test_images_of_four_channels_are_no_pictures(tmp_path: Path) -> None:
    convnext.save_weights(tiny(in_chans=4), tmp_path / "a.pth")
    with pytest.raises(UsageError, match=r"a\.pth .*4 channels"):
        convnext.load(tmp_path / "a.pth")


def test_damaged_words_beside_the_weights_are_named(source: nn.Module, tmp_path: Path) -> None:
    convnext.save_weights(source, tmp_path, "transformers", classes=CLASSES)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"id2label": {"zero": "a"}}))
    with pytest.raises(RunError, match=r"config\.json"):
        open_weights(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config | {"id2label": {"0": "a"}}))
    with pytest.raises(UsageError, match=r"3 classes.* 1 names"):
        open_weights(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"size": {"height": 224, "width": 160}}))
    with pytest.raises(RunError, match="160 x 224"):
        open_weights(tmp_path)
