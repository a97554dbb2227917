"""Writer of ONNX files: torch's exporter, onnxslim, and ONNX Runtime's static quantization for int8."""

from typing import Any

import torch

from convnext.console import quiet
from convnext.environment import import_extra
from convnext.exporting.formats import ExportRequest, WrittenFiles
from convnext.exporting.graph import calibration_batches, export_program, make_graph
from convnext.files import writing

EXTRA = "onnx"
OPSET = 20  # the first with GELU; these models use nothing of later ones, which fewer runtimes know
MAX_BYTES = 2_000_000_000  # of weights in one file: protobuf holds 2^31 bytes in all
QUANTIZED_OPS = ("MatMul", "Conv")


def write(request: ExportRequest) -> WrittenFiles:
    """Write an ``.onnx`` file, with its weights in ``NAME.onnx.data`` if they are too large for one file."""
    ir = import_extra("onnx_ir", EXTRA)
    card, path = request.card, request.path
    program = export_program(make_graph(request.model, card), card)
    size = sum(tensor.nbytes for tensor in program.state_dict.values())
    is_large = size > MAX_BYTES
    with quiet():
        exported = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=OPSET,
            input_names=[card.input_name],
            output_names=[card.output_name],
            verbose=False,
        )
    assert exported is not None
    model: Any = exported.model
    if not is_large:
        model = ir.from_proto(import_extra("onnxslim", EXTRA).slim(ir.to_proto(model)))
    if request.calibration is not None:
        model = quantize(model, request, is_large)
    if card.precision == "bf16":
        store_as_bf16(model, ir)
    remove_origins(model)
    model.metadata_props.update(card.to_metadata())
    model.producer_name = "convnext"
    data = f"{path.name}.data" if is_large else None
    with writing(path, size):
        ir.save(model, path, external_data=data)
    notes = (f"its weights are in {data}: keep both files together",) if data else ()
    if card.precision == "bf16":
        notes += ("its weights are bf16, half the size; ONNX Runtime computes in fp32 on the CPU",)
    return WrittenFiles([path.with_name(data), path] if data else [path], notes)


def remove_origins(model: Any) -> None:
    """Remove what the exporter records about each node: paths of source files on this machine."""
    for graph in (model.graph, *(function.graph for function in model.functions.values())):
        for node in graph:
            node.metadata_props.clear()
        graph.metadata_props.clear()
        for value in (*graph.inputs, *graph.outputs, *graph.initializers.values()):
            value.metadata_props.clear()


def store_as_bf16(model: Any, ir: Any) -> None:
    """Store weights in bf16, cast to fp32 where they are used, which a runtime does once."""
    for value in list(model.graph.initializers.values()):
        weight = value.const_value
        if weight is None or weight.dtype != ir.DataType.FLOAT or weight.size < 2:
            continue
        half = torch.from_numpy(weight.numpy().copy()).bfloat16()
        stored = ir.Value(
            name=f"{value.name}_bf16",
            shape=value.shape,
            type=ir.TensorType(ir.DataType.BFLOAT16),
            const_value=ir.tensor(half, name=f"{value.name}_bf16"),
        )
        cast = ir.Node("", "Cast", [stored], [ir.AttrInt64("to", ir.DataType.FLOAT)], num_outputs=1)
        cast.outputs[0].shape, cast.outputs[0].type = value.shape, value.type
        del model.graph.initializers[value.name]
        cast.outputs[0].name = value.name
        value.replace_all_uses_with(cast.outputs[0])
        model.graph.initializers.add(stored)
        model.graph.insert_before(model.graph[0], cast)


def quantize(model: Any, request: ExportRequest, is_large: bool) -> Any:
    """Return an onnx_ir model in int8, with activation ranges from the calibration images.

    The 1x1 layers and dense convolutions become int8 products: nearly all of the work. Stem, depthwise and downsampling
    convolutions, norms and the classifier stay fp32: 0.1 to 5 % of the work, but most of the loss of accuracy.
    """
    ir, quantization = import_extra("onnx_ir", EXTRA), import_extra("onnxruntime.quantization", EXTRA)
    assert request.calibration is not None
    batches = iter(calibration_batches(request.calibration, request.card))

    class Reader(quantization.CalibrationDataReader):
        """Calibration images, for the quantizer."""

        def get_next(self) -> dict[str, Any] | None:
            batch = next(batches, None)
            return None if batch is None else {request.card.input_name: batch.numpy()}

    folder = request.path.parent / "int8"
    folder.mkdir()
    ir.save(model, folder / "fp32.onnx", external_data="fp32.data" if is_large else None)
    excluded = [node.name for node in model.graph if node.op_type in QUANTIZED_OPS and not is_quantized(node)]
    with quiet():
        quantization.quantize_static(
            folder / "fp32.onnx",
            folder / "int8.onnx",
            Reader(),
            op_types_to_quantize=list(QUANTIZED_OPS),
            nodes_to_exclude=excluded,
            per_channel=True,
            reduce_range=True,  # 7-bit weights: sums of 8-bit ones overflow on CPUs without VNNI
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            use_external_data_format=is_large,
        )
    return ir.load(folder / "int8.onnx")


def is_quantized(node: Any) -> bool:
    """True if a node becomes an int8 product: a 1x1 layer, or a dense convolution that is not the stem (3 input
    channels) and does not downsample (2x2 kernel)."""
    weight = node.inputs[1].const_value
    if node.op_type == "MatMul":
        return weight is not None and weight.shape.rank() == 2
    groups = node.attributes["group"].as_int() if "group" in node.attributes else 1
    return weight is not None and groups == 1 and weight.shape[1] > 3 and weight.shape[2] != 2
