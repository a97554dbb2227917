"""Every network in the formats, every precision that a format has, and the shapes that a file may be asked for."""

import resource
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import convnext
from convnext.cli import main
from convnext.data.preprocessing import Preprocessing
from convnext.errors import RunError, UsageError
from convnext.exporting import onnx_format, torch_format
from convnext.exporting.formats import FORMATS, ExportRequest, find_format
from convnext.exporting.graph import export_program
from convnext.inference.card import Card
from convnext.inference.exported import open_exported
from convnext.models.convnext import VARIANTS
from convnext.models.design import Design, DesignNetwork
from convnext.models.roadmap import roadmap
from tests.exporting.conftest import lively, prepared


def small_variants() -> dict[str, nn.Module]:
    """The family with as few blocks and channels as can be: those that are the same then, once."""
    found: dict[str, nn.Module] = {}
    for name, builder in VARIANTS.items():
        sizes = ("depths", "dims", "depth", "dim")
        options = {key: value for key, value in builder.keywords.items() if key not in sizes}
        size = {"depth": 4, "dim": 16} if "isotropic" in name else {"depths": (1, 1, 1, 1), "dims": (8, 16, 32, 64)}
        found.setdefault(f"{builder.func.__name__} {options}", builder(**size, num_classes=5))
    return found


def small_steps() -> dict[str, nn.Module]:
    """Every step of the roadmap, of one block a stage."""
    steps = {step.key: step.design for step in roadmap("micro")}
    return {key: DesignNetwork(small(design), num_classes=5) for key, design in steps.items()}


def small(design: Design) -> Design:
    return replace(design, depths=(1, 1, 1, 1), width=8)


NETWORKS = small_variants() | small_steps()


def written(name: str, format: str, path: Path, **card: Any) -> tuple[nn.Module, nn.Module]:
    """A network, and what a file of it computes."""
    model = lively(NETWORKS[name])
    classes = tuple("abcde")
    facts = Card(format, "fp32", name, classes, Preprocessing.whole(64), size=64, smallest=32)
    FORMATS[format].write(ExportRequest(model, replace(facts, **card), path))
    return model, open_exported(path, trust=True)


def assert_same(model: nn.Module, exported: nn.Module, *shapes: tuple[int, ...]) -> None:
    for shape in shapes:
        x = torch.randn(shape)
        with torch.inference_mode():
            expected = model(x)
            torch.testing.assert_close(exported(x), expected, rtol=1e-3, atol=1e-3 * expected.abs().max().item())
            assert expected.std() > 0.01


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_every_network(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    programs = []
    monkeypatch.setattr(
        torch_format, "export_program", lambda *words: programs.append(export_program(*words)) or programs[0]
    )
    monkeypatch.setattr(onnx_format, "export_program", lambda *_: programs[0])  # the same, and it takes its time
    for format in ("torch", "onnx"):
        model, exported = written(name, format, tmp_path / f"a{FORMATS[format].suffix}")
        assert_same(model, exported, (3, 3, 64, 64), (1, 3, 64, 64))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet", "separate_downsampling", "IsotropicConvNeXt {}"])
def test_openvino(name: str, tmp_path: Path) -> None:
    model, exported = written(name, "openvino", tmp_path / "a.xml", size=None)
    assert_same(model, exported, (3, 3, 64, 64), (1, 3, 32, 80))


@pytest.mark.parametrize(
    "name",
    [
        "ConvNeXt {}",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("resnet", "IsotropicConvNeXt {}", "gelu")),
    ],
)
def test_any_size_and_number_in_a_program(name: str, tmp_path: Path) -> None:
    model, exported = written(name, "torch", tmp_path / "a.pt2", size=None)
    assert_same(model, exported, (2, 3, 64, 64), (1, 3, 32, 32), (5, 3, 96, 50))
    program = torch.export.load(tmp_path / "a.pt2")
    kinds = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert not any("convnext" in kind for kind in kinds)  # the package's own kernels know this machine alone
    assert not any("stack_trace" in node.meta for node in program.graph.nodes)


@pytest.mark.slow
def test_any_size_and_number_in_onnx(tmp_path: Path) -> None:
    name = "ConvNeXt {'grn': True, 'layer_scale_init_value': None}"
    model, exported = written(name, "onnx", tmp_path / "a.onnx", size=None)
    assert_same(model, exported, (2, 3, 64, 64), (1, 3, 32, 32), (5, 3, 96, 50))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("format", "precision", "smaller"),
    [("onnx", "bf16", 1.7), ("onnx", "int8", 1.5), ("openvino", "bf16", 1.7), ("openvino", "int8", 1.5)],
)
def test_precisions(format: str, precision: str, smaller: float, run: Path, tmp_path: Path) -> None:
    suffix = FORMATS[format].suffix
    exported = convnext.export(run, format, precision=precision, out=tmp_path / f"b{suffix}", with_preprocessing=True)
    assert exported.bytes * smaller < (run / "best.safetensors").stat().st_size
    assert exported.checked.agreement is not None
    assert exported.checked.agreement >= 0.95
    assert exported.checked.difference > 1e-5  # it is not fp32 in disguise
    x = prepared(run, 8)
    with torch.inference_mode():
        found, expected = convnext.load(exported.path).model(x).softmax(1), convnext.load(run).model(x).softmax(1)
    torch.testing.assert_close(found, expected, rtol=0, atol=0.1)


@pytest.mark.slow
def test_bf16_in_a_program_is_bf16(run: Path, tmp_path: Path) -> None:
    exported = convnext.export(run, "torch", precision="bf16", out=tmp_path / "a.pt2")
    program = torch.export.load(exported.path)
    assert {value.dtype for value in program.state_dict.values()} == {torch.bfloat16}
    assert exported.bytes < 0.7 * (run / "best.safetensors").stat().st_size
    assert 1e-5 < exported.checked.difference < 5e-2


@pytest.mark.slow
def test_weights_too_large_for_one_file_lie_beside_it(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_format, "MAX_BYTES", 1000)
    exported = convnext.export(run, "onnx", out=tmp_path / "a.onnx")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.onnx", "a.onnx.data"]
    assert exported.path.stat().st_size < 0.2 * (tmp_path / "a.onnx.data").stat().st_size
    assert exported.checked.difference < 1e-4
    assert any("a.onnx.data" in note for note in exported.notes)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    monkeypatch.setattr("convnext.exporting.check.TOLERANCE", {"fp32": -1})
    with pytest.raises(RunError, match="difference"):
        convnext.export(run, "onnx", out=tmp_path / "a.onnx")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    (tmp_path / "a.onnx.data").unlink()
    with pytest.raises(RunError, match="cannot open"):
        convnext.load(tmp_path / "a.onnx")


@pytest.mark.parametrize(
    "format", ["torch", pytest.param("onnx", marks=pytest.mark.slow), pytest.param("openvino", marks=pytest.mark.slow)]
)
def test_a_full_disk_leaves_nothing(format: str, run: Path, tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(RunError, match=r"disk is full|as openvino"):
            convnext.export(run, format, out=tmp_path / f"a{FORMATS[format].suffix}")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []


def test_what_no_runtime_can_do_is_refused_with_what_can() -> None:
    with pytest.raises(UsageError, match=r"torch has no int8.*onnx, openvino"):
        find_format("torch", "int8")


def test_int8_needs_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = tmp_path / "w.safetensors"
    convnext.save_weights(lively(convnext.create_model("convnext_atto", num_classes=3)), weights)
    assert main(["export", str(weights), "--format", "onnx", "--precision", "int8"]) == 2
    assert "--images FOLDER" in capsys.readouterr().err
