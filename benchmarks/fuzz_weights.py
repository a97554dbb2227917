"""Does any file make the weights readers crash, hang, take memory, run code or speak unclearly?

Damages files of a small ConvNeXt in every layout and format, by bytes and by structure, and opens each; every input has
ten seconds and 256 MiB. Whatever is neither opened nor refused by an error that names the file is written to a folder.
Prints the number of inputs by kind and outcome and writes ``results/fuzz-weights.csv``. Usage:
``python benchmarks/fuzz_weights.py [--minutes 5] [--seed 0]``.
"""

import argparse
import collections
import faulthandler
import io
import json
import pickle
import pickletools
import random
import resource
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from result_files import write_rows
from torch import Tensor, nn

from convnext.errors import RunError, UsageError
from convnext.models.convnext import ConvNeXt
from convnext.weights import load_weights
from convnext.weights.layouts import LAYOUTS
from convnext.weights.weights_file import open_weights

SECONDS, MEMORY = 10, 256 << 20  # an input's
Maker = Callable[[random.Random], bytes]
GLOBALS = [
    b"posix system",
    b"builtins eval",
    b"builtins bytearray",
    b"torch Tensor",
    b"torch FloatStorage",
    b"os popen",
]
GLOBALS += [b"torch._utils _rebuild_tensor_v2", b"collections OrderedDict", b"numpy dtype", b"torch.nn Module", b"a b"]
NUMBERS = (-1, 0, 1, 2, 3, 7, 255, 2**31 - 1, 2**31, 2**61 - 1, 2**63 - 1, 2**63, 2**64, 10**30)
ODD = (*NUMBERS, None, True, "", "a", "\x1b[2J", "x" * 1000, [], {}, [0], {"a": 1}, 0.5, float("nan"), float("inf"))
WORDS = (
    "",
    "a.",
    "module.",
    "_orig_mod.",
    "backbone.",
    "visual.trunk.",
    "student.",
    "\n",
    "stages.",
    "\x1b[2J",
    "9" * 400,
)
WRAPPERS = ("model", "state_dict", "model_ema", "module", "net", "")


def corpus() -> list[dict[str, Tensor]]:
    """A small network of each kind in every layout that has it."""
    found = []
    for grn in (False, True):
        torch.manual_seed(0)
        official = ConvNeXt(
            depths=(1, 1, 1, 1),
            dims=(8, 16, 32, 64),
            num_classes=3,
            grn=grn,
            layer_scale_init_value=None if grn else 1e-6,
        ).state_dict()
        for layout in LAYOUTS:
            try:
                state = layout.from_official(official)
            except KeyError:  # it has no such network
                continue
            found.append({name: tensor.clone().contiguous() for name, tensor in state.items()})
    return found


def as_torch(document: Any, zipped: bool) -> bytes:
    """A file of ``torch.save``."""
    file = io.BytesIO()
    torch.save(document, file, _use_new_zipfile_serialization=zipped)
    return file.getvalue()


def written(document: Any, generator: random.Random) -> bytes:
    """Tensors or a checkpoint in one of the formats that hold it."""
    form = generator.randrange(3)
    if form == 2 and isinstance(document, dict) and document:
        try:
            return safetensors.torch.save({name: value.clone().contiguous() for name, value in document.items()})
        except Exception:  # names or values that the format has not
            pass
    return as_torch(document, zipped=form == 0)


def damage(content: bytes, generator: random.Random) -> bytes:
    """A file with some bytes changed, cut, doubled, moved or in another's place."""
    data = bytearray(content)
    for _ in range(generator.choice((1, 1, 1, 2, 4, 16))):
        at, length = generator.randrange(len(data) + 1), generator.choice((1, 2, 4, 8, 64, 4096))
        match generator.randrange(7):
            case 0 if at < len(data):
                data[at] ^= 1 << generator.randrange(8)
            case 1:
                data[at : at + length] = generator.randbytes(length)
            case 2:
                del data[at:]
            case 3:
                data[at:at] = data[at : at + length]
            case 4:
                start = generator.randrange(len(data) + 1)
                data[at : at + length] = data[start : start + length]
            case 5:
                data[at : at + 8] = (generator.choice(NUMBERS) & (2**64 - 1)).to_bytes(8, "little")
            case _:
                del data[at : at + length]
    return bytes(data)


def repacked(content: bytes, change: Callable[[bytes], bytes], generator: random.Random) -> bytes:
    """A zip file of torch with another pickle, and sometimes another of its records."""
    output = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as source, zipfile.ZipFile(output, "w") as target:
        for record in source.infolist():
            data = source.read(record)
            if record.filename.endswith("data.pkl"):
                data = change(data)
            elif generator.random() < 0.005:
                data = damage(data, generator)
            if generator.random() < 0.998:
                deflated = generator.random() < 0.002
                target.writestr(record.filename, data, zipfile.ZIP_DEFLATED if deflated else zipfile.ZIP_STORED)
    return output.getvalue()


def instructions(data: bytes, generator: random.Random) -> bytes:
    """A pickle with some instructions that are another's, are there twice, are lost or name another thing."""
    places = [position for _, _, position in pickletools.genops(data)]
    parts = [data[start:end] for start, end in zip(places, [*places[1:], len(data)], strict=True)]
    for _ in range(generator.choice((1, 1, 2, 4, 8))):
        at = generator.randrange(len(parts)) if len(parts) > 1 else 0
        parts = parts or [b"N"]
        match generator.randrange(6):
            case 0:
                parts[at] = generator.choice(parts)
            case 1:
                parts.insert(at, generator.choice(parts))
            case 2:
                del parts[at]
            case 3:
                parts[at] = b"c" + generator.choice(GLOBALS).replace(b" ", b"\n") + b"\n"
            case 4:
                parts[at] = pickle.dumps(generator.choice(NUMBERS), 2)[2:-1]
            case _:
                parts.insert(
                    at, generator.choice((b"R", b"b", b"\x81", b"\x86", b"0", b"2", b"Q", b"e", b"u", b"(", b"t"))
                )
    return b"".join(parts)


def header(content: bytes, generator: random.Random) -> bytes:
    """A safetensors file with another header: a field of another value, entries twice, lost or under other names."""
    length = int.from_bytes(content[:8], "little")
    document, values = json.loads(content[8 : 8 + length]), content[8 + length :]
    for _ in range(generator.choice((1, 1, 2, 4))):
        name = generator.choice(sorted(document) or ["a"])
        entry = document.get(name)
        match generator.randrange(6):
            case 0:
                document[name] = generator.choice(ODD)
            case 1 if isinstance(entry, dict):
                entry[generator.choice(("dtype", "shape", "data_offsets", "more"))] = generator.choice(ODD)
            case 2 if isinstance(entry, dict) and isinstance(entry.get("shape"), list):
                entry["shape"] = [generator.choice(NUMBERS) for _ in range(generator.randrange(6))]
            case 3 if isinstance(entry, dict):
                entry["dtype"] = generator.choice(
                    ("BOOL", "F8_E4M3", "F4", "F16", "C64", "U64", "I8", "F64", "E8M0", "")
                )
            case 4:
                document[generator.choice(WORDS) + name] = document.pop(name, {})
            case _:
                document["__metadata__"] = {"convnext": json.dumps({generator.choice(FIELDS): generator.choice(ODD)})}
    text = json.dumps(document).encode()
    length = len(text) if generator.random() < 0.9 else generator.choice(NUMBERS) & (2**64 - 1)
    return length.to_bytes(8, "little") + text + values


FIELDS = ("classes", "preprocessing", "norm_eps", "more")


def reshaped(state: dict[str, Tensor], generator: random.Random) -> dict[str, Any]:
    """Tensors of which some have other names, shapes, types or values, or are lost."""
    state = dict(state)
    for _ in range(generator.choice((0, 1, 1, 2, 4))):
        name = generator.choice(sorted(state) or ["a"])
        tensor = state.pop(name, torch.ones(1)).to_dense()
        match generator.randrange(7):
            case 0:
                pass
            case 1:
                state[generator.choice(WORDS) + name] = tensor
            case 2:
                state[name] = torch.ones([generator.choice((0, 1, 2, 3, 8, 9)) for _ in range(generator.randrange(6))])
            case 3:
                state[name] = tensor.to(generator.choice((torch.float16, torch.int8, torch.bool, torch.complex64)))
            case 4:
                state[name] = torch.full_like(tensor.float(), generator.choice((float("nan"), float("inf"))))
            case 5:
                state[name] = (
                    tensor.new_ones(()).expand(tensor.shape) if generator.random() < 0.5 else tensor.to_sparse()
                )
            case _:
                state[name.replace("0", generator.choice(("1", "10", "999", "x", "")))] = tensor
    prefix = "".join(generator.choice(WORDS[:7]) for _ in range(generator.randrange(3)))
    return {prefix + name: value for name, value in state.items()}


def wrapped(state: dict[str, Any], generator: random.Random) -> Any:
    """A checkpoint around tensors."""
    document: Any = state
    beside = [
        3,
        np.float64(0.5),
        argparse.Namespace(lr=1),
        collections.Counter("aab"),
        b"a",
        {1, 2},
        random.Random,
        [1],
    ]
    for _ in range(generator.randrange(3)):
        document = {generator.choice(WRAPPERS): document, "beside": generator.choice(beside)}
        if generator.random() < 0.05:
            document[generator.choice(WRAPPERS)] = document
    return document


def makers(states: list[dict[str, Tensor]]) -> dict[str, Maker]:
    """Ways to make an input, by what they are called."""
    zips, legacies = ([as_torch({"model": state}, zipped) for state in states] for zipped in (True, False))
    tensors = [safetensors.torch.save(state) for state in states]

    def legacy(generator: random.Random) -> bytes:
        content = generator.choice(legacies)
        parts, at = [], 0
        for _ in range(5):
            stream = io.BytesIO(content[at:])
            pickle_end(stream)
            parts.append(content[at : at + stream.tell()])
            at += stream.tell()
        index = generator.randrange(5)
        parts[index] = instructions(parts[index], generator)
        return b"".join(parts) + content[at:]

    return {
        "bytes of a zip file": lambda generator: damage(generator.choice(zips), generator),
        "bytes of a legacy file": lambda generator: damage(generator.choice(legacies), generator),
        "bytes of safetensors": lambda generator: damage(generator.choice(tensors), generator),
        "pickle in a zip file": lambda generator: repacked(
            generator.choice(zips), lambda data: instructions(data, generator), generator
        ),
        "bytes of a pickle in a zip file": lambda generator: repacked(
            generator.choice(zips), lambda data: damage(data, generator), generator
        ),
        "pickle in a legacy file": legacy,
        "header of safetensors": lambda generator: header(generator.choice(tensors), generator),
        "names, shapes and wrappers": lambda generator: written(
            wrapped(reshaped(generator.choice(states), generator), generator), generator
        ),
        "noise": lambda generator: (
            generator.choice((b"", b"PK\x03\x04", b"\x80\x02", b"\x00" * 8 + b"{", b"}"))
            + generator.randbytes(generator.randrange(5000))
        ),
    }


def pickle_end(stream: io.BytesIO) -> None:
    """Read one pickle without following it."""
    for _ in pickletools.genops(stream):
        pass


def outcome(path: Path, model: nn.Module) -> str:
    """What became of an input: opened, refused, or what is wrong."""
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    held, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, time.perf_counter()
    said = []
    for way in (open_weights, lambda path: load_weights(model, path)):
        try:
            way(path)
        except (UsageError, RunError) as error:
            said.append((type(error).__name__, str(error)))
            changed = any(not torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
            if path.name not in said[-1][1] or len(said[-1][1]) > 3000 or "\x1b" in said[-1][1]:
                return f"an unclear message: {said[-1][1][:100]!r}"
            if changed and way is not open_weights:
                return "a network changed by an error"
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            return f"{type(error).__name__}: {str(error)[:100]!r}"
    if time.perf_counter() - start > SECONDS:
        return "too slow"
    if resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - held > MEMORY:
        return "too much memory"
    model.load_state_dict(before)
    return f"refused, {said[0][0]}" if said else "opened"


def main() -> None:
    """Make inputs, open them, count and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="fuzz-weights-"))
    ways = makers(corpus())
    model = ConvNeXt(depths=(1, 1, 1, 1), dims=(8, 16, 32, 64), num_classes=3)
    counts: Counter[tuple[str, str]] = Counter()
    end, number, kinds = time.monotonic() + 60 * options.minutes, 0, sorted(ways)
    while time.monotonic() < end:
        kind, generator = kinds[number % len(kinds)], random.Random(f"{options.seed} {number}")
        path = folder / f"{number}.{'safetensors' if generator.random() < 0.05 else 'pth'}"
        path.write_bytes(ways[kind](generator))
        faulthandler.dump_traceback_later(2 * SECONDS, exit=True)  # a hang leaves its input, and says where it is
        result = outcome(path, model)
        faulthandler.cancel_dump_traceback_later()
        counts[kind, result if result == "opened" or result.startswith("refused") else "FAILED"] += 1
        if result == "opened" or result.startswith("refused"):
            path.unlink()
        else:
            print(f"{path}: {kind}: {result}", flush=True)
        number += 1
    rows = [
        {"kind": kind, "outcome": result, "inputs": count, "minutes": options.minutes, "seed": options.seed}
        for (kind, result), count in sorted(counts.items())
    ]
    for row in rows:
        print(row["kind"], row["outcome"], row["inputs"], sep="  ")
    failed = sum(count for (_, result), count in counts.items() if result == "FAILED")
    print(f"{number:,} inputs, {failed} failed{f', kept in {folder}' if failed else ''}")
    if not failed:
        folder.rmdir()
    write_rows("fuzz-weights", rows, ("safetensors",))


if __name__ == "__main__":
    faulthandler.enable()
    main()
