"""`convnext.export`: a file that its own runtime opens and that computes what the network computes, or no file."""

import csv
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import convnext
from convnext.cli import main
from convnext.data import load_data
from convnext.errors import RunError, UsageError
from convnext.exporting import export_job
from convnext.exporting.formats import ExportRequest
from tests.exporting.conftest import prepared

Capture = pytest.CaptureFixture[str]


def test_a_newcomer_opens_the_onnx_file_with_its_runtime_alone(run: Path, onnx: convnext.ExportResult) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(onnx.path))
    x = prepared(run, 5)
    (logits,) = session.run(None, {"images": x.numpy()})
    with torch.inference_mode():
        expected = convnext.load(run).model(x)
    torch.testing.assert_close(torch.from_numpy(np.asarray(logits)), expected, rtol=1e-4, atol=1e-4)
    assert expected.std() > 0.1  # or anything would be the same
    said = session.get_modelmeta().custom_metadata_map
    assert json.loads(said["classes"]) == [str(digit) for digit in range(10)]
    assert json.loads(said["preprocessing"]) == convnext.load(run).preprocessing.to_dict()
    assert (said["model"], said["precision"]) == ("roadmap_micro/separate_downsampling", "fp32")


def test_the_result_and_the_graph(onnx: convnext.ExportResult) -> None:
    import onnx as library

    document = onnx.to_dict()
    assert document["bytes"] == onnx.path.stat().st_size
    assert 0 < document["difference"] < 1e-4
    assert (document["agreement"], document["images"]) == (1, 60)
    assert document["checked_on"] == "images held out in training of digits"
    assert min(document["images_per_second"], document["original_images_per_second"]) > 0
    json.dumps(document, allow_nan=False)
    model = library.load(onnx.path)
    assert {node.domain for node in model.graph.node} == {""}  # the standard operators only
    assert not any(node.metadata_props for node in model.graph.node)  # the exporter's: paths of this machine
    assert {"LayerNormalization", "Gelu"} <= {node.op_type for node in model.graph.node}


def test_load_predict_and_evaluate_take_the_file_as_they_take_the_run(
    run: Path, onnx: convnext.ExportResult, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    pictures = [load_data("digits").val.read(index)[0] for index in range(4)]
    for found, expected in zip(
        convnext.load(onnx.path).predict(pictures), convnext.load(run).predict(pictures), strict=True
    ):
        assert found.label == expected.label
        assert found.probability == pytest.approx(expected.probability, abs=1e-4)
    answers = {}
    for name, words in (("file", [str(onnx.path), "digits"]), ("run", [str(run)])):
        assert main(["evaluate", *words, "--json"]) == 0
        answers[name] = json.loads(capsys.readouterr().out)
    assert answers["file"]["images"] == answers["run"]["images"] == 360  # those that were held out, of 1797
    assert answers["file"]["confusion"] == answers["run"]["confusion"]


def test_a_file_that_differs_is_not_left_and_the_old_one_stays(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "model.pt2"
    out.write_bytes(b"the old one")
    opened_as_it_is = export_job.open_exported

    def wrong(path: Path, trust: bool = False) -> Any:
        opened: Any = opened_as_it_is(path, trust)
        call = opened.call
        opened.call = lambda x: call(x) * 1.01
        return opened

    monkeypatch.setattr(export_job, "open_exported", wrong)
    with pytest.raises(RunError, match=r"0\.01.*60"):
        convnext.export(run, "torch", out=out)
    assert out.read_bytes() == b"the old one"
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt2"]


def test_ctrl_c_leaves_nothing(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: object, request: ExportRequest) -> None:
        request.path.write_bytes(b"half a file")
        raise KeyboardInterrupt

    monkeypatch.setattr(export_job, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        convnext.export(run, "torch", out=tmp_path / "model.pt2")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--format", "onx"], "onnx"),
        (["--format", "torch", "--precision", "int8"], "torch has no int8"),
        (["--format", "onnx", "--batch", "0"], "batch is '0'"),
        (["--format", "onnx", "--size", "big"], "size is 'big'"),
        (["--format", "onnx", "--size", "16"], "size is 16, needs 32"),
        (["--format", "onnx", "--out", "model.pt2"], "end it in .onnx"),
        (["--format", "onnx", "--images", "nowhere"], "no images in nowhere"),
    ],
)
def test_wrong_words(words: list[str], said: str, run: Path, capsys: Capture) -> None:
    try:
        status = main(["export", str(run), *words])
    except SystemExit as stop:  # of tyro, for what is no choice
        status = stop.code
    assert status == 2
    assert said in " ".join(capsys.readouterr().err.split())


def test_an_exported_file_is_not_exported_again(onnx: convnext.ExportResult) -> None:
    with pytest.raises(UsageError, match="exported file"):
        convnext.export(onnx.path, "onnx")


def test_the_pages_table_is_the_measured_one() -> None:
    root = Path(__file__).parents[2]
    with (root / "benchmarks" / "results" / "export-cpu-avx2.csv").open() as file:
        names = "format", "precision", "images_per_second", "times_as_fast", "megabytes", "cold_start_seconds"
        measured = {tuple(row[name] for name in names) for row in csv.DictReader(file)}
    number = r"[\d.]+"
    row = rf"^\| (\w+) \| (\w+) \| .* \| .* \| ({number}) \| ({number}) \| ({number}) \| ({number}) \|$"
    shown = re.findall(row, (root / "docs" / "export.md").read_text(), re.MULTILINE)
    assert len(shown) >= 9
    assert set(shown) <= measured
