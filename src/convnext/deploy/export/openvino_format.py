"""OpenVINO's intermediate representation: ``NAME.xml``, the graph, and ``NAME.bin``, its weights."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from convnext.deploy.export.extras import needed
from convnext.deploy.export.graph import graph_of, program_of
from convnext.deploy.export.order import Loaded, Order, Written
from convnext.files import writing

EXTRA = "openvino"
PACKAGES = ("openvino",)
SECTION = "convnext"  # of rt_info


def write(order: Order) -> Written:
    """Write both files."""
    ov = needed("openvino", EXTRA)
    card, path = order.card, order.path
    program = program_of(graph_of(order.model, card), card)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = ov.convert_model(program)
    model.inputs[0].set_names({card.input_name})
    model.outputs[0].set_names({card.output_name})
    for name, text in card.to_metadata().items():
        model.set_rt_info(text, [SECTION, name])
    with writing(path, sum(tensor.nbytes for tensor in program.state_dict.values())):
        ov.save_model(model, path, compress_to_fp16=False)
    return Written([path.with_suffix(".bin"), path])


def load(path: Path) -> Loaded:
    """Open both files."""
    ov = needed("openvino", EXTRA)
    core = ov.Core()
    model = core.read_model(path)
    info: Mapping[str, Any] = model.get_rt_info()
    metadata = {name: value.astype(str) for name, value in info[SECTION].items()} if SECTION in info else {}
    settings = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "INFERENCE_PRECISION_HINT": "f32",  # else it takes bf16 where the processor has it, whatever the file says
        "PERFORMANCE_HINT": "LATENCY",
    }
    compiled = core.compile_model(model, "CPU", settings)
    request = compiled.create_infer_request()

    def call(images: Tensor) -> Tensor:
        return torch.from_numpy(request.infer({0: images.numpy()}, share_inputs=True)[0].copy())

    taken = model.inputs[0]
    shape = tuple(None if side.is_dynamic else side.get_length() for side in taken.get_partial_shape())
    kind = {"f32": "float32", "u8": "uint8"}.get(taken.get_element_type().get_type_name(), "another type")
    return Loaded(call, metadata, (shape, kind if len(model.inputs) == 1 else f"{len(model.inputs)} inputs"))
