"""OpenVINO's intermediate representation: ``NAME.xml``, the graph, and ``NAME.bin``, its weights."""

from typing import Any

import torch

from convnext.console import quiet
from convnext.environment import import_extra
from convnext.exporting.graph import batches_of, graph_of, program_of
from convnext.exporting.job_types import Order, Written
from convnext.files import writing
from convnext.inference.exported import SECTION

EXTRA = "openvino"


def write(order: Order) -> Written:
    """Write both files."""
    ov = import_extra("openvino", EXTRA)
    card, path = order.card, order.path
    program = program_of(graph_of(order.model, card), card)
    with quiet():
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
    with quiet():
        nncf = import_extra("nncf", EXTRA)
    assert order.calibration is not None
    batches = [batch.numpy() for batch in batches_of(order.calibration, order.card)]
    with quiet():
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
