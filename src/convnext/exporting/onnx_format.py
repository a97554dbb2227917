"""ONNX: written by torch's exporter, slimmed, opened by ONNX Runtime."""

from typing import Any

import torch

from convnext.console import quiet
from convnext.environment import import_extra
from convnext.exporting.graph import graph_of, program_of
from convnext.exporting.job_types import Order, Written
from convnext.exporting.onnx_int8 import quantize
from convnext.files import writing

EXTRA = "onnx"
OPSET = 20  # the first with GELU; what later ones have, these networks do not use, and fewer runtimes know
LARGEST = 2_000_000_000  # bytes of weights in one file: protobuf takes 2^31 in all


def write(order: Order) -> Written:
    """Write the file; with weights beside it, ``NAME.data``, where they are too large for one."""
    ir = import_extra("onnx_ir", EXTRA)
    card, path = order.card, order.path
    program = program_of(graph_of(order.model, card), card)
    size = sum(tensor.nbytes for tensor in program.state_dict.values())
    large = size > LARGEST
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
    if not large:
        model = slimmed(model, ir)
    if order.calibration is not None:
        model = quantize(model, order, large)
    if card.precision == "bf16":
        halve(model, ir)
    forget(model)
    model.metadata_props.update(card.to_metadata())
    model.producer_name = "convnext"
    beside = f"{path.name}.data" if large else None
    with writing(path, size):
        ir.save(model, path, external_data=beside)
    files = [path.with_name(beside), path] if beside else [path]
    notes = (f"its weights are beside it, in {beside}: keep both together",) if beside else ()
    if card.precision == "bf16":
        notes += ("its weights are bf16, half the size; ONNX Runtime computes in fp32 on the processor",)
    return Written(files, notes)


def slimmed(model: Any, ir: Any) -> Any:
    """The same graph with fewer nodes."""
    onnxslim = import_extra("onnxslim", EXTRA)
    return ir.from_proto(onnxslim.slim(ir.to_proto(model)))


def forget(model: Any) -> None:
    """Take out what the exporter notes of each node: where its source lies on this machine."""
    for graph in (model.graph, *(function.graph for function in model.functions.values())):
        for node in graph:
            node.metadata_props.clear()
        graph.metadata_props.clear()
        for value in (*graph.inputs, *graph.outputs, *graph.initializers.values()):
            value.metadata_props.clear()


def halve(model: Any, ir: Any) -> None:
    """Hold weights in bf16; they become fp32 again where they are used, which a runtime does once."""
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
