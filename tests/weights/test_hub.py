"""Published checkpoints: on this machine, from the hub, from the authors' address, and what is said without either."""

import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from convnext import create_model
from convnext.errors import RunError
from convnext.weights import PUBLISHED, at_hand, fetch
from tests.weights.conftest import Server, put

pytestmark = pytest.mark.usefixtures("places")

ROW = PUBLISHED["convnextv2_atto", "in1k"]
OFFICIAL = "/convnext/convnextv2/im1k/convnextv2_atto_1k_224_ema.pt"
HUB = "/hub/timm/convnextv2_atto.fcmae_ft_in1k/resolve/main/model.safetensors"


@pytest.fixture(scope="module")
def tensors() -> dict[str, torch.Tensor]:
    return create_model("convnextv2_atto").state_dict()


def torch_file(tensors: dict[str, torch.Tensor], folder: Path) -> bytes:
    """The bytes of a file as the authors publish it."""
    torch.save({"model": tensors}, folder / "made.pt")
    return (folder / "made.pt").read_bytes()


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


def test_from_the_hub_first(published_here: Server, tensors: dict[str, torch.Tensor], places: dict[str, Path]) -> None:
    published_here.files[HUB] = content = save(tensors)
    path = fetch("convnextv2_atto", "in1k")
    assert path.read_bytes() == content
    assert path.is_relative_to(places["hf"] / "models--timm--convnextv2_atto.fcmae_ft_in1k" / "snapshots")
    asked = len(published_here.asked)
    assert at_hand("convnextv2_atto", "in1k") == fetch("convnextv2_atto", "in1k") == path
    assert len(published_here.asked) == asked
    assert OFFICIAL not in {request.path for request in published_here.asked}


def test_a_copy_with_another_checksum_is_deleted_and_the_authors_file_taken(
    published_here: Server,
    tensors: dict[str, torch.Tensor],
    places: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    published_here.files[HUB] = save(tensors)
    published_here.files[OFFICIAL] = torch_file(tensors, tmp_path)
    monkeypatch.setattr(Server, "mark", lambda *_: ("ETag", f'"{"a" * 64}"'))
    assert fetch("convnextv2_atto", "in1k") == places["own"] / ROW.file
    assert f"not {'a' * 64}: it is deleted; trying {published_here.address}{OFFICIAL}" in capsys.readouterr().err
    assert not list(places["hf"].rglob("*.safetensors"))
    assert not list(places["hf"].rglob("blobs/*"))


@pytest.mark.parametrize("own", [True, False])
def test_from_the_authors_where_the_hub_has_none(
    own: bool,
    published_here: Server,
    tensors: dict[str, torch.Tensor],
    places: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if not own:
        monkeypatch.delenv("CONVNEXT_WEIGHTS")
    published_here.files[OFFICIAL] = content = torch_file(tensors, tmp_path)
    published_here.cuts = [5_000_000]
    monkeypatch.setattr("convnext.weights.download.WAITS", (0.01,))
    path = fetch("convnextv2_atto", "in1k")
    assert path == places["own" if own else "cache"] / ROW.file
    assert path.read_bytes() == content
    said = capsys.readouterr().err
    assert "timm/convnextv2_atto.fcmae_ft_in1k on the Hugging Face hub: " in said
    assert f"trying {published_here.address}{OFFICIAL}" in said
    assert [request.range for request in published_here.asked if request.path == OFFICIAL] == [None, "bytes=5000000-"]
    assert fetch("convnextv2_atto", "in1k") == path


def test_a_file_smaller_than_its_tensors_is_refused(published_here: Server, places: dict[str, Path]) -> None:
    published_here.files[OFFICIAL] = b"<html>sign in first</html>"
    with pytest.raises(RunError, match=f"it has 26 bytes, and its tensors alone take {4 * 3_708_400:,}. It is deleted"):
        fetch("convnextv2_atto", "in1k")
    assert not list(places["own"].glob("convnextv2*"))


def test_checksum_and_size_of_the_table_are_kept_to(published_here: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    published_here.files[OFFICIAL] = b"1" * ROW.tensor_bytes
    key = ("convnextv2_atto", "in1k")
    monkeypatch.setitem(PUBLISHED, key, replace(ROW, sha256="b" * 64))
    with pytest.raises(RunError, match=f"its SHA-256 is [0-9a-f]{{64}}, not {'b' * 64}"):
        fetch(*key)
    monkeypatch.setitem(PUBLISHED, key, replace(ROW, bytes=7))
    with pytest.raises(RunError, match=f"has {ROW.tensor_bytes:,} bytes, not 7"):
        fetch(*key)


def lines_for(places: dict[str, Path], base: str) -> list[str]:
    """What to do by hand, for the checkpoint of these tests."""
    return [
        f"- get {base}/convnextv2/im1k/convnextv2_atto_1k_224_ema.pt (14.8 MB or more) and put "
        f"convnextv2_atto_1k_224_ema.pt into {places['own']} here, or set CONVNEXT_WEIGHTS to the folder that has it",
        "- run `hf download timm/convnextv2_atto.fcmae_ft_in1k model.safetensors` and copy the folder "
        f"models--timm--convnextv2_atto.fcmae_ft_in1k of its cache into {places['hf']} here",
    ]


def test_not_to_be_had_anywhere(published_here: Server, places: dict[str, Path]) -> None:
    with pytest.raises(RunError) as raised:
        fetch("convnextv2_atto", "in1k")
    first, *ways = str(raised.value).splitlines()
    assert first.startswith("no in1k weights of convnextv2_atto on this machine (timm/convnextv2_atto.fcmae_ft_in1k on")
    assert f"{published_here.address}{OFFICIAL}: the server answers 404 Not Found)" in first
    assert [way.strip() for way in ways] == [
        *lines_for(places, f"{published_here.address}/convnext"),
        "With HF_HUB_OFFLINE=1 this program asks no network and says this at once.",
    ]
    assert not list(places["own"].glob("convnextv2*"))


def test_offline_asks_no_network(
    published_here: Server, places: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(RunError) as raised:
        fetch("convnextv2_atto", "in1k")
    first, *ways = str(raised.value).splitlines()
    assert "(HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set, so no download was tried)" in first
    assert [way.strip() for way in ways] == [
        *lines_for(places, f"{published_here.address}/convnext"),
        "- unset HF_HUB_OFFLINE and TRANSFORMERS_OFFLINE to let this program download it",
    ]
    with pytest.raises(RunError) as raised:
        fetch("convnext_isotropic_small", "in1k")
    assert "hf download" not in str(raised.value)
    assert not published_here.asked


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
    words = [sys.executable, "-c", CODE, base]
    named = {name: str(folder) for name, folder in folders.items()}
    return subprocess.run(words, env=os.environ | named | environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("host", ["127.0.0.1:9", pytest.param("weights.invalid", marks=pytest.mark.slow)])
def test_without_a_network_the_word_comes_soon(host: str, tmp_path: Path) -> None:
    start = time.perf_counter()
    done = fetch_elsewhere(f"http://{host}/convnext", tmp_path, HF_ENDPOINT=f"http://{host}")
    assert time.perf_counter() - start < 10 + 5  # 5 to start Python and torch
    assert done.returncode == 1
    assert f"http://{host}{OFFICIAL}: no connection (" in done.stderr
    assert f"put convnextv2_atto_1k_224_ema.pt into {tmp_path / 'own'} here" in done.stderr
    assert f"of its cache into {tmp_path / 'home' / 'hub'} here" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_the_environment_names_another_hub(server: Server, tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    server.files[HUB] = content = save(tensors)
    done = fetch_elsewhere("http://weights.invalid", tmp_path, HF_ENDPOINT=f"{server.address}/hub")
    assert done.returncode == 0, done.stderr
    path = Path(done.stdout.strip())
    assert path.read_bytes() == content
    assert path.is_relative_to(tmp_path / "home" / "hub" / "models--timm--convnextv2_atto.fcmae_ft_in1k")
    asked = len(server.asked)
    again = fetch_elsewhere("http://weights.invalid", tmp_path, HF_ENDPOINT=server.address, HF_HUB_OFFLINE="1")
    assert (again.stdout.strip(), len(server.asked)) == (str(path), asked)
