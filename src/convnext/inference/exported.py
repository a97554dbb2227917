"""Exported files opened in their runtime: ``.onnx`` by ONNX Runtime, ``.pt2`` by torch, ``.xml`` by OpenVINO."""

import json
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from convnext.console import quiet
from convnext.data.imagenet import class_names
from convnext.data.preprocessing import EVAL_CROP, MEAN, STD, Preprocessing
from convnext.environment import check_installed, import_extra
from convnext.errors import ConvNeXtError, RunError, UsageError, reason
from convnext.inference.card import Card, read_card
from convnext.inference.runtime import RuntimeModel
from convnext.inference.trust import check_trust
from convnext.weights.reading import instead, is_file

METADATA_FILE = "convnext.json"  # among the extra files of a .pt2 file
MAX_METADATA = 50_000_000  # bytes
SECTION = "convnext"  # of a model's rt_info
ONNX_TYPES = {"tensor(float)": "float32", "tensor(uint8)": "uint8", "tensor(float16)": "float16"}


class Loaded(NamedTuple):
    """A file opened in its runtime.

    Attributes:
        call: from the graph's input to its output, both on the CPU.
        metadata: strings by name.
        shape: of the graph's input; None for any number.
        dtype: of the graph's input, by torch's name; something else where it has several inputs.
    """

    call: Callable[[Tensor], Tensor]
    metadata: Mapping[str, str]
    shape: tuple[int | None, ...]
    dtype: str


class Reader(NamedTuple):
    """How files of a suffix are opened.

    Attributes:
        format: the name of the format.
        runtime: the package that computes the file.
        extra: the extra of this package that installs the runtime.
        load: opens a file.
        is_data: False if opening a file may run code that is in it.
    """

    format: str
    runtime: str
    extra: str
    load: Callable[[Path], Loaded]
    is_data: bool = True


def load_onnx(path: Path) -> Loaded:
    """Open an ``.onnx`` file; ONNX Runtime reads external weights from the file's own folder only."""
    ort = import_extra("onnxruntime", "onnx")
    options = ort.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 4  # its exceptions say what is wrong
    # Threads that spin while they wait take the cores from those that prepare the next images.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    inputs, output = session.get_inputs(), session.get_outputs()[0].name

    def call(images: Tensor) -> Tensor:
        return torch.from_numpy(session.run([output], {inputs[0].name: images.numpy()})[0])

    shape = tuple(side if isinstance(side, int) else None for side in inputs[0].shape)
    dtype = ONNX_TYPES.get(inputs[0].type, str(inputs[0].type)) if len(inputs) == 1 else f"{len(inputs)} inputs"
    return Loaded(call, session.get_modelmeta().custom_metadata_map, shape, dtype)


def load_program(path: Path) -> Loaded:
    """Open a trusted ``.pt2`` file of ``torch.export``."""
    metadata = pt2_metadata(path)
    with quiet():
        program = torch.export.load(path)
    module = program.module()
    node = next(node for node in program.graph.nodes if node.name in program.graph_signature.user_inputs)
    example = node.meta["val"]
    shape = tuple(side if isinstance(side, int) else None for side in example.shape)

    def call(images: Tensor) -> Tensor:
        return module(images)

    return Loaded(call, metadata, shape, str(example.dtype).removeprefix("torch."))


def pt2_metadata(path: Path) -> dict[str, str]:
    """The metadata in a ``.pt2`` file, read without opening the rest."""
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        if any("/data/aotinductor/" in entry.filename for entry in entries):
            raise ValueError("it is a package of AOTInductor, which is no longer supported")
        found = [entry for entry in entries if entry.filename.endswith(f"/extra/{METADATA_FILE}")]
        if not found:
            return {}
        if found[0].file_size > MAX_METADATA:
            raise ValueError(f"its {METADATA_FILE} has {found[0].file_size:,} bytes")
        document = json.loads(archive.read(found[0]))
    if not isinstance(document, dict) or not all(isinstance(text, str) for text in document.values()):
        raise ValueError(f"its {METADATA_FILE} is not an object of strings")
    return document


def load_openvino(path: Path) -> Loaded:
    """Open an ``.xml`` file with its ``.bin``."""
    core = import_extra("openvino", "openvino").Core()
    model = core.read_model(path)
    info: Mapping[str, Any] = model.get_rt_info()
    metadata = {name: value.astype(str) for name, value in info[SECTION].items()} if SECTION in info else {}
    settings = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        # By default it computes in bf16 where the CPU can, whatever the file's precision.
        "INFERENCE_PRECISION_HINT": "bf16" if metadata.get("precision") == "bf16" else "f32",
        "PERFORMANCE_HINT": "LATENCY",
    }
    request = core.compile_model(model, "CPU", settings).create_infer_request()

    def call(images: Tensor) -> Tensor:
        return torch.from_numpy(request.infer({0: images.numpy()}, share_inputs=True)[0].copy())

    given = model.inputs[0]
    shape = tuple(None if side.is_dynamic else side.get_length() for side in given.get_partial_shape())
    dtype = {"f32": "float32", "u8": "uint8"}.get(given.get_element_type().get_type_name(), "another type")
    return Loaded(call, metadata, shape, dtype if len(model.inputs) == 1 else f"{len(model.inputs)} inputs")


READERS = {  # by the suffix; their keys are EXPORTED_SUFFIXES in weights/names.py
    ".onnx": Reader("onnx", "onnxruntime", "onnx", load_onnx),
    ".pt2": Reader("torch", "torch", "", load_program, is_data=False),
    ".xml": Reader("openvino", "openvino", "openvino", load_openvino),
}


def open_exported(path: Path, trust: bool = False) -> RuntimeModel:
    """Open an exported file in its runtime.

    Args:
        path: an ``.onnx``, ``.pt2`` or ``.xml`` file.
        trust: open a ``.pt2`` file that was not exported here, though it can run any code.

    Raises:
        UsageError: there is no such file, it is not an image model, its runtime is not installed, or it may run code
            and is not trusted.
        RunError: it is damaged.
    """
    if not is_file(path):
        raise UsageError(f"no exported file {path}{instead(path)}: check the path (now in {Path.cwd()})")
    reader = READERS[path.suffix.lower()]
    check_installed(reader.runtime, reader.extra)
    if not reader.is_data:
        check_trust(path, trust)
    try:
        loaded = reader.load(path)
        card = read_card(loaded.metadata)
    except ConvNeXtError:
        raise
    except Exception as error:  # each runtime has its own exceptions
        raise RunError(
            f"cannot open {path} ({reason(error)}): it is damaged or not a {reader.format} file, export or copy it "
            "again"
        ) from error
    if card is None:
        card = card_of_foreign(path, reader.format, loaded)
    return RuntimeModel(path.resolve(), reader.runtime, card, loaded.call, reopened)


def reopened(path: Path) -> nn.Module:
    """The model in a file that another process has opened, and trusted, before."""
    return open_exported(path, trust=True)


def card_of_foreign(path: Path, format: str, loaded: Loaded) -> Card:
    """A card for a file that this package did not write, with remarks on what it assumes."""
    shape = loaded.shape
    channels = shape[1] if len(shape) == 4 else None
    if loaded.dtype != "float32" or channels not in (1, 3) or (shape[2] or 0) != (shape[3] or 0):
        raise UsageError(
            f"{path} takes {loaded.dtype} {list(shape)}: export a classifier whose only input is square float32 "
            "images (N, 3, H, W)"
        )
    size = shape[2] or 224
    try:
        with torch.inference_mode():
            outputs = loaded.call(torch.zeros(shape[0] or 1, channels, size, size))
    except Exception as error:  # each runtime has its own exceptions
        raise UsageError(f"{path} fails on an image of {size} px ({reason(error)}): export a classifier") from error
    if outputs.ndim != 2 or not outputs.is_floating_point():
        raise UsageError(f"{path} gives {list(outputs.shape)}: export a classifier, which gives logits (N, classes)")
    count = outputs.shape[1]
    names = class_names(count)
    named = "ImageNet's are taken" if names else f"they are called by their numbers ({count})"
    note = (
        f"{path} was not written by this package and has no class names: {named}; its outputs are taken for logits, "
        f"and images are prepared as for the published models at {size} px"
    )
    mean, std = (MEAN, STD) if channels == 3 else ((sum(MEAN) / 3,), (sum(STD) / 3,))
    return Card(
        format,
        "unknown precision",
        "foreign model",
        names or tuple(f"class {label}" for label in range(count)),
        Preprocessing(size, EVAL_CROP, mean=mean, std=std),
        batch=shape[0],
        size=shape[2],
        notes=(note,),
    )
