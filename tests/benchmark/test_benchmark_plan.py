"""Options that are refused, and the configurations of a plan."""

import pytest

from convnext.benchmark.benchmark_plan import make_plan, open_model
from convnext.cli import main

Capture = pytest.CaptureFixture[str]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["convnext_tinny"], "convnext_tiny"),
        (["torchvision/resnet51"], "torchvision/resnet50"),
        (["roadmap_tiny/gelo"], "roadmap_tiny/gelu"),
        (["gone.safetensors"], "gone.safetensors"),
        (["runs/gone"], "runs/gone"),
        (["--against", "tim"], "timm"),
        (["--mode", "train"], "training"),
        (["--mode", ""], "no mode"),
        (["--batch", "0"], "batch is 0"),
        (["--batch", "8,x"], "batch is '8,x'"),
        (["--batch", ","], "no batch"),
        (["--rounds", "0"], "rounds is 0"),
        (["--seconds", "0"], "seconds is 0"),
        (["--seconds", "nan"], "seconds is nan"),
        (["--precision", "int4"], "'int4'"),
        (["--image-size", "20"], "convnext_tiny: image size 20x20"),
        (["--image-size", "0"], "image size is 0"),
        (["torchvision/vit_b_16", "--image-size", "100"], "torchvision/vit_b_16"),
        (["--threads", "0"], "threads is 0"),
        (["--device", "abacus"], "'abacus'"),
    ],
)
def test_wrong_options_are_named(arguments: list[str], named: str, capsys: Capture) -> None:
    assert main(["benchmark", *arguments]) == 2
    printed = capsys.readouterr()
    assert named in printed.err
    assert printed.out == ""


def test_bf16_without_instructions(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setattr("convnext.device.has_cpu_bf16", lambda: False)
    assert main(["benchmark", "--precision", "bf16", "--device", "cpu"]) == 2
    assert "bf16" in capsys.readouterr().err
    plan = make_plan([open_model("convnext_atto")], device="cpu")
    assert {one.precision for group in plan.groups for one in group} == {"fp32"}


def test_a_plan_has_a_configuration_for_each_setting() -> None:
    plan = make_plan(
        [open_model("convnext_tiny"), open_model("torchvision/resnet50")],
        against=["timm", "torchvision", "transformers"],
        modes=["inference", "training"],
        batches=[1, 16],
        precisions=["fp32"],
    )
    first = [(group[0].mode, group[0].batch) for group in plan.groups]
    assert first == [("inference", 1), ("inference", 16), ("training", 1), ("training", 16)]
    assert len(plan.groups[0]) == 1 + 4 * 3 + 1 + 3
    assert len(plan.groups[2]) == 1 + 4 + 3 * 3 + 3
    assert plan.macs["convnext_tiny"] == 4_455_531_264
    assert plan.models == {}
    assert [note.split()[0] for note in plan.notes] == ["timm", "transformers"]
    assert all("torchvision/resnet50" in note for note in plan.notes)
