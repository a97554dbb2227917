"""The table of published checkpoints: complete, as timm's own table of the same files, and as the command lists it."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from rich.console import Console
from safetensors.torch import save

from convnext import create_model, list_models
from convnext.cli import main
from convnext.weights import PUBLISHED
from convnext.weights.published import listing, listing_table
from tests.weights.conftest import put


def test_the_table_is_whole() -> None:
    assert len(PUBLISHED) == len({row.file for row in PUBLISHED.values()}) == 24 + 26
    for row in PUBLISHED.values():
        assert row.variant in list_models()
        assert (row.top1 is None) == (row.classes != 1000)
        size = "_1k_224" if row.tag in ("in1k", "fcmae") else f"_{row.image_size}"
        assert size in row.file
        assert row.address.startswith("https://dl.fbaipublicfiles.com/convnext/")
        assert row.address.endswith(f"/{row.file}")
        assert row.licence == ("CC-BY-NC-4.0" if "v2" in row.variant else "MIT")
    assert PUBLISHED["convnext_base", "in1k_384"].file == "convnext_base_1k_384.pth"  # timm's table has neither
    assert PUBLISHED["convnext_isotropic_large", "in1k"].file == "convnext_iso_large_1k_224_ema.pth"


def timms(row: Any) -> Any:
    """What timm knows of the same checkpoint."""
    return timm.get_pretrained_cfg(row.hub.removeprefix("timm/"))


@pytest.mark.parametrize("row", [row for row in PUBLISHED.values() if row.hub], ids=lambda row: row.hub)
def test_timm_has_the_same_file(row: Any) -> None:
    theirs = timms(row)
    assert theirs.hf_hub_id == row.hub
    assert theirs.hf_hub_filename is None  # the hub's usual name
    assert theirs.url == row.address
    assert (theirs.num_classes, theirs.input_size) == (row.classes, (3, row.image_size, row.image_size))
    # timm names its own licence for what the authors published under MIT
    assert theirs.license == {"MIT": "apache-2.0"}.get(row.licence, row.licence.lower())


def test_every_copy_of_timms_is_named() -> None:
    known: list[Any] = [timm.get_pretrained_cfg(name) for name in timm.list_pretrained("convnext*")]
    theirs = {entry.hf_hub_id: entry.url for entry in known if "fbaipublicfiles.com/convnext/" in str(entry.url)}
    assert theirs == {row.hub: row.address for row in PUBLISHED.values() if row.hub}
    without = [row for row in PUBLISHED.values() if row.hub is None]
    assert {(row.variant, row.tag) for row in without} == {
        ("convnext_base", "in1k_384"),
        ("convnext_large", "in1k_384"),
        *((f"convnext_isotropic_{size}", "in1k") for size in ("small", "base", "large")),
    }


def test_what_a_file_was_trained_on() -> None:
    data = {row.tag: row.data for row in PUBLISHED.values()}
    assert data["in22k_in1k_512"] == data["in22k_in1k"] == "ImageNet-22K, then ImageNet-1K"
    assert data["in1k_384"] == data["in1k"] == "ImageNet-1K"
    assert data["in22k"] == "ImageNet-22K"
    assert data["fcmae"] == "ImageNet-1K without labels (FCMAE)"


@pytest.mark.parametrize(("tag", "params"), [("in1k", 3_708_400), ("fcmae", 3_708_400 - 321_000 - 640)])
def test_size_of_the_tensors(tag: str, params: int) -> None:
    row = PUBLISHED["convnextv2_atto", tag]
    assert row.tensor_bytes == 4 * params
    if tag == "in1k":
        tensors = create_model("convnextv2_atto").state_dict()
        assert row.tensor_bytes < len(save(tensors)) < 1.01 * row.tensor_bytes


def test_the_largest_size_is_counted_without_making_the_network() -> None:
    before = torch.get_rng_state()
    assert PUBLISHED["convnextv2_huge", "in1k"].tensor_bytes == 4 * 660_289_640
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.usefixtures("places")
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


@pytest.mark.usefixtures("places")
def test_the_command_prints_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "convnext_isotropic_*", "--pretrained"]) == 0
    said = capsys.readouterr().out
    assert said.count("convnext_isotropic_") == 3


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["convnext_tinny"], "convnext_tiny"),
        (["--image-size", "384"], "--image-size"),
    ],
)
def test_wrong_arguments(arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--pretrained", *arguments]) == 2
    assert named in capsys.readouterr().err
