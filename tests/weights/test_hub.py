"""Published checkpoints: from the hub, from the authors, and without either."""

import errno
import os
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

from convnext import create_model
from convnext.errors import RunError
from convnext.weights import PUBLISHED, at_hand, fetch
from tests.weights.conftest import Server, put

pytestmark = pytest.mark.usefixtures("places")

NAME = ("convnextv2_atto", "in1k")
ROW = PUBLISHED[NAME]
OFFICIAL = "/convnext/convnextv2/im1k/convnextv2_atto_1k_224_ema.pt"
HUB = "/hub/timm/convnextv2_atto.fcmae_ft_in1k/resolve/main/model.safetensors"


@pytest.fixture(scope="module")
def tensors() -> dict[str, torch.Tensor]:
    return create_model("convnextv2_atto").state_dict()


@pytest.fixture(scope="module")
def authors(tensors: dict[str, torch.Tensor], tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The bytes of a file as the authors publish it."""
    path = tmp_path_factory.mktemp("authors") / "made.pt"
    torch.save({"model": tensors}, path)
    return path.read_bytes()


def left(folder: Path) -> set[str]:
    """Names of the files in a folder, except locks."""
    return {path.name for path in folder.iterdir() if not path.name.endswith(".lock")} if folder.exists() else set()


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


def test_timms_copy_in_the_hubs_cache_is_at_hand(places: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    repository = places["hf"] / "models--timm--convnext_tiny.fb_in22k"
    put(repository / "refs", "main").write_text("0" * 40)
    path = put(repository / "snapshots" / ("0" * 40), "model.safetensors")
    assert at_hand("convnext_tiny") == at_hand("convnext_tiny", "in22k") == fetch("convnext_tiny", "in22k") == path
    assert at_hand("convnext_tiny", "in1k") is None
    official = put(places["cache"], "convnext_tiny_22k_224.pth")
    assert at_hand("convnext_tiny", "in22k") == official


def test_from_the_hub_first_and_once(
    published_here: Server, tensors: dict[str, torch.Tensor], places: dict[str, Path]
) -> None:
    published_here.files[HUB] = content = save(tensors)
    path = fetch(*NAME)
    assert path.read_bytes() == content
    assert path.is_relative_to(places["hf"] / "models--timm--convnextv2_atto.fcmae_ft_in1k" / "snapshots")
    asked = len(published_here.requests)
    assert at_hand(*NAME) == fetch(*NAME) == path
    assert len(published_here.requests) == asked
    assert OFFICIAL not in {path for _, path in published_here.requests}


def test_a_copy_with_another_checksum_is_deleted_and_the_authors_file_taken(
    published_here: Server, tensors: dict[str, torch.Tensor], authors: bytes, places: dict[str, Path], capsys: Any
) -> None:
    published_here.files |= {HUB: save(tensors), OFFICIAL: authors}
    published_here.etag = "a" * 64
    assert fetch(*NAME) == places["own"] / ROW.file
    said = capsys.readouterr().err
    assert "a" * 64 in said
    assert f"{published_here.address}{OFFICIAL}" in said
    assert not list(places["hf"].rglob("*.safetensors"))
    assert not list(places["hf"].rglob("blobs/*"))


@pytest.mark.parametrize("own", [True, False])
def test_from_the_authors_where_the_hub_has_none(
    own: bool, published_here: Server, authors: bytes, places: dict[str, Path], monkeypatch: Any, capsys: Any
) -> None:
    if not own:
        monkeypatch.delenv("CONVNEXT_WEIGHTS")
    published_here.files[OFFICIAL] = authors
    with ThreadPoolExecutor(3) as pool:  # as the ranks of a training: one downloads, the others wait
        paths = {done.result() for done in [pool.submit(fetch, *NAME) for _ in range(3)]}
    folder = places["own" if own else "cache"]
    assert paths == {folder / ROW.file}
    assert (folder / ROW.file).read_bytes() == authors
    assert left(folder) == {ROW.file}
    assert published_here.requests.count(("GET", OFFICIAL)) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert "timm/convnextv2_atto.fcmae_ft_in1k" in said.err
    assert f"{published_here.address}{OFFICIAL}" in said.err
    assert socket.getdefaulttimeout() is None


def test_what_is_not_the_whole_file_never_takes_its_name(
    published_here: Server, authors: bytes, places: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("convnext.weights.hub.TIMEOUT", 0.3)

    def refused(content: bytes, says: str) -> None:
        published_here.files[OFFICIAL] = content
        with pytest.raises(RunError, match=says) as error:
            fetch(*NAME)
        assert f"{published_here.address}{OFFICIAL}" in str(error.value)
        assert left(places["own"]) == set()

    refused(b"<html>sign in first</html>", f"{ROW.tensor_bytes:,}")
    half = len(authors) // 2
    refused(authors[:half] + b"????" + authors[half + 4 :], "checksum")
    published_here.cut = 5_000_000
    refused(authors, f"5,000,000 bytes of {len(authors):,}")
    published_here.pause = 1.0
    refused(authors, "timed out")
    published_here.cut, published_here.pause = None, 0.0
    assert fetch(*NAME).read_bytes() == authors


def test_a_full_disk_and_a_folder_that_cannot_be_written_to_are_named(
    published_here: Server, authors: bytes, places: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    published_here.files[OFFICIAL] = authors

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(torch.hub, "download_url_to_file", full)
        with pytest.raises(RunError, match=f"disk is full.*{ROW.file}"):
            fetch(*NAME)
    places["own"].rename(places["own"].with_name("elsewhere"))
    places["own"].write_text("a file")
    with pytest.raises(RunError, match=f"cannot write .*{ROW.file}"):
        fetch(*NAME)


def test_not_to_be_had_anywhere(published_here: Server, places: dict[str, Path]) -> None:
    with pytest.raises(RunError, match="404") as raised:
        fetch(*NAME)
    said = str(raised.value)
    for named in (
        f"{published_here.address}{OFFICIAL}",
        ROW.file,
        str(places["own"]),
        "CONVNEXT_WEIGHTS",
        "hf download",
    ):
        assert named in said
    assert str(places["hf"]) in said
    assert left(places["own"]) == set()


@pytest.mark.parametrize("variable", ["HF_HUB_OFFLINE", "CONVNEXT_OFFLINE"])
def test_offline_uses_no_network(
    variable: str, published_here: Server, places: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    if variable == "HF_HUB_OFFLINE":
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    else:
        monkeypatch.setenv(variable, "1")
    with pytest.raises(RunError, match=variable) as raised:
        fetch(*NAME)
    assert ROW.file in str(raised.value)
    assert str(places["own"]) in str(raised.value)
    with pytest.raises(RunError) as raised:
        fetch("convnext_isotropic_small", "in1k")
    assert "hf download" not in str(raised.value)
    assert not published_here.requests


CODE = """
import sys
from convnext.errors import RunError
from convnext.weights import fetch, published
published.BASE = sys.argv[1]
try:
    print(fetch("convnextv2_atto", "in1k"))
except RunError as error:
    sys.exit(str(error))
"""


def fetch_elsewhere(base: str, tmp_path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Fetch in a process of its own, with an environment of its own."""
    folders = {"CONVNEXT_WEIGHTS": tmp_path / "own", "TORCH_HOME": tmp_path / "torch", "HF_HOME": tmp_path / "home"}
    command = [sys.executable, "-c", CODE, base]
    named = {name: str(folder) for name, folder in folders.items()}
    return subprocess.run(command, env=os.environ | named | environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("host", ["127.0.0.1:9", pytest.param("weights.invalid", marks=pytest.mark.slow)])
def test_without_a_network_the_error_comes_soon(host: str, tmp_path: Path) -> None:
    start = time.perf_counter()
    done = fetch_elsewhere(f"http://{host}/convnext", tmp_path, HF_ENDPOINT=f"http://{host}")
    assert time.perf_counter() - start < 10 + 5  # 5 to start Python and torch
    assert done.returncode == 1
    for named in (f"http://{host}{OFFICIAL}", ROW.file, str(tmp_path / "own"), str(tmp_path / "home" / "hub")):
        assert named in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_the_environment_names_another_hub(server: Server, tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    server.files[HUB] = content = save(tensors)
    done = fetch_elsewhere("http://weights.invalid", tmp_path, HF_ENDPOINT=f"{server.address}/hub")
    assert done.returncode == 0, done.stderr
    path = Path(done.stdout.strip())
    assert path.read_bytes() == content
    assert path.is_relative_to(tmp_path / "home" / "hub" / "models--timm--convnextv2_atto.fcmae_ft_in1k")
    asked = len(server.requests)
    again = fetch_elsewhere("http://weights.invalid", tmp_path, HF_ENDPOINT=server.address, HF_HUB_OFFLINE="1")
    assert (again.stdout.strip(), len(server.requests)) == (str(path), asked)
