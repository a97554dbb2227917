"""The published checkpoints by name: the table, where their files are found, and downloads that fail."""

import errno
import http.client
import socket
import urllib.error
from pathlib import Path
from typing import Any

import pytest
import torch

from convnext import create_model, list_models
from convnext.errors import RunError, UsageError
from convnext.weights import PUBLISHED, at_hand, fetch, resolve


@pytest.fixture(autouse=True)
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """The three folders that are looked into, in their order, none of them there yet."""
    named = {
        "CONVNEXT_WEIGHTS": tmp_path / "own",
        "TORCH_HOME": tmp_path / "torch",
        "XDG_CACHE_HOME": tmp_path / "cache",
    }
    for name, folder in named.items():
        monkeypatch.setenv(name, str(folder))
    return {
        "own": tmp_path / "own",
        "hub": tmp_path / "torch" / "hub" / "checkpoints",
        "cache": tmp_path / "cache" / "convnext" / "weights",
    }


def put(folder: Path, name: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(b"weights")
    return folder / name


def offline(monkeypatch: pytest.MonkeyPatch, error: Exception) -> list[str]:
    """Let every download fail; returns the addresses that were asked for."""
    asked = []

    def refuse(address: Any, *_: Any, **__: Any) -> None:
        asked.append(getattr(address, "full_url", address))
        raise error

    monkeypatch.setattr("torch.hub.urlopen", refuse)
    return asked


@pytest.mark.parametrize("row", PUBLISHED.values(), ids=lambda row: row.file)
def test_table(row: Any) -> None:
    assert row.variant in list_models()
    assert (row.top1 is None) == (row.classes != 1000)
    size = "_1k_224" if row.tag in ("in1k", "fcmae") else f"_{row.image_size}"
    assert size in row.file
    assert row.address.startswith("https://dl.fbaipublicfiles.com/convnext/")
    assert row.address.endswith(f"/{row.file}")
    assert row.file.startswith(row.variant.replace("isotropic", "iso") + "_")


def test_table_is_whole() -> None:
    assert len(PUBLISHED) == 24 + 26
    assert len({row.file for row in PUBLISHED.values()}) == len(PUBLISHED)
    assert {row.licence for row in PUBLISHED.values() if "v2" in row.variant} == {"CC-BY-NC-4.0"}
    assert {row.licence for row in PUBLISHED.values() if "v2" not in row.variant} == {"MIT"}


@pytest.mark.parametrize(
    ("variant", "tag", "address", "classes", "size"),
    [
        ("convnext_tiny", "in1k", "convnext_tiny_1k_224_ema.pth", 1000, 224),
        ("convnext_base", "in22k", "convnext_base_22k_224.pth", 21841, 224),
        ("convnext_xlarge", "in22k_in1k_384", "convnext_xlarge_22k_1k_384_ema.pth", 1000, 384),
        ("convnext_isotropic_large", "in1k", "convnext_iso_large_1k_224_ema.pth", 1000, 224),
        ("convnextv2_atto", "in1k", "convnextv2/im1k/convnextv2_atto_1k_224_ema.pt", 1000, 224),
        ("convnextv2_huge", "in22k_in1k_512", "convnextv2/im22k/convnextv2_huge_22k_512_ema.pt", 1000, 512),
        ("convnextv2_pico", "fcmae", "convnextv2/pt_only/convnextv2_pico_1k_224_fcmae.pt", 0, 224),
    ],
)
def test_rows(variant: str, tag: str, address: str, classes: int, size: int) -> None:
    row = PUBLISHED[variant, tag]
    assert row.address == f"https://dl.fbaipublicfiles.com/convnext/{address}"
    assert (row.classes, row.image_size) == (classes, size)


@pytest.mark.parametrize("place", ["own", "hub", "cache"])
def test_at_hand(place: str, places: dict[str, Path]) -> None:
    assert at_hand("convnext_tiny", "in1k") is None
    assert at_hand("convnext_tiny") is None
    path = put(places[place], "convnext_tiny_1k_224_ema.pth")
    assert at_hand("convnext_tiny", "in1k") == at_hand("convnext_tiny") == path
    assert at_hand("convnext_tiny", "in22k") is None
    assert at_hand("convnext_small") is None
    assert at_hand("timm/resnet18") is None
    assert fetch("convnext_tiny", "in1k") == path


def test_own_folder_goes_first(places: dict[str, Path]) -> None:
    name = "convnext_tiny_1k_224_ema.pth"
    paths = [put(places[place], name) for place in ("cache", "hub", "own")]
    assert at_hand("convnext_tiny", "in1k") == paths[-1]


@pytest.mark.parametrize(
    "error",
    [
        urllib.error.URLError(socket.gaierror(-3, "Temporary failure in name resolution")),
        urllib.error.HTTPError("https://there", 403, "Forbidden", http.client.HTTPMessage(), None),
        TimeoutError("timed out"),
        http.client.RemoteDisconnected("closed"),
    ],
    ids=["no network", "forbidden", "timeout", "disconnected"],
)
def test_fetch_without_network(error: Exception, places: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    asked = offline(monkeypatch, error)
    with pytest.raises(RunError) as raised:
        fetch("convnextv2_tiny", "in22k_in1k")
    address = "https://dl.fbaipublicfiles.com/convnext/convnextv2/im22k/convnextv2_tiny_22k_224_ema.pt"
    assert asked == [address]
    assert address in str(raised.value)
    assert f"put it into {places['own']}" in str(raised.value)
    assert not list(places["own"].iterdir())


def test_fetch_on_a_full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    offline(monkeypatch, OSError(errno.ENOSPC, "No space left on device"))
    with pytest.raises(RunError, match="the disk is full"):
        fetch("convnext_tiny", "in1k")


@pytest.mark.parametrize("own", [True, False])
def test_fetch_downloads_once(own: bool, places: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    if not own:
        monkeypatch.delenv("CONVNEXT_WEIGHTS")
    asked = []

    def download(address: str, path: str) -> None:
        asked.append(address)
        Path(path).write_bytes(b"weights")

    monkeypatch.setattr("torch.hub.download_url_to_file", download)
    path = fetch("convnext_tiny", "in1k")
    assert path == places["own" if own else "cache"] / "convnext_tiny_1k_224_ema.pth"
    assert fetch("convnext_tiny", "in1k") == path
    assert len(asked) == 1


def test_resolve_tag(places: dict[str, Path]) -> None:
    path = put(places["own"], "convnextv2_atto_1k_224_ema.pt")
    resolved = resolve("in1k", "convnextv2_atto")
    assert resolved.path == path
    assert resolved.notes == (
        "convnextv2_atto_1k_224_ema.pt is licensed under CC-BY-NC-4.0: for non-commercial use only",
    )
    put(places["own"], "convnext_tiny_22k_224.pth")
    assert resolve("in22k", "convnext_tiny").notes == ()


def test_resolve_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(create_model("convnext_atto").state_dict(), "mine")
    assert resolve("mine", "convnext_atto").path == Path("mine")
    run = put(tmp_path / "runs" / "digits", "best.safetensors")
    assert resolve(str(run.parent), "timm/resnet18").path == run
    assert resolve("./mine", "convnext_atto").path == Path("mine")


@pytest.mark.parametrize(
    ("name", "variant", "message"),
    [
        ("in1", "convnext_tiny", r"unknown weights 'in1': did you mean in1k.*Or give the path"),
        ("in1k_384", "convnext_tiny", r"unknown published weights of convnext_tiny 'in1k_384': did you mean .*in1k"),
        ("in1k", "convnext_atto", "no published weights 'in1k' for convnext_atto: there are some for convnext_base, "),
        ("in1k", "timm/resnet18", "no published weights 'in1k' for timm/resnet18"),
        ("mine", "roadmap_micro/resnet", "no weights at mine, and none are published for roadmap_micro/resnet"),
        ("runs/none", "convnext_tiny", "no weights at runs/none"),
        ("none.pth", "convnext_tiny", r"no weights at none\.pth"),
    ],
)
def test_resolve_unknown(name: str, variant: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        resolve(name, variant)
