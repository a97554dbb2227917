"""Tensors out of files: whatever a checkpoint wraps them in; a hostile file runs nothing, a damaged one is named."""

import argparse
import collections
import os
import pickle
import subprocess
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import convnext
from convnext.errors import RunError, UsageError
from convnext.weights import load_weights
from convnext.weights.layouts import OFFICIAL, TIMM, TIMM_CONV_MLP, TORCHVISION, TRANSFORMERS, Layout
from convnext.weights.reading import WRAPPERS, read_weights
from convnext.weights.weights_file import open_weights
from tests.weights.peers import same, tiny

LONG = 10**12
BESIDE = {"epoch": 3, "best": 0.5, "args": ["a"], "optimizer": {"state": {0: torch.ones(1)}}, "loss": None}


def refused(path: Path, kind: type[Exception] = RunError, says: str = "") -> str:
    """The error with which every way to open a file refuses it; a model keeps its weights."""
    model, before = tiny(seed=1), tiny(seed=1)
    said = ""
    for way in (open_weights, lambda path: load_weights(model, path), lambda path: convnext.load(path, "cpu")):
        with pytest.raises(kind, match=says) as error:
            way(path)
        said = str(error.value)
        assert path.name in said
    assert same(model, before)
    return said


@cache
def weights(grn: bool) -> Mapping[str, Tensor]:
    return tiny(grn=grn).state_dict()


@given(
    layout=st.sampled_from([OFFICIAL, TIMM, TIMM_CONV_MLP, TORCHVISION, TRANSFORMERS]),
    grn=st.booleans(),
    around=st.lists(st.sampled_from(("module.", "_orig_mod.")), max_size=2, unique=True),
    before=st.lists(st.sampled_from(("backbone.", "visual.trunk.", "student.", "model.", "a.b.c.")), max_size=2),
    wrappers=st.lists(st.sampled_from(WRAPPERS), max_size=3),
    beside=st.sets(st.sampled_from(sorted(BESIDE))),
    order=st.randoms(use_true_random=False),
    form=st.sampled_from(["zip", "legacy", "safetensors"]),
)
@settings(max_examples=60, deadline=None, derandomize=True, database=None)
def test_the_same_tensors_arrive(
    layout: Layout,
    grn: bool,
    around: list[str],
    before: list[str],
    wrappers: list[str],
    beside: set[str],
    order: Any,
    form: str,
) -> None:
    official = weights(grn and layout is not TORCHVISION)
    prefix = "".join(around + before)
    named = [(prefix + name, tensor) for name, tensor in layout.from_official(official).items()]
    order.shuffle(named)
    with TemporaryDirectory() as folder:
        path = Path(folder, "a.pth")
        if form == "safetensors":
            safetensors.torch.save_file({name: tensor.contiguous() for name, tensor in named}, path)
        else:
            document: dict[str, Any] = dict(named)
            for wrapper in wrappers:
                document = {name: BESIDE[name] for name in sorted(beside)} | {wrapper: document}
            torch.save(document, path, _use_new_zipfile_serialization=form == "zip")
        opened = open_weights(path)
        assert opened.layout.startswith(layout.name)
        assert opened.weights.keys() == official.keys()
        assert all(torch.equal(opened.weights[name], tensor) for name, tensor in official.items())


@pytest.mark.parametrize(
    ("wrappers", "taken"),
    [(("model_ema", "model"), "model"), (("state_dict", "state_dict_ema"), "state_dict_ema")],  # as timm
)
def test_one_of_several_wrappers_is_taken_with_a_note(wrappers: tuple[str, ...], taken: str, tmp_path: Path) -> None:
    models = {name: tiny(seed) for seed, name in enumerate(wrappers)}
    torch.save({name: model.state_dict() for name, model in models.items()}, tmp_path / "a.pth")
    loaded = load_weights(model := tiny(seed=5), tmp_path / "a.pth")
    assert same(model, models[taken])
    (note,) = loaded.notes
    assert note.startswith("a.pth")
    assert note.endswith(taken)


@pytest.mark.parametrize("zipped", [True, False])
def test_harmless_objects_beside_the_weights_are_read(zipped: bool, tmp_path: Path) -> None:
    beside = {
        "best": np.float64(83.1),
        "others": [np.float32(1), np.int64(2), np.bool_(True)],
        "args": argparse.Namespace(lr=4e-3, names=["a"]),
        "milestones": collections.Counter({30: 1}),
        "parameter": torch.nn.Parameter(torch.ones(1)),
        "plain": [b"bytes", {1, 2}, torch.Size([1]), torch.device("cpu"), torch.float16, 10**30, {0.5: None}],
    }
    torch.save({"model": tiny().state_dict(), **beside}, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    read, _ = read_weights(tmp_path / "a.pth")
    assert all(torch.equal(read[name], value) for name, value in tiny().state_dict().items())


class Call:
    """An object whose reading calls a function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


ATTACKS: dict[str, Callable[[str], Any]] = {
    "posix.system": lambda proof: Call(os.system, f"touch '{proof}'"),
    "builtins.eval": lambda proof: Call(eval, f"open({proof!r}, 'w')"),
    "builtins.exec": lambda proof: {"args": Call(exec, f"open({proof!r}, 'w')")},
    "subprocess.Popen": lambda proof: Call(subprocess.Popen, ["touch", proof]),
    "_io.open": lambda proof: Call(open, proof, "w"),
    "nested": lambda proof: Call(list, Call(map, os.system, [f"touch '{proof}'"])),
}
FORMATS: dict[str, Callable[[Path, Any], Any]] = {
    "zip": lambda path, code: torch.save({"model": tiny().state_dict(), "args": code}, path),
    "legacy": lambda path, code: torch.save({"model": {}, "args": code}, path, _use_new_zipfile_serialization=False),
    **{
        f"pickle, protocol {protocol}": lambda path, code, protocol=protocol: path.write_bytes(
            pickle.dumps({"model": 1, "args": code}, protocol)
        )
        for protocol in (0, 2, 5)
    },
}


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("attack", ATTACKS)
def test_hostile_files_run_no_code(attack: str, format: str, tmp_path: Path) -> None:
    path, proof = tmp_path / "a.pth", tmp_path / "it ran"
    FORMATS[format](path, ATTACKS[attack](str(proof)))
    with pytest.raises(RunError) as error:
        read_weights(path)
    said = str(error.value)
    assert str(path) in said
    assert not proof.exists()
    if format in ("zip", "legacy", "pickle, protocol 2"):  # torch does not read the other protocols
        assert "Python objects" in said
        assert "weights_only=False" in said
    if format == "zip":
        assert attack.rpartition(".")[2] in said or attack == "nested"


def test_state_that_would_corrupt_memory_is_ignored(tmp_path: Path) -> None:
    """A numpy dtype with hostile flags makes numpy take the bytes of a scalar for pointers."""
    dtype = b"cnumpy\ndtype\n(X\x02\x00\x00\x00f8\x89\x88tR(K\x03X\x01\x00\x00\x00|NNNK\x08K\x08K\x3ftb"
    scalar = b"cnumpy.core.multiarray\nscalar\n(" + dtype + b"c_codecs\nencode\n"
    scalar += b"(X\x08\x00\x00\x00aaaaaaaaX\x06\x00\x00\x00latin1tRtR"
    with zipfile.ZipFile(tmp_path / "a.pth", "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}X\x04\x00\x00\x00best" + scalar + b"s.")
        archive.writestr("archive/byteorder", "little")
        archive.writestr("archive/version", "3\n")
    refused(tmp_path / "a.pth", says="holds no weights")


def test_the_advice_converts_a_trusted_file(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    for document in ({"model": tiny().state_dict(), "args": Path("x")}, tiny()):
        torch.save(document, path)
        said = refused(path, says="Python objects")
        exec("\n".join(line.strip() for line in said.splitlines() if line.startswith("    ")), {})
        load_weights(model := tiny(seed=1), tmp_path / "a.tensors.pth")
        assert same(model, tiny())


@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")
def test_other_formats_of_torch_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    with tarfile.open(path, "w") as archive:
        archive.add(__file__, "pickle")
    refused(path, says="tar file")
    torch.jit.script(nn.Linear(2, 2)).save(path)  # pyright: ignore[reportAttributeAccessIssue]
    refused(path, says=r"torch\.jit\.load")
    torch.save(tiny().state_dict(), path, pickle_protocol=4)
    refused(path, says="weights_only")


def test_compressed_parts_are_refused(tmp_path: Path) -> None:
    path, plain = tmp_path / "a.pth", tmp_path / "b.pth"
    torch.save({"w": torch.zeros(10**7)}, plain)
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        for record in source.infolist():
            target.writestr(record.filename, source.read(record))
    assert path.stat().st_size < 1_000_000
    refused(path, says="compressed")


@pytest.mark.parametrize("zipped", [True, False])
def test_storages_larger_than_the_file_are_refused(zipped: bool, tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    torch.save({"w": torch.ones(1000)}, tmp_path / "b.pth", _use_new_zipfile_serialization=zipped)
    content = (tmp_path / "b.pth").read_bytes()
    count = b"M" + (1000).to_bytes(2, "little")  # BININT2
    assert count in content
    larger = b"\x8a\x05" + LONG.to_bytes(5, "little")  # LONG1
    if zipped:
        with zipfile.ZipFile(tmp_path / "b.pth") as source, zipfile.ZipFile(path, "w") as target:
            for record in source.infolist():
                target.writestr(record.filename, source.read(record).replace(count, larger))
    else:
        path.write_bytes(content.replace(count, larger))
    refused(path, says="a.pth")


UNREADABLE: dict[str, tuple[Any, str]] = {
    "sparse": (torch.ones(3).to_sparse(), "sparse"),
    "eight bits": (torch.ones(3).to(torch.float8_e4m3fn), "float8"),
    "complex": (torch.ones(3, dtype=torch.complex64), "complex64"),
    "meta": (torch.ones(3, device="meta"), "meta"),
    "unsigned": (torch.ones(3).to(torch.uint16), "uint16"),
    "expanded": (torch.ones(1).expand(LONG), "memory for fewer"),
    "NaN": (torch.tensor([1.0, float("nan")]), "not finite"),
    "infinity": (torch.tensor([1.0, float("inf")]), "not finite"),
}


@pytest.mark.parametrize("kind", UNREADABLE)
def test_tensors_that_are_no_dense_finite_numbers_are_named(kind: str, tmp_path: Path) -> None:
    tensor, says = UNREADABLE[kind]
    torch.save({"the.name": tensor}, tmp_path / "a.pth")
    assert "the.name" in refused(tmp_path / "a.pth", says=says)
    if kind not in ("sparse", "meta", "expanded"):
        safetensors.torch.save_file({"the.name": tensor}, tmp_path / "b.safetensors")
        refused(tmp_path / "b.safetensors", says=says)


@pytest.mark.parametrize(
    "document",
    [{}, {"model": {}}, {"model": {"epoch": 3}}, [torch.ones(3)], torch.ones(3), {None: torch.ones(3)}, "itself"],
    ids=str,
)
def test_documents_without_tensors_by_name(document: Any, tmp_path: Path) -> None:
    if document == "itself":
        document = {}
        document["model"] = document
    torch.save(document, tmp_path / "a.pth")
    refused(tmp_path / "a.pth", says="holds no weights")


@pytest.mark.parametrize("name", ["\x1b[2Jw", "w" * 10_000])
def test_names_that_a_terminal_obeys_are_not_printed(name: str, tmp_path: Path) -> None:
    torch.save({name: torch.ones(2)}, tmp_path / "a.pth")
    said = refused(tmp_path / "a.pth", says="invalid name")
    assert "\x1b" not in said
    assert len(said) < 300 + len(str(tmp_path))


@pytest.mark.parametrize("name", ["a.pth", "a.safetensors", "legacy.pth"])
@pytest.mark.parametrize("size", [0, 5, 5000, -5])
def test_cut_off_files_are_named(name: str, size: int, tmp_path: Path) -> None:
    path = tmp_path / name
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(tiny().state_dict(), path)
    else:
        torch.save(tiny().state_dict(), path, _use_new_zipfile_serialization=name == "a.pth")
    path.write_bytes(path.read_bytes()[:size])
    refused(path, says="again" if size else "empty")


@pytest.mark.parametrize("content", [b"<!doctype html><html>", b"hello, no weights", b"\x89PNG\r\n\x1a\n\0\0\0"])
def test_files_that_hold_no_weights(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.pth").write_bytes(content)
    refused(tmp_path / "a.pth", says="no weights file")


ONE = b'{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
HEADERS: dict[str, tuple[bytes, bytes, int | None]] = {
    "a length beyond the file": (b"{}", b"", 1 << 63),
    "nested": (b'{"a":' * 100_000, b"", None),
    "overlapping": (b'{"a":' + ONE + b',"b":' + ONE + b"}", b"1234", None),
    "beyond the file": (b'{"a":' + ONE.replace(b"4]", b"400]") + b"}", b"1234", None),
    "a shape that overflows": (b'{"a":' + ONE.replace(b"[1]", b"[9223372036854775807,8]") + b"}", b"1234", None),
    "an unknown type": (b'{"a":' + ONE.replace(b"F32", b"F13") + b"}", b"1234", None),
    "not UTF-8": (b'{"\xff":' + ONE + b"}", b"1234", None),
    "no tensors": (b"{}", b"", None),
    "a list": (b"[]", b"", None),
}


@pytest.mark.parametrize("oddity", HEADERS)
def test_odd_headers_of_safetensors(oddity: str, tmp_path: Path) -> None:
    header, values, length = HEADERS[oddity]
    size = (len(header) if length is None else length).to_bytes(8, "little")
    (tmp_path / "a.safetensors").write_bytes(size + header + values)
    refused(tmp_path / "a.safetensors", says="cannot read|holds no weights")


def test_paths_that_lead_to_no_file(tmp_path: Path) -> None:
    (tmp_path / "round.pth").symlink_to("circle.pth")
    (tmp_path / "circle.pth").symlink_to("round.pth")
    (tmp_path / "dangling.pth").symlink_to("nowhere.pth")
    (tmp_path / "folder.pth").mkdir()
    os.mkfifo(tmp_path / "pipe.pth")
    names = ["none.pth", "round.pth", "dangling.pth", "folder.pth", "pipe.pth", "x" * 5000, "\0.pth", "dangling.pth/x"]
    for path in (*(str(tmp_path / name) for name in names), "/dev/zero", "/dev/stdin"):
        for way in (open_weights, lambda path: load_weights(tiny(), path), lambda path: convnext.load(path, "cpu")):
            with pytest.raises(UsageError):
                way(path)
    (tmp_path / "folder.pth" / "recipe.json").write_text("{}")
    with pytest.raises(UsageError, match=r"best\.safetensors"):  # no epoch of the run is done
        load_weights(tiny(), tmp_path / "folder.pth")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    (tmp_path / "a.pth").touch(0o000)
    refused(tmp_path / "a.pth", says="Permission denied")
