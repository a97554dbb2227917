"""`convnext models --pretrained`: every published checkpoint, for people and as data."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from convnext.cli import main
from convnext.weights import PUBLISHED
from convnext.weights.listing import listing, listing_table
from tests.weights.conftest import put

pytestmark = pytest.mark.usefixtures("places")


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_fits_the_terminal(width: int) -> None:
    console = Console(width=width, record=True, file=io.StringIO())
    rows = listing()
    console.print(listing_table(rows, console.width))
    lines = [line.rstrip() for line in console.export_text().splitlines()]
    assert all(len(line) <= width for line in lines)
    (tiny,) = [line.split() for line in lines if line.startswith("convnext_tiny ") and " in22k_in1k " in line]
    data = ["ImageNet-22K,", "then", "ImageNet-1K"] if width == 120 else []
    assert tiny == ["convnext_tiny", "in22k_in1k", *data, "224", "82.9", "114", "MIT", "no"]
    assert len([line for line in lines if line.startswith("convnext")]) == len(PUBLISHED)
    assert "fcmae: ImageNet-1K without labels (FCMAE)" in lines or width == 120


def test_json_has_everything(places: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    path = put(places["own"], "convnextv2_nano_22k_384_ema.pt")
    assert main(["models", "convnextv2_nano", "--pretrained", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["tag"] for row in rows] == ["in1k", "in22k_in1k", "in22k_in1k_384", "fcmae"]
    assert rows[2] == {
        "name": "convnextv2_nano",
        "tag": "in22k_in1k_384",
        "data": "ImageNet-22K, then ImageNet-1K",
        "image_size": 384,
        "classes": 1000,
        "paper_top1": 83.4,
        "licence": "CC-BY-NC-4.0",
        "bytes": 4 * 15_623_800,
        "file": "convnextv2_nano_22k_384_ema.pt",
        "address": "https://dl.fbaipublicfiles.com/convnext/convnextv2/im22k/convnextv2_nano_22k_384_ema.pt",
        "hub_repository": "timm/convnextv2_nano.fcmae_ft_in22k_in1k_384",
        "at_hand": str(path),
    }
    assert [row["at_hand"] for row in rows].count(None) == 3


def test_the_command_prints_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "convnext_isotropic_*", "--pretrained"]) == 0
    said = capsys.readouterr().out
    assert said.count("convnext_isotropic_") == 3
    assert "top-1 as the papers state it" in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["convnext_tinny"], "unknown model with published weights 'convnext_tinny': did you mean convnext_tiny"),
        (["--image-size", "384"], "published weights have an image size of their own"),
    ],
)
def test_wrong_words(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--pretrained", *words]) == 2
    assert message in capsys.readouterr().err
