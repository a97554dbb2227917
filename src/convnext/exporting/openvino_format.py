"""OpenVINO's intermediate representation: ``NAME.xml``, the graph, and ``NAME.bin``, its weights."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from convnext.exporting.extras import hushed, needed
from convnext.exporting.graph import batches_of, graph_of, program_of
from convnext.exporting.job_types import Loaded, Order, Written
from convnext.files import writing

EXTRA = "openvino"
SECTION = "convnext"  # of rt_info
HINTS = {"fp32": "f32", "bf16": "bf16", "int8": "f32"}


def write(order: Order) -> Written:
    """Write both files."""
    ov = needed("openvino", EXTRA)
    card, path = order.card, order.path
    program = program_of(graph_of(order.model, card), card)
    with hushed():
        model = ov.convert_model(program)
    model.inputs[0].set_names({card.input_name})
    model.outputs[0].set_names({card.output_name})
    notes: tuple[str, ...] = ()
    if order.calibration is not None:
        model = quantized(model, order)
    if card.precision == "bf16":
        halve(model, ov)
        notes = (
            "its weights are bf16, half the size; OpenVINO computes in bf16 where the processor has it, else fp32",
        )
    for name, text in card.to_metadata().items():
        model.set_rt_info(text, [SECTION, name])
    with writing(path, sum(tensor.nbytes for tensor in program.state_dict.values())):
        ov.save_model(model, path, compress_to_fp16=False)
    return Written([path.with_suffix(".bin"), path], notes)


def quantized(model: Any, order: Order) -> Any:
    """A graph in int8 by NNCF, which chooses by itself what stays fp32.

    Not with its settings for transformers: SmoothQuant there costs narrow networks a third of their answers.
    """
    with hushed():
        nncf = needed("nncf", EXTRA)
    assert order.calibration is not None
    batches = [batch.numpy() for batch in batches_of(order.calibration, order.card)]
    with hushed():
        return nncf.quantize(
            model,
            nncf.Dataset(batches),
            subset_size=len(batches),
            # Weights of 7 bits: sums of 8 overflow on processors without VNNI.
            advanced_parameters=nncf.AdvancedQuantizationParameters(overflow_fix=nncf.OverflowFix.ENABLE),
        )


def halve(model: Any, ov: Any) -> None:
    """Hold weights in bf16; they become fp32 again where they are used."""
    for node in model.get_ops():
        if node.get_type_name() != "Constant" or node.get_element_type() != ov.Type.f32 or node.data.size < 2:
            continue
        half = torch.from_numpy(node.data.copy()).bfloat16()
        stored = ov.op.Constant(ov.Type.bf16, ov.Shape(list(half.shape)), half.float().flatten().tolist())
        widened = ov.opset13.convert(stored, "f32")
        widened.get_rt_info()["decompression"] = ""
        for taker in node.output(0).get_target_inputs():
            taker.replace_source_output(widened.output(0))


def load(path: Path) -> Loaded:
    """Open both files."""
    ov = needed("openvino", EXTRA)
    core = ov.Core()
    model = core.read_model(path)
    info: Mapping[str, Any] = model.get_rt_info()
    metadata = {name: value.astype(str) for name, value in info[SECTION].items()} if SECTION in info else {}
    settings = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        # Else it takes bf16 where the processor has it, whatever the file says.
        "INFERENCE_PRECISION_HINT": HINTS.get(metadata.get("precision", ""), "f32"),
        "PERFORMANCE_HINT": "LATENCY",
    }
    request = core.compile_model(model, "CPU", settings).create_infer_request()

    def call(images: Tensor) -> Tensor:
        return torch.from_numpy(request.infer({0: images.numpy()}, share_inputs=True)[0].copy())

    taken = model.inputs[0]
    shape = tuple(None if side.is_dynamic else side.get_length() for side in taken.get_partial_shape())
    kind = {"f32": "float32", "u8": "uint8"}.get(taken.get_element_type().get_type_name(), "another type")
    return Loaded(call, metadata, (shape, kind if len(model.inputs) == 1 else f"{len(model.inputs)} inputs"))
