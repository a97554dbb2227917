"""Post-training quantisation of a model's matrix products to int8, for the CPU, calibrated on images.

Weights are int8 with a scale for each output channel, inputs uint8 with one scale and zero point for each layer, from
the range that the calibration images give it. ConvNeXt V1 is computed by this package's kernels
(:class:`FusedNetwork`); other networks' products are torch's own (oneDNN), where there is VNNI.
Depthwise convolutions, norms, the stem, downsampling and the classifier are not quantised.
"""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convnext.acceleration.cpu.inference_kernels import (
    FusedNetwork,
    Range,
    can_fuse,
    has_bf16,
    inference_library,
    rounded_weight,
)
from convnext.acceleration.folding import folded
from convnext.device import has_cpu_bf16
from convnext.errors import RunError, UsageError
from convnext.models.convnext import Block, ConvNeXt, IsotropicConvNeXt
from convnext.models.layers import PointwiseLinear, to_nchw, to_nhwc

CALIBRATION_BATCH = 8
PART_PIXELS = 4 * 224 * 224  # of the images that go through together: their maps stay in the cache from layer to layer
PACKED_FOR = 1024  # rows that oneDNN lays the weights out for; it multiplies any number of them


def quantize(model: nn.Module, calibration: Tensor) -> nn.Module:
    """Make an int8 variant of a trained model, which stays as it is.

    ConvNeXt V1 is computed by the kernels, its blocks' products in int8 and its maps in fp32. Where these cannot be
    built, and in V2, blocks are computed by torch's products, with bf16 maps between where the CPU has bf16. Of other
    models, the linear layers and 1x1 convolutions that forward calls as modules are replaced; the rest stays fp32.

    Args:
        model: of this package or a reference, in fp32 on the CPU.
        calibration: normalised images (N, in_chans, H, W); a few dozen of those that it will see.

    Returns:
        A module in evaluation mode, from images (N, in_chans, H, W) to fp32 logits; any batch size. It lives in this
        process only: weights packed for the CPU cannot be copied or saved.

    Raises:
        UsageError: there are no int8 products for the model here, it is not in fp32 on the CPU, or the images are not a
            batch of finite images.
    """
    check(model, calibration)
    variant, reason = folded(model), ""
    if can_fuse(variant):
        try:
            inference_library()
            return by_kernels(variant, calibration)
        except RunError as error:
            reason = f", or this package's kernels, which cannot be had: {error}"
    if not torch.cpu._is_vnni_supported():
        reason = reason or ". ConvNeXt V1 needs none; take precision bf16 or fp32 for other models"
        raise UsageError(f"int8 needs an x86 CPU with VNNI, which this one is not{reason}")
    blocks = {name: block for name, block in variant.named_modules() if type(block) is Block}
    # The classifier's product is a thousandth of the work, and its rounding goes straight into the logits.
    head = getattr(variant, "head", None) if isinstance(variant, ConvNeXt | IsotropicConvNeXt) else None
    linears = {name: layer for name, layer in variant.named_modules() if is_plain_linear(layer) and layer is not head}
    ranges = observe(variant, linears.values(), calibration)
    inside = {module for block in blocks.values() for module in block.modules()}
    for name, linear in linears.items():
        if linear in ranges and linear not in inside:
            variant.set_submodule(name, Int8Linear.of(linear, ranges[linear]))
    for name, block in blocks.items():
        variant.set_submodule(name, Int8Block(block, ranges[block.pwconv1], ranges[block.pwconv2]))
    if blocks:
        lower_precision(variant)
    return Int8Network(variant, activation_dtype() if blocks else torch.float32).requires_grad_(False).eval()


def by_kernels(model: nn.Module, calibration: Tensor) -> nn.Module:
    """A folded ConvNeXt V1 by the kernels; downsampling is 4 % of the products, and in int8 would double the error."""
    layers = [layer for block in model.modules() if type(block) is Block for layer in (block.pwconv1, block.pwconv2)]
    fused = FusedNetwork(model, bf16=has_bf16(), ranges=observe(model, layers, calibration))
    return Int8Network(fused, torch.float32, split=False).requires_grad_(False).eval()


def check(model: nn.Module, images: Tensor) -> None:
    """Refuse a model that is not in fp32 on the CPU, and what is not a batch of finite images there.

    Raises:
        UsageError: it is so.
    """
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.device.type != "cpu":
            raise UsageError(f"int8 runs on the CPU, but {name} is on {tensor.device}: pass model.cpu()")
        if tensor.is_floating_point() and tensor.dtype != torch.float32:
            raise UsageError(f"int8 is made of an fp32 model, but {name} is {tensor.dtype}: pass model.float()")
    if images.ndim != 4 or not images.is_floating_point() or not len(images):
        raise UsageError(
            f"calibration needs normalised images (N, in_chans, H, W) in fp32, a few dozen; {tuple(images.shape)} of "
            f"{images.dtype} arrived"
        )
    if images.device.type != "cpu":
        raise UsageError(f"calibration runs on the CPU, its images are on {images.device}: pass images.cpu()")
    if not images.isfinite().all():
        raise UsageError("calibration images hold values that are not finite (NaN or infinity): remove these images")


def observe(model: nn.Module, layers: Iterable[nn.Module], images: Tensor) -> dict[nn.Module, Range]:
    """The ranges of the inputs of the layers that the forward pass calls."""
    ranges: dict[nn.Module, Range] = {}

    def widen(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        ranges.setdefault(layer, Range()).widen(inputs[0])

    handles = [layer.register_forward_pre_hook(widen) for layer in layers]
    try:
        with torch.inference_mode():
            for batch in images.float().split(CALIBRATION_BATCH):
                model(batch)
    finally:
        for handle in handles:
            handle.remove()
    return ranges


def agreement(a_logits: Tensor, b_logits: Tensor) -> float:
    """The fraction of samples, 0 to 1, with the same top-1 by two logits (N, num_classes).

    Raises:
        UsageError: the shapes differ, or there is no sample.
    """
    if a_logits.shape != b_logits.shape or a_logits.ndim != 2 or not len(a_logits):
        shapes = f"{tuple(a_logits.shape)} and {tuple(b_logits.shape)}"
        raise UsageError(f"two logits (N, num_classes) of one shape are needed, {shapes} arrived")
    return (a_logits.argmax(1) == b_logits.argmax(1)).double().mean().item()


class Int8Linear(nn.Module):
    """A linear layer over the last dimension, its input quantised by ``scale`` and ``zero_point``."""

    def __init__(self, weight: Tensor, bias: Tensor | None, inputs: Range, channels_first: bool = False) -> None:
        super().__init__()
        self.scale, self.zero_point = inputs.scale, inputs.zero_point
        self.channels_first = channels_first
        rounded, self.weight_scale = rounded_weight(weight.detach())
        self.weight = torch.ops.onednn.qlinear_prepack(rounded, [PACKED_FOR, weight.shape[1]])
        self.weight_zero_point = torch.zeros(len(weight), dtype=torch.int32)
        self.bias = None if bias is None else bias.detach().clone()
        self.out_features = len(weight)

    @classmethod
    def of(cls, linear: nn.Module, inputs: Range) -> "Int8Linear":
        """The int8 form of a layer that :func:`is_plain_linear`."""
        assert isinstance(linear, nn.Linear | nn.Conv2d)
        return cls(linear.weight.flatten(1), linear.bias, inputs, channels_first=type(linear) is not nn.Linear)

    def forward(self, input: Tensor) -> Tensor:
        x = to_nhwc(input) if self.channels_first else input
        if not x.numel():
            y = x.new_zeros(*x.shape[:-1], self.out_features)
        else:
            rows = quantized(torch.mul(x, 1 / self.scale).add_(self.zero_point)).reshape(-1, x.shape[-1])
            y = self.product(rows, x.dtype).view(*x.shape[:-1], -1)
        return to_nchw(y) if self.channels_first else y

    def product(
        self, rows: Tensor, dtype: torch.dtype, scale: float = 1.0, zero_point: int = 0, gelu: bool = False
    ) -> Tensor:
        """Quantised rows (M, in_features) to (M, out_features): GELU of it if asked for, quantised if uint8."""
        return torch.ops.onednn.qlinear_pointwise(
            *self.operands(rows), self.bias, scale, zero_point, dtype, "gelu" if gelu else "none", [], "none"
        )

    def product_plus(self, rows: Tensor, other: Tensor) -> Tensor:
        """Quantised rows (M, in_features) to (M, out_features) added to ``other``, in its type."""
        return torch.ops.onednn.qlinear_pointwise(
            *self.operands(rows), other, self.bias, 1.0, 0, other.dtype, 1.0, 0, "add", 1.0, "none", [], "none"
        )

    def operands(self, rows: Tensor) -> tuple[Tensor, float, int, Tensor, Tensor, Tensor]:
        """The operators' first arguments."""
        return rows, self.scale, self.zero_point, self.weight, self.weight_scale, self.weight_zero_point


class Int8Block(nn.Module):
    """ConvNeXt's block, V1 or V2, (N, C, H, W) to the same: both linear layers in int8, the rest as the input is.

    The block is a folded one: the first layer's input is quantised by the norm, whose affine is the layer's. GELU and
    the quantisation of its result, and the addition of the shortcut, are parts of the products.
    """

    def __init__(self, block: Block, normalised: Range, hidden: Range) -> None:
        super().__init__()
        dtype = activation_dtype()
        self.linear1 = Int8Linear.of(block.pwconv1, normalised)
        self.linear2 = Int8Linear.of(
            block.pwconv2, hidden.after_gelu() if isinstance(block.grn, nn.Identity) else hidden
        )
        self.dwconv = block.dwconv.to(dtype)
        self.grn = None if isinstance(block.grn, nn.Identity) else block.grn.to(dtype)
        self.eps = block.norm.eps
        channels = block.pwconv2.out_features
        self.norm_weight = torch.full((channels,), 1 / normalised.scale, dtype=dtype)
        self.norm_bias = torch.full((channels,), normalised.zero_point, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = to_nhwc(x)  # (N, H, W, C)
        n, h, w, c = shortcut.shape
        if not x.numel():
            return x
        y = to_nhwc(self.dwconv(x)).reshape(-1, c)
        y = quantized(F.layer_norm(y, (c,), self.norm_weight, self.norm_bias, self.eps))
        scale, zero_point = self.linear2.scale, self.linear2.zero_point
        if self.grn is None:
            y = self.linear1.product(y, torch.uint8, scale, zero_point, gelu=True)
        else:
            y = self.grn(self.linear1.product(y, x.dtype, gelu=True).view(n, h, w, -1)).view(n * h * w, -1)
            y = quantized(y.mul_(1 / scale).add_(zero_point))
        return to_nchw(self.linear2.product_plus(y, shortcut.reshape(-1, c)).view(n, h, w, c))


class Int8Network(nn.Module):
    """A model of quantised layers, from fp32 to fp32 whatever is inside; large batches are split."""

    def __init__(self, network: nn.Module, dtype: torch.dtype, split: bool = True) -> None:
        super().__init__()
        self.network = network
        self.dtype = dtype
        self.split = split  # or the network does so itself

    @torch.inference_mode()
    def forward(self, x: Tensor) -> Tensor:
        size = max(1, PART_PIXELS // max(1, x.shape[-1] * x.shape[-2])) if self.split else max(1, len(x))
        return torch.cat([self.network(part.to(self.dtype)).float() for part in x.split(size)])


def lower_precision(network: nn.Module) -> None:
    """Compute a ConvNeXt's maps in the processor's fast type, and what follows its pooling in fp32, in place."""
    tail = nn.Sequential(network.get_submodule("norm"), network.get_submodule("head"))
    network.norm = network.head = nn.Identity()  # their weights would lose bits
    network.to(activation_dtype())
    tail[0].register_forward_pre_hook(lambda _, inputs: (inputs[0].float(),))
    network.norm, network.head = tail[0], tail[1]


def activation_dtype() -> torch.dtype:
    """bf16 where the processor multiplies it, fp32 elsewhere."""
    return torch.bfloat16 if has_cpu_bf16() else torch.float32


def is_plain_linear(module: nn.Module) -> bool:
    """Whether a module computes what ``nn.Linear`` does, over the last dimension or over channels, and no more."""
    if type(module) is nn.Conv2d:
        one = module.kernel_size == module.stride == (1, 1)
        return one and module.groups == 1 and module.padding in ((0, 0), "valid", "same")
    return type(module) in (nn.Linear, PointwiseLinear)


def quantized(x: Tensor) -> Tensor:
    """Values in steps of 1, rounded to uint8; ``x`` is overwritten."""
    return x.clamp_(0, 255).round_().to(torch.uint8)
