"""A stranger's weights file: nothing in it runs, it costs no more than it holds, and the error names it."""

import argparse
import collections
import json
import os
import pickle
import resource
import tarfile
import time
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor

import convnext
from convnext.errors import RunError, UsageError
from convnext.weights import load_weights
from convnext.weights.layouts.official import SPARSE
from convnext.weights.weights_file import open_weights
from tests.weights.hostile import LAUGHS, document, tensor, tiny, whole, write_safetensors, write_zip

Write = Callable[[Path], Any]
LONG = 10**12


def refused(path: Path, kind: type[Exception] = RunError, says: str = "") -> str:
    """The one error with which every way to open a file refuses it, soon and in little memory; a network keeps."""
    model, before, start = tiny(seed=1), tiny(seed=1).state_dict(), time.perf_counter()
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    ways = (open_weights, lambda path: load_weights(model, path), lambda path: convnext.load(path, "cpu"))
    said = []
    for way in ways:
        with pytest.raises(kind, match=says) as error:
            way(path)
        assert path.name in str(error.value)
        said.append(str(error.value))
    assert time.perf_counter() - start < 60  # no hang, on a machine that does other things as well
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - held < 200_000  # kB
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    return said[0]


class Runs:
    """What an attacker's file does when it is read."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch '{self.proof}'",)


def write_tar(path: Path) -> None:
    with tarfile.open(path, "w") as archive:
        archive.add(__file__, "pickle")


CODE: dict[str, Callable[[Path, Any], Any]] = {
    "zip": lambda path, code: torch.save({"model": tiny().state_dict(), "args": code}, path),
    "legacy": lambda path, code: torch.save({"model": {}, "args": code}, path, _use_new_zipfile_serialization=False),
    **{
        f"pickle, protocol {protocol}": lambda path, code, protocol=protocol: path.write_bytes(
            pickle.dumps({"model": 1, "args": code}, protocol)
        )
        for protocol in range(6)
    },
}


@pytest.mark.parametrize("form", CODE)
def test_code_is_named_and_how_to_convert_it(form: str, tmp_path: Path) -> None:
    path, proof = tmp_path / "a.pth", tmp_path / "it ran"
    CODE[form](path, Runs(proof))
    said = refused(
        path, says=r"it holds Python objects \((posix|nt)\.system\) beside tensors, and reading those can run"
    )
    assert f"    document = torch.load({str(path)!r}, weights_only=False)\n    torch.save(document['model'], " in said
    assert not proof.exists()


def test_what_is_advised_converts_a_trusted_file(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    torch.save({"model": tiny().state_dict(), "args": Path("x")}, path)
    said = refused(path, says=r"pathlib\.\w*Path")
    lines = [line.strip() for line in said.splitlines() if line.startswith("    ")]
    exec("\n".join(lines), {})
    load_weights(tiny(seed=1), tmp_path / "a.tensors.pth")


def test_whole_modules_tar_files_and_programs_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    torch.save(tiny(), path)
    assert "torch.save(document.state_dict(), " in refused(
        path, says=r"ConvNeXt, torch\.nn\.modules.* and \d+ more\) beside"
    )
    write_tar(path)
    refused(path, says="it is a tar file, as torch wrote before 2017")
    write_zip(path, document(tensor()))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("archive/constants.pkl", b"")
    refused(path, says=r"TorchScript program.*torch\.jit\.load")
    torch.save(tiny().state_dict(), path, pickle_protocol=4)
    refused(path, says=r"reader of tensors alone does not know")


@pytest.mark.parametrize("zipped", [True, False])
def test_plain_values_beside_the_weights_are_read(zipped: bool, tmp_path: Path) -> None:
    beside = {
        "best": np.float64(83.1),
        "others": [np.float32(1), np.int64(2), np.bool_(True)],
        "args": argparse.Namespace(lr=4e-3, names=["a"]),
        "milestones": collections.Counter({30: 1}),
        "parameter": torch.nn.Parameter(torch.ones(1)),
        "plain": [b"bytes", {1, 2}, torch.Size([1]), torch.device("cpu"), torch.float16, 10**30, {0.5: None}],
    }
    torch.save({"model": tiny().state_dict(), **beside}, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    opened = open_weights(tmp_path / "a.pth")
    assert all(torch.equal(opened.weights[name], value) for name, value in tiny().state_dict().items())


NUMBERS = b"cnumpy\ndtype\n(X\x02\x00\x00\x00f8\x89\x88tR"
ODD: dict[str, tuple[bytes, str]] = {
    "a tensor larger than its storage": (tensor(size=(LONG,)), "_rebuild_tensor_v2 as torch.save does not"),
    "a negative stride": (tensor(stride=(-1,)), "as torch.save does not"),
    "a storage larger than the file": (tensor(values=LONG, size=(LONG,)), "has fewer"),
    "one value seen a million million times": (tensor(size=(LONG,), stride=(0,)), "memory for fewer"),
    "memory": (b"cbuiltins\nbytearray\n" + whole(1 << 40) + b"\x85R", r"Python objects \(builtins.bytearray\)"),
    "laughs as a key": (b"}" + LAUGHS + b"Ns", "a key of a dictionary"),
    "laughs as a function": (LAUGHS + b")R", "it calls what is no function"),
    "laughs as a tensor": (LAUGHS + b"Q", "it mentions tensors as"),
    "laughs as a set": (b"cbuiltins\nset\n]" + LAUGHS + b"a\x85R", "calls builtins.set as"),
    "slow bytes": (b"c_codecs\nencode\nX\x01\x00\x00\x00aX\x08\x00\x00\x00punycode\x86R", "calls _codecs.encode as"),
    "numpy's objects": (NUMBERS.replace(b"f8", b"O8"), r"calls numpy\.dtype as"),
    "numpy's flags": (NUMBERS + b"(K\x03X\x01\x00\x00\x00|NNNK\x08K\x08K\x3ftb", "it sets attributes"),
    "a method of a dictionary": (
        b"ccollections\nOrderedDict\n)R}X\x05\x00\x00\x00itemsNsb",
        "it sets attributes of what has none",
    ),
    "numbers that collide": (b"}" + whole((1 << 61) - 1) + b"Ns", "a key of a dictionary"),
    "a list as a dictionary": (b"]NNs", "it fills what is no container"),
    "an empty stack": (b"s", "it takes up what it never put down"),
    "a tower of tuples": (b"N" + b"\x85" * 100_000, "holds no weights"),
    "many instructions": (b"]" + b"Na" * 1_000_000, "more than 2,000,000 instructions"),
    "a dictionary in itself": (b"}q\x01X\x05\x00\x00\x00modelh\x01s", "holds no weights"),
    "a tensor by no name": (tensor().replace(b"X\x01\x00\x00\x00w", b"N"), "holds no weights"),
    "a name that a terminal obeys": (
        tensor().replace(b"X\x01\x00\x00\x00w", b"X\x05\x00\x00\x00\x1b[2Jw"),
        r"\\x1b\[2J",
    ),
    "an endless name": (
        tensor().replace(b"X\x01\x00\x00\x00w", b"X\x10\x27\x00\x00" + b"w" * 10_000),
        r"w{100}\.\.\., which",
    ),
}


@pytest.mark.parametrize(
    "oddity", [pytest.param(oddity, marks=[pytest.mark.slow] * (oddity == "many instructions")) for oddity in ODD]
)
def test_pickles_that_no_checkpoint_holds(oddity: str, tmp_path: Path) -> None:
    content, says = ODD[oddity]
    refused(write_zip(tmp_path / "a.pth", document(content)), says=says)


def test_one_storage_is_not_many_tensors(tmp_path: Path) -> None:
    one = tensor(4000, (4000,)).removeprefix(b"}")
    many = b"}" + b"".join(one.replace(b"\x00w", b"\x00" + bytes([letter])) for letter in range(97, 123))
    refused(write_zip(tmp_path / "a.pth", document(many), {"0": bytes(16000)}), says="its tensors claim 416,000")


def test_legacy_files_claim_no_more_than_they_hold(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    torch.save({"w": torch.ones(4)}, path, _use_new_zipfile_serialization=False)
    genuine = path.read_bytes()
    values = b"K\x04Nt"  # of the storage, whose mention ends so
    assert genuine.count(values) == 1
    path.write_bytes(genuine.replace(values, whole(LONG) + b"Nt"))
    refused(path, says="the whole file has")
    path.write_bytes(genuine[:-16])
    refused(path, says="it is cut off, damaged")
    keys = genuine.index(b"\x80\x02]")
    path.write_bytes(genuine[:keys] + document(b"]" + LAUGHS + b"a"))
    refused(path, says="its list of tensors is none")


def test_zip_files_unpack_to_no_more_than_they_are(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    write_zip(path, document(tensor(10**8, (10**8,))), {"0": bytes(4 * 10**8)}, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 1_000_000
    refused(path, says="its parts are compressed")
    write_zip(path, document(tensor()))
    for name in ("b/data.pkl", "archive/data.pkl"):
        with warnings.catch_warnings(), zipfile.ZipFile(path, "a") as archive:
            warnings.simplefilter("ignore")  # of a name that is there twice
            archive.writestr(name, document(b"N"))
        refused(path, says="data.pkl, needs one")


SPECIAL = {
    "sparse": torch.ones(3).to_sparse(),
    "eight bits": torch.ones(3).to(torch.float8_e4m3fn),
    "complex": torch.ones(3, dtype=torch.complex64),
    "meta": torch.ones(3, device="meta"),
    "unsigned": torch.ones(3).to(torch.uint16),
}


@pytest.mark.parametrize("kind", SPECIAL)
def test_special_tensors_are_named(kind: str, tmp_path: Path) -> None:
    torch.save({"w": SPECIAL[kind]}, tmp_path / "a.pth")
    refused(tmp_path / "a.pth", says=r"tensors of a special kind \(.*torch")
    if kind not in ("sparse", "meta"):
        safetensors.torch.save_file({"w": SPECIAL[kind]}, tmp_path / "b.safetensors")
        refused(tmp_path / "b.safetensors", says=r"holds w as a torch\.\w+ tensor, strided: plain tensors")


ONE = b'{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
HEADERS: dict[str, tuple[Any, ...]] = {
    "a length beyond the file": (b"{}", b"", 1 << 63),
    "a long header": (b"{" + b" " * 17_000_000 + b"}", b""),
    "nested": (b'{"a":' * 100_000, b""),
    "overlapping": (b'{"a":' + ONE + b',"b":' + ONE + b"}", b"1234"),
    "beyond the file": (b'{"a":' + ONE.replace(b"4]", b"400]") + b"}", b"1234"),
    "a shape that overflows": (b'{"a":' + ONE.replace(b"[1]", b"[9223372036854775807,8]") + b"}", b"1234"),
    "an unknown type": (b'{"a":' + ONE.replace(b"F32", b"F13") + b"}", b"1234"),
    "words that are none": (b'{"\xff":' + ONE + b"}", b"1234"),
    "no tensors": (b"{}", b""),
    "a list": (b"[]", b""),
}


@pytest.mark.parametrize("oddity", HEADERS)
def test_headers_of_safetensors(oddity: str, tmp_path: Path) -> None:
    refused(write_safetensors(tmp_path / "a.safetensors", *HEADERS[oddity]), says="cannot read|holds no weights")


@pytest.mark.slow
def test_more_tensors_than_a_network_has(tmp_path: Path) -> None:
    entries = {f"a{i}": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]} for i in range(100_001)}
    refused(
        write_safetensors(tmp_path / "a.safetensors", json.dumps(entries, separators=(",", ":")).encode()),
        says="holds 100,001 tensors",
    )


@pytest.mark.slow
def test_many_blocks_are_answered_soon(tmp_path: Path) -> None:
    state = dict(tiny().state_dict())
    state |= {f"stages.2.{i}.dwconv.weight": torch.ones(32, 1, 1, 1) for i in range(20_000)}
    safetensors.torch.save_file(state, tmp_path / "a.safetensors")
    with pytest.raises(UsageError, match=r"a\.safetensors: it has 20,003 blocks, more than any ConvNeXt"):
        open_weights(tmp_path / "a.safetensors")


def places(folder: Path) -> dict[str, str]:
    """Paths that lead to no file."""
    (folder / "round.pth").symlink_to("circle.pth")
    (folder / "circle.pth").symlink_to("round.pth")
    (folder / "dangling.pth").symlink_to("nowhere.pth")
    (folder / "folder.pth").mkdir()
    os.mkfifo(folder / "pipe.pth")
    names = ["round.pth", "dangling.pth", "folder.pth", "pipe.pth", "x" * 5000, "none\0.pth", "dangling.pth/x"]
    return {name: str(folder / name) for name in names} | {"zeros": "/dev/zero", "standard input": "/dev/stdin"}


def test_paths_that_lead_to_no_file(tmp_path: Path) -> None:
    for path in places(tmp_path).values():
        for way in (open_weights, lambda path: load_weights(tiny(), path), lambda path: convnext.load(path, "cpu")):
            with pytest.raises(UsageError, match=r"no weights|no folder with weights|no run|check the path"):
                way(path)


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="everything may be read")
def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    (tmp_path / "a.pth").touch(0o000)
    refused(tmp_path / "a.pth", says="cannot read .*Permission denied")


def change(**tensors: Tensor | None) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    """Weights with other tensors, or without some, by names with ``__`` for dots."""
    named = {name.replace("__", "."): value for name, value in tensors.items()}
    return lambda state: {name: value for name, value in (state | named).items() if value is not None}


STEM, DEPTHWISE = "downsample_layers__0__0__weight", "stages__0__0__dwconv__weight"
SHAPES: dict[str, tuple[Callable[[dict[str, Tensor]], dict[str, Tensor]], str]] = {
    "stem of five dimensions": (change(**{STEM: torch.ones(8, 3, 4, 4, 1)}), r"downsample_layers\.0\.0\.weight"),
    "stem of another kernel": (change(**{STEM: torch.ones(8, 3, 5, 5)}), "stem"),
    "stem that is no square": (change(**{STEM: torch.ones(8, 3, 3, 4)}), r"downsample_layers\.0\.0\.weight"),
    "no width": (change(**{STEM: torch.ones(0, 3, 4, 4)}), r"downsample_layers\.0\.0\.weight"),
    "no channels": (change(**{STEM: torch.ones(8, 0, 4, 4)}), r"downsample_layers\.0\.0\.weight"),
    "even kernel": (change(**{DEPTHWISE: torch.ones(8, 1, 6, 6)}), "kernel_size is 6"),
    "kernel of nothing": (change(**{DEPTHWISE: torch.ones(8, 1, 0, 0)}), r"stages\.0\.0\.dwconv\.weight"),
    "kernel larger than the file": (change(**{DEPTHWISE: torch.ones(1, 1, 1, 4001)}), "stages.0.0.dwconv.weight"),
    "block missing": (
        lambda state: {name.replace("stages.2.0", "stages.2.1"): value for name, value in state.items()},
        "not all blocks",
    ),
    "stage missing": (
        lambda state: {name: value for name, value in state.items() if not name.startswith("stages.3")},
        "not all blocks",
    ),
    "a block of endless number": (
        lambda state: state | {f"stages.0.{'9' * 400}.dwconv.weight": torch.ones(8, 1, 7, 7)},
        "unexpected",
    ),
    "channels that do not double": (change(downsample_layers__1__1__weight=torch.ones(9, 8, 2, 2)), "of another shape"),
    "head of one dimension": (change(head__weight=torch.ones(3)), r"head\.weight has 1 dim"),
    "head of no classes": (change(head__weight=torch.ones(0, 64), head__bias=torch.ones(0)), "unexpected|head"),
    "gamma in some blocks": (change(stages__1__0__gamma=None), r"stages\.1\.0\.gamma"),
    "norms in some blocks": (change(stages__1__0__grn__gamma=torch.ones(1, 1, 1, 64)), r"stages\.1\.0\.grn\.gamma"),
}


@pytest.mark.parametrize("oddity", SHAPES)
def test_what_is_almost_a_convnext(oddity: str, tmp_path: Path) -> None:
    made, says = SHAPES[oddity]
    safetensors.torch.save_file(made(dict(tiny().state_dict())), tmp_path / "a.safetensors")
    with pytest.raises(UsageError, match=says) as error:
        open_weights(tmp_path / "a.safetensors")
    assert "a.safetensors" in str(error.value)


def test_a_head_without_dimensions(tmp_path: Path) -> None:
    torch.save(tiny().state_dict() | {"head.bias": torch.ones(())}, tmp_path / "a.pth")
    refused(tmp_path / "a.pth", UsageError, r"head\.bias is a single number in the file and 3 in")


def test_sparse_kernels_of_odd_shapes(tmp_path: Path) -> None:
    state = SPARSE.from_official(tiny(grn=True, layer_scale_init_value=None).state_dict())
    for kernel in (torch.ones(()), torch.ones(48), torch.ones(48, 8), torch.ones(49, 8, 1, 1, 1)):
        torch.save(state | {"stages.0.0.dwconv.kernel": kernel}, tmp_path / "a.pth")
        refused(tmp_path / "a.pth", UsageError, r"stages\.0\.0\.dwconv\.weight")


DEEP = "[" * 100_000
DOCUMENTS: dict[str, tuple[str, bytes]] = {
    "not JSON": ("config.json", b"{"),
    "words that are none": ("config.json", b'{"architecture": "\xff"}'),
    "nested": ("config.json", DEEP.encode()),
    "a list": ("config.json", b"[]"),
    "huge": ("config.json", b" " * 10_000_001),
    "labels in a list": ("config.json", b'{"model_type": "convnext", "id2label": ["a"]}'),
    "labels without numbers": ("config.json", b'{"model_type": "convnext", "id2label": {"a": "b"}}'),
    "labels with gaps": ("config.json", b'{"model_type": "convnext", "id2label": {"0": "a", "1": "b", "7": "c"}}'),
    "labels that are no words": ("config.json", b'{"model_type": "convnext", "id2label": {"0": {}, "1": 1, "2": []}}'),
    "an epsilon of nothing": ("config.json", b'{"model_type": "convnext", "layer_norm_eps": NaN}'),
    "an epsilon beyond numbers": ("config.json", b'{"model_type": "convnext", "layer_norm_eps": 1' + b"0" * 400 + b"}"),
    "settings in a list": ("config.json", b'{"architecture": "a", "pretrained_cfg": []}'),
    "a size of one side": ("config.json", b'{"architecture": "a", "pretrained_cfg": {"input_size": 3}}'),
    "a size beyond numbers": (
        "config.json",
        b'{"architecture": "a", "pretrained_cfg": {"input_size": [3, 224, 224], "crop_pct": 1' + b"0" * 400 + b"}}",
    ),
    "a size below nothing": ("preprocessor_config.json", b'{"do_center_crop": true, "crop_size": -5, "size": -3}'),
    "a resampling that is none": ("preprocessor_config.json", b'{"resample": {}}'),
    "a mean of words": ("preprocessor_config.json", b'{"image_mean": ["a", "b", "c"]}'),
    "means of a terminal": ("preprocessor_config.json", b'{"image_mean": "\\u001b[2J' + b"x" * 100_000 + b'"}'),
}


@pytest.mark.parametrize("oddity", DOCUMENTS)
def test_documents_beside_the_weights(oddity: str, tmp_path: Path) -> None:
    name, content = DOCUMENTS[oddity]
    safetensors.torch.save_file(tiny().state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes(b'{"model_type": "convnext"}')
    (tmp_path / name).write_bytes(content)
    with pytest.raises(RunError, match=rf"{tmp_path}/{name}\W") as error:
        open_weights(tmp_path)
    assert len(str(error.value)) < 600
    assert str(error.value).isprintable()


@pytest.mark.parametrize("content", [DEEP, "{}", '["a", 1, 2]', "", '"abc"'])
def test_classes_of_a_run(content: str, tmp_path: Path) -> None:
    safetensors.torch.save_file(tiny().state_dict(), tmp_path / "best.safetensors")
    (tmp_path / "classes.json").write_text(content)
    with pytest.raises(RunError, match=r"cannot understand .*/classes\.json: "):
        open_weights(tmp_path / "best.safetensors")


@pytest.mark.parametrize(
    "content", [DEEP, "[]", "7", '{"classes": 5}', '{"preprocessing": []}', '{"norm_eps": "x"}', "{"]
)
def test_metadata_of_safetensors(content: str, tmp_path: Path) -> None:
    safetensors.torch.save_file(tiny().state_dict(), tmp_path / "a.safetensors", metadata={"convnext": content})
    with pytest.raises(RunError, match=r"cannot understand .*/a\.safetensors: "):
        open_weights(tmp_path / "a.safetensors")
