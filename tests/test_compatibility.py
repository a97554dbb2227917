"""Folders and files that version 0.1.0 wrote, before the redesign of December 2026, still open.

``fixtures/written_by_0_1_0.zip`` holds a finished run on the digits and the same run stopped after two of four epochs
(weights rounded so that the archive stays small), its exports, a tiny ConvNeXt in every layout, a study, and
``expected.json``: the outputs that 0.1.0 computed with them. ``json_keys.json`` has the keys of every ``--json``
document of 0.1.0 with the arguments that printed it.
"""

import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

import convnext
from convnext.cli import main

ARCHIVE = Path(__file__).parent / "fixtures" / "written_by_0_1_0.zip"
EXTRAS = {"model.onnx": "onnxruntime", "model.xml": "openvino", "model.pt2": "torch"}
DOCUMENTS: dict[str, Any] = json.loads(zipfile.ZipFile(ARCHIVE).read("json_keys.json"))
SLOW = ("explain --receptive-field", "explain --similarity", "export", "train")


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("old")
    zipfile.ZipFile(ARCHIVE).extractall(folder)
    return folder


@pytest.fixture(scope="module")
def expected(old: Path) -> dict[str, Any]:
    return json.loads((old / "expected.json").read_text())


def waves(*shape: int) -> torch.Tensor:
    """The input of which 0.1.0 recorded the outputs."""
    return torch.arange(torch.Size(shape).numel()).reshape(shape).mul(0.37).sin()


@pytest.mark.filterwarnings("ignore::convnext.WeightsWarning")
def test_runs_and_weights_compute_the_same(old: Path, expected: dict[str, Any]) -> None:
    outputs = convnext.load(old / "run").model(waves(2, 3, 32, 32))
    torch.testing.assert_close(outputs, torch.tensor(expected["run"]), atol=1e-4, rtol=1e-4)
    files = sorted((old / "weights").iterdir())
    assert len(files) == 5
    for file in files:
        outputs = convnext.load(file).model(waves(1, 3, 64, 64))[0]
        torch.testing.assert_close(outputs, torch.tensor(expected["weights"]), atol=1e-4, rtol=1e-4)


def test_a_run_predicts_the_same(old: Path, expected: dict[str, Any]) -> None:
    (prediction,) = convnext.load(old / "run").predict(old / "images" / "one.png")
    label, probability = expected["predictions"][0]
    assert prediction.label == label
    assert prediction.probability == pytest.approx(probability, abs=1e-4)


@pytest.mark.parametrize("name", EXTRAS)
def test_exported_files_compute_the_same(name: str, old: Path, expected: dict[str, Any]) -> None:
    pytest.importorskip(EXTRAS[name])
    outputs = convnext.load(old / "exports" / name, trust=True).model(waves(2, 3, 32, 32))
    torch.testing.assert_close(outputs, torch.tensor(expected[name]), atol=1e-3, rtol=1e-3)


def test_a_stopped_run_resumes(old: Path, tmp_path: Path) -> None:
    run = shutil.copytree(old / "stopped", tmp_path / "stopped")
    recipe = json.loads((run / "recipe.json").read_text())
    before = (run / "metrics.jsonl").read_text().splitlines()
    arguments = ["train", "digits", "--model", recipe["model"], "--batch-size", "96", "--workers", "0"]
    arguments += ["--device", "cpu", "--augment", "none", "--epochs", "4", "--out", str(run)]
    assert main(arguments) == 0
    after = (run / "metrics.jsonl").read_text().splitlines()
    assert after[: len(before)] == before
    assert [json.loads(line)["epoch"] for line in after] == [1, 2, 3, 4]


def test_a_study_is_continued_in_its_folder(
    old: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    study = shutil.copytree(old / "study", tmp_path / "study")
    before = json.loads((study / "results.json").read_text())
    arguments = ["roadmap", "--no-train", "--steps", "resnet", "--image-size", "32", "--out", "study"]
    assert main([*arguments, "--json"]) == 0
    after = json.loads(capsys.readouterr().out)
    for key in ("key", "design", "params", "macs", "activations"):
        assert after["steps"][0][key] == before["steps"][0][key]
    identity = json.loads((study / "study.json").read_text())
    assert identity == json.loads((old / "study" / "study.json").read_text())


def missing_keys(old: Any, new: Any, path: str = "") -> list[str]:
    """The keys of an old document that a new one does not have; of lists the first entries are compared."""
    if isinstance(old, dict):
        if not isinstance(new, dict):
            return [path]
        found = [f"{path}.{key}" for key in old if key not in new]
        return found + [one for key in old if key in new for one in missing_keys(old[key], new[key], f"{path}.{key}")]
    if isinstance(old, list):
        if not isinstance(new, list) or (old and not new):
            return [path]
        return missing_keys(old[0], new[0], f"{path}[]") if old else []
    return []


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if n in SLOW else ()) for n in DOCUMENTS if n != "benchmark"]
)
def test_documents_keep_their_keys(
    name: str, old: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for entry in old.iterdir():
        (tmp_path / entry.name).symlink_to(entry)
    monkeypatch.chdir(tmp_path)
    assert main([*DOCUMENTS[name]["arguments"], "--json"]) == 0
    document = json.loads(
        capsys.readouterr().out.strip().splitlines()[-1] if name == "train" else capsys.readouterr().out
    )
    assert missing_keys(DOCUMENTS[name]["document"], document) == []
