"""Exported files opened: any number of images, pictures for prepared images, other makers' files, damaged ones."""

import json
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import convnext
from convnext.benchmark.benchmark_plan import make_plan, open_model
from convnext.cli import main
from convnext.data import load_data
from convnext.data.preprocessing import Preprocessing
from convnext.errors import RunError, UsageError, WeightsWarning
from convnext.inference.card import Card, read_card
from convnext.inference.model import resolve
from tests.conftest import MakeFolder
from tests.exporting.conftest import lively, prepared
from tests.runs import MakeRun

CARD = Card("onnx", "fp32", "small", ("cat", "dog"), Preprocessing.whole(32), size=32, smallest=32, macs=1000)


def test_uint8_images_in_probabilities_out_and_a_fixed_batch_for_any_number(run: Path, tmp_path: Path) -> None:
    convnext.export(run, "torch", out=tmp_path / "model.pt2", batch=3, with_preprocessing=True, size=48)
    exported: Any = convnext.load(tmp_path / "model.pt2").model
    model, normalize = convnext.load(run).model, convnext.load(run).preprocessing.normalize
    images = torch.randint(256, (7, 48, 48, 3), dtype=torch.uint8)
    x = torch.stack([normalize(image) for image in images])
    calls = []
    call = exported.call
    exported.call = lambda x: (calls.append(len(x)), call(x))[1]
    with torch.inference_mode():
        expected = model(x).softmax(1)
        program = torch.export.load(tmp_path / "model.pt2").module()
        torch.testing.assert_close(program(images[:3]), expected[:3], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(exported(x).softmax(1), expected, rtol=1e-4, atol=1e-5)
        assert exported(x[:0]).shape == (0, 10)
        with pytest.raises(UsageError, match=r"48, 48\).* 32, 32\)"):
            exported(torch.zeros(1, 3, 32, 32))
    assert calls == [3, 3, 3]


def test_an_exported_file_only_infers_and_says_so(onnx: convnext.ExportResult) -> None:
    opened = resolve(onnx.path)
    assert not opened.has_gradients
    assert opened.exported is not None
    assert opened.exported.runtime == "onnxruntime"
    with pytest.raises(UsageError, match=r"model\.onnx"):
        opened.module.train()
    with pytest.raises(UsageError, match="--device cuda"):
        convnext.load(onnx.path, device="cuda")
    with pytest.raises(UsageError, match="--precision bf16"):
        convnext.evaluate(onnx.path, "digits", precision="bf16")
    with pytest.raises(UsageError, match="data"):
        convnext.evaluate(onnx.path)


def test_evaluation_takes_the_images_that_the_run_held_out(
    make_folder: MakeFolder, make_run: MakeRun, tmp_path: Path
) -> None:
    data = make_folder({"cat": 10, "dog": 10})
    run = make_run(data)
    convnext.export(run, "torch", out=tmp_path / "model.pt2")
    moved = data.rename(tmp_path / "moved")
    found = convnext.evaluate(tmp_path / "model.pt2", moved, workers=0)
    assert found.metrics.images == 4  # of 20: the others were trained on
    assert any("held out then" in note for note in found.data.notes)
    (moved / "cat" / "more.jpg").write_bytes((moved / "cat" / "0.jpg").read_bytes())  # now it is other data
    assert convnext.evaluate(tmp_path / "model.pt2", moved, workers=0).metrics.images == 21


@pytest.mark.slow
def test_features_and_weights_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = lively(convnext.create_model("convnext_atto", num_classes=0))
    convnext.save_weights(model, tmp_path / "features.safetensors")
    words = ["export", str(tmp_path / "features.safetensors"), "--format", "torch", "--size", "64"]
    assert main([*words, "--with-preprocessing"]) == 2
    assert "--with-preprocessing" in capsys.readouterr().err
    assert main([*words, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["path"], said["agreement"]) == (str(tmp_path / "features.pt2"), None)
    assert said["checked_on"] == "crops of two photographs"
    with pytest.warns(WeightsWarning, match="images"):
        classifier = convnext.load(tmp_path / "features.pt2")
    x = torch.randn(3, 3, 64, 64)
    torch.testing.assert_close(classifier.model(x), model(x).detach(), rtol=1e-3, atol=1e-4)
    with pytest.raises(UsageError, match="has no classifier"):
        classifier.predict([Image.new("RGB", (64, 64))])


def test_the_benchmark_measures_it_as_it_is(onnx: convnext.ExportResult, run: Path) -> None:
    network, same = open_model(str(onnx.path)), open_model(str(run))
    plan = make_plan([network, same], compiled=False)
    settings = [(case.name, case.setting) for case in plan.groups[0] if case.library == "convnext"]
    assert settings[0] == (str(onnx.path), "exported")
    assert {setting for name, setting in settings if name == str(run)} == {"eager", "channels_last", "optimized"}
    assert plan.macs[str(onnx.path)] == plan.macs[str(run)] > 0
    again = torch.load(saved(plan.models[str(onnx.path)], onnx.path.parent), weights_only=False)  # as its process does
    x = prepared(run, 2)
    torch.testing.assert_close(again(x), convnext.load(onnx.path).model(x), rtol=0, atol=0)
    with pytest.raises(UsageError, match="--mode training"):
        make_plan([network], modes=["training"])
    with pytest.raises(UsageError, match="32 px"):
        make_plan([network], image_size=64)


def saved(model: torch.nn.Module, folder: Path) -> Path:
    torch.save(model, folder / "pickled.pt")
    return folder / "pickled.pt"


def small_onnx(path: Path, shape: list[Any], classes: int = 5) -> Path:
    """A network of another maker: means of the channels, in as many classes as it gets."""
    import onnx
    from onnx import helper

    channels = shape[1]
    weight = helper.make_tensor("w", 1, [channels, classes], np.linspace(-1, 1, channels * classes).astype(np.float32))
    nodes = [helper.make_node("MatMul", ["flat", "w"], ["y"])]
    if len(shape) == 4:
        nodes.insert(0, helper.make_node("GlobalAveragePool", ["x"], ["mean"]))
        nodes.insert(1, helper.make_node("Flatten", ["mean"], ["flat"]))
    else:
        nodes.insert(0, helper.make_node("Identity", ["x"], ["flat"]))
    taken, given = (helper.make_tensor_value_info(*facts) for facts in (("x", 1, shape), ("y", 1, [None, classes])))
    graph = helper.make_graph(nodes, "other", [taken], [given], [weight])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def test_files_of_another_origin(tmp_path: Path) -> None:
    path = small_onnx(tmp_path / "other.onnx", ["N", 3, 48, 48])
    with pytest.warns(WeightsWarning, match=r"class names.*\(5\)"):
        classifier = convnext.load(path)
    assert classifier.classes == tuple(f"class {label}" for label in range(5))
    assert classifier.preprocessing.image_size == 48
    (found,) = classifier.predict([Image.new("RGB", (60, 60), "#ffffff")])
    assert found.label in ("class 4", "class 0")
    for shape in (["N", 3, 48, 64], ["N", 48, 48, 3], ["N", 3]):  # not square, channels last, no images
        with pytest.raises(UsageError, match=r"\(N, 3, H, W\)"):
            convnext.load(small_onnx(tmp_path / "other.onnx", shape))


def test_weights_outside_the_files_folder_are_not_read(tmp_path: Path) -> None:
    import onnx

    (tmp_path / "secret").write_bytes(np.ones(15, np.float32).tobytes())
    (tmp_path / "in").mkdir()
    path = small_onnx(tmp_path / "in" / "other.onnx", ["N", 3, 48, 48])
    model = onnx.load(path)
    weight = model.graph.initializer[0]
    weight.ClearField("float_data")
    weight.ClearField("raw_data")
    weight.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", "../secret"), ("offset", "0"), ("length", "60")):
        weight.external_data.add(key=key, value=value)
    path.write_bytes(model.SerializeToString())
    with pytest.raises(RunError, match=r"cannot open .*other\.onnx"):
        convnext.load(path)


@pytest.mark.parametrize("suffix", [".onnx", ".pt2", ".xml"])
def test_damaged_files(
    suffix: str, onnx: convnext.ExportResult, program: convnext.ExportResult, tmp_path: Path
) -> None:
    path, whole = tmp_path / f"a{suffix}", (program if suffix == ".pt2" else onnx).path.read_bytes()
    for content in (b"", b"no such thing" * 100, whole[: len(whole) * 2 // 3]):
        path.write_bytes(content)
        with pytest.raises(RunError, match=rf"cannot open .*a\{suffix}"):
            convnext.load(path, trust=True)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"nowhere\.onnx"):
        convnext.load(tmp_path / "nowhere.onnx")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda words: words.pop("classes"), "classes"),
        (lambda words: words.update(classes='"cat"'), "classes"),
        (lambda words: words.update(batch="0"), "batch"),
        (lambda words: words.update(preprocessing="{}"), "lacks image_size"),
        (lambda words: words.update(notes="[1]"), "notes"),
        (lambda words: words.update(classes="x" * 10_000_001), "classes has 10,000,001"),
    ],
)
def test_damaged_metadata_is_refused(change: Callable[[dict[str, str]], Any], said: str) -> None:
    words = CARD.to_metadata()
    assert read_card(words) == CARD
    change(words)
    with pytest.raises(ValueError, match=said):
        read_card(words)


def test_metadata_of_others() -> None:
    assert read_card({"classes": "[]", "names": "{}"}) is None
    words = CARD.to_metadata() | {"model": "a\x1b[2Jb", "classes": json.dumps(["cat\x07", "dog"])}
    card = read_card(words | {"notes": json.dumps(["\x1b]0;title\x07"])})
    assert card is not None
    assert all(text.isprintable() for text in (card.model, *card.classes, *card.notes))  # nothing that terminals obey
    assert card.classes[1] == "dog"


def test_a_pt2_file_of_another_user_is_not_opened_unless_trusted(
    program: convnext.ExportResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = tmp_path / "moved.pt2"
    moved.write_bytes(program.path.read_bytes())
    assert convnext.load(moved).classes == convnext.load(program.path).classes  # by its content, wherever it is

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "of another user"))
    opened = []
    load = torch.export.load
    monkeypatch.setattr(torch.export, "load", lambda *words: (opened.append(words), load(*words))[1])
    with pytest.raises(UsageError, match="--trust"):
        convnext.load(moved)
    assert not opened
    assert convnext.load(moved, trust=True).classes
    assert len(opened) == 1


def test_a_pt2_file_that_was_changed_is_not_opened(program: convnext.ExportResult, tmp_path: Path) -> None:
    changed = tmp_path / "model.pt2"
    changed.write_bytes(program.path.read_bytes())
    with zipfile.ZipFile(changed, "a") as archive:
        archive.writestr("model/more", "x")
    with pytest.raises(UsageError, match="--trust"):
        resolve(changed)


def test_explaining_by_a_file_draws_what_takes_no_gradients_and_asks_for_trust(
    program: convnext.ExportResult, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "of another user"))
    picture, _ = load_data("digits").val.read(0)
    with pytest.raises(UsageError, match="--trust"):
        convnext.explain(program.path, picture)
    (explained,) = convnext.explain(program.path, picture, trust=True)
    assert explained.top[0].label == convnext.load(program.path, trust=True).predict(picture)[0].label
    assert explained.grad_cam is None
    assert explained.occlusion is not None
    assert explained.occlusion.shape == (32, 32)
    assert explained.occlusion.abs().max() > 0


@pytest.mark.parametrize(
    ("package", "format", "extra"),
    [("onnxruntime", "onnx", "onnx"), ("onnxslim", "onnx", "onnx"), ("openvino", "openvino", "openvino")],
)
def test_a_missing_package_is_named_with_its_extra(
    package: str, format: str, extra: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    suffix = {"onnx": ".onnx", "openvino": ".xml"}[format]
    with pytest.raises(UsageError, match=rf"{package} .*'convnext\[{extra}\]'"):
        convnext.export(run, format, out=tmp_path / f"a{suffix}")
    if package == {"onnx": "onnxruntime"}.get(format, format):
        (tmp_path / f"a{suffix}").write_bytes(b"x")
        with pytest.raises(UsageError, match=rf"{package} .*'convnext\[{extra}\]'"):
            convnext.load(tmp_path / f"a{suffix}")
