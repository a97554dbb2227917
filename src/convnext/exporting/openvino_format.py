"""Writer of OpenVINO's intermediate representation: ``NAME.xml``, the graph, and ``NAME.bin``, its weights."""

from typing import Any

import torch

from convnext.console import quiet
from convnext.environment import import_extra
from convnext.exporting.formats import ExportRequest, WrittenFiles
from convnext.exporting.graph import calibration_batches, export_program, make_graph
from convnext.files import writing
from convnext.inference.exported import SECTION


def write(request: ExportRequest) -> WrittenFiles:
    """Write both files."""
    ov = import_extra("openvino", "openvino")
    card, path = request.card, request.path
    program = export_program(make_graph(request.model, card), card)
    with quiet():
        model = ov.convert_model(program)
    model.inputs[0].set_names({card.input_name})
    model.outputs[0].set_names({card.output_name})
    notes: tuple[str, ...] = ()
    if request.calibration is not None:
        model = quantize(model, request)
    if card.precision == "bf16":
        store_as_bf16(model, ov)
        notes = ("its weights are bf16, half the size; OpenVINO computes in bf16 if the CPU can, else in fp32",)
    for name, text in card.to_metadata().items():
        model.set_rt_info(text, [SECTION, name])
    with writing(path, sum(tensor.nbytes for tensor in program.state_dict.values())):
        ov.save_model(model, path, compress_to_fp16=False)
    return WrittenFiles([path.with_suffix(".bin"), path], notes)


def quantize(model: Any, request: ExportRequest) -> Any:
    """Return a model in int8 by NNCF, which chooses the layers that stay fp32.

    Not with its preset for transformers: its SmoothQuant loses a third of the accuracy of narrow models.
    """
    with quiet():
        nncf = import_extra("nncf", "openvino")
    assert request.calibration is not None
    batches = [batch.numpy() for batch in calibration_batches(request.calibration, request.card)]
    # 7-bit weights: sums of 8-bit ones overflow on CPUs without VNNI.
    parameters = nncf.AdvancedQuantizationParameters(overflow_fix=nncf.OverflowFix.ENABLE)
    with quiet():
        return nncf.quantize(model, nncf.Dataset(batches), subset_size=len(batches), advanced_parameters=parameters)


def store_as_bf16(model: Any, ov: Any) -> None:
    """Store weights in bf16, converted to fp32 where they are used."""
    for node in model.get_ops():
        if node.get_type_name() != "Constant" or node.get_element_type() != ov.Type.f32 or node.data.size < 2:
            continue
        half = torch.from_numpy(node.data.copy()).bfloat16()
        stored = ov.op.Constant(ov.Type.bf16, ov.Shape(list(half.shape)), half.float().flatten().tolist())
        converted = ov.opset13.convert(stored, "f32")
        converted.get_rt_info()["decompression"] = ""
        for target in node.output(0).get_target_inputs():
            target.replace_source_output(converted.output(0))
