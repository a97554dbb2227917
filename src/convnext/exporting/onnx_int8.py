"""Int8 by ONNX Runtime: static quantisation, with the scales of inputs from calibration images.

The 1x1 layers and the dense convolutions become int8 products, which are nearly all of the work. The stem, depthwise
and downsampling convolutions, norms and the classifier stay fp32: a thousandth to a twentieth of the work, and the part
that costs accuracy.
"""

from typing import Any

from convnext.console import quiet
from convnext.environment import import_extra
from convnext.exporting.graph import batches_of
from convnext.exporting.job_types import Order

EXTRA = "onnx"


def quantize(model: Any, order: Order, large: bool) -> Any:
    """A graph in int8.

    Args:
        model: the graph in fp32, of onnx_ir.
        order: with the images to calibrate with.
        large: whether its weights are too many for one file.
    """
    ir, quantization = import_extra("onnx_ir", EXTRA), import_extra("onnxruntime.quantization", EXTRA)
    assert order.calibration is not None
    batches = iter(batches_of(order.calibration, order.card))

    class Reader(quantization.CalibrationDataReader):
        """What the quantiser takes its images from."""

        def get_next(self) -> dict[str, Any] | None:
            batch = next(batches, None)
            return None if batch is None else {order.card.input_name: batch.numpy()}

    folder = order.path.parent / "int8"
    folder.mkdir()
    plain, done = folder / "plain.onnx", folder / "int8.onnx"
    ir.save(model, plain, external_data="plain.data" if large else None)
    kinds = "MatMul", "Conv"
    with quiet():
        quantization.quantize_static(
            plain,
            done,
            Reader(),
            op_types_to_quantize=list(kinds),
            nodes_to_exclude=[node.name for node in model.graph if node.op_type in kinds and not is_quantized(node)],
            per_channel=True,
            reduce_range=True,  # weights of 7 bits: sums of 8 overflow on processors without VNNI
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            use_external_data_format=large,
        )
    return ir.load(done)


def is_quantized(node: Any) -> bool:
    """Whether a node's product becomes int8: that of a 1x1 layer, or of a dense convolution that keeps the map's size
    or its channels are many; see the module."""
    weight = node.inputs[1].const_value
    if node.op_type == "MatMul":
        return weight is not None and weight.shape.rank() == 2
    groups = node.attributes["group"].as_int() if "group" in node.attributes else 1
    if weight is None or groups > 1:
        return False
    inputs, kernel = weight.shape[1], weight.shape[2]
    return inputs > 3 and kernel != 2
