"""The authors' layout, which is this package's own too, and the sparse form that masked pre-training (FCMAE) saves."""

import math

from torch import Tensor

from convnext.weights.layouts.rules import Layout, Rule, flat, on_positions


def dense_kernel(kernel: Tensor) -> Tensor:
    """A sparse convolution's kernel to a dense one's weight.

    The sparse library lists a kernel's places along one axis, column by column: (K * K, C) for a depthwise convolution
    becomes (C, 1, K, K), and (K * K, I, O) becomes (O, I, K, K).
    """
    size = math.isqrt(kernel.shape[0])
    places = kernel.reshape(size, size, *kernel.shape[1:]).transpose(0, 1)  # (row, column, ...)
    if kernel.ndim == 2:
        return places.permute(2, 0, 1).unsqueeze(1).contiguous()
    return places.permute(3, 2, 0, 1).contiguous()


def sparse_kernel(weight: Tensor) -> Tensor:
    """The way back from :func:`dense_kernel`."""
    places = weight.squeeze(1).permute(1, 2, 0) if weight.shape[1] == 1 else weight.permute(2, 3, 1, 0)
    return places.transpose(0, 1).flatten(0, 1).contiguous()


def row(bias: Tensor) -> Tensor:
    """(C,) to (1, C)."""
    return bias.reshape(1, -1)


def kept(*names: str) -> tuple[Rule, ...]:
    """The rules of names that are the official ones."""
    return tuple(Rule(name, name) for name in names)


def block(place: str) -> tuple[Rule, ...]:
    """The rules of a block of V1, whose names here are the official ones."""
    parts = ("gamma", "dwconv.{p}", "norm.{p}", "pwconv1.{p}", "pwconv2.{p}")
    return kept(*(f"{place}.{part}" for part in parts))


END = kept("norm.{p}", "head.{p}")


OFFICIAL = Layout(
    "official",
    anchors=("downsample_layers.0.0.weight", "stages.0.0.dwconv.weight"),
    rules=(
        *kept("downsample_layers.{i}.{j}.{p}"),
        *block("stages.{i}.{j}"),
        Rule("stages.{i}.{j}.grn.gamma", "stages.{i}.{j}.grn.gamma", on_positions),  # (1, 4C) after masked pre-training
        Rule("stages.{i}.{j}.grn.beta", "stages.{i}.{j}.grn.beta", on_positions),
        *END,
    ),
    unused=("norms.", "decoder.", "proj.", "pred.", "mask_token"),  # DINOv3's map norms, FCMAE's decoder
)

ISOTROPIC = Layout(
    "official",
    anchors=("stem.weight", "blocks.0.dwconv.weight"),
    rules=(
        *kept("stem.{p}"),
        *block("blocks.{j}"),
        *END,
    ),
)

SPARSE = Layout(
    "official, sparse",
    anchors=("downsample_layers.0.0.weight", "stages.0.0.dwconv.kernel"),
    rules=(
        *kept("downsample_layers.0.{j}.{p}"),  # the stem is dense
        Rule("downsample_layers.{i}.0.ln.{p}", "downsample_layers.{i}.0.{p}"),
        Rule("downsample_layers.{i}.1.kernel", "downsample_layers.{i}.1.weight", dense_kernel, sparse_kernel),
        Rule("downsample_layers.{i}.1.bias", "downsample_layers.{i}.1.bias", flat, row),
        Rule("stages.{i}.{j}.dwconv.kernel", "stages.{i}.{j}.dwconv.weight", dense_kernel, sparse_kernel),
        Rule("stages.{i}.{j}.dwconv.bias", "stages.{i}.{j}.dwconv.bias", flat, row),
        Rule("stages.{i}.{j}.norm.ln.{p}", "stages.{i}.{j}.norm.{p}"),
        Rule("stages.{i}.{j}.pwconv1.linear.{p}", "stages.{i}.{j}.pwconv1.{p}"),
        Rule("stages.{i}.{j}.grn.gamma", "stages.{i}.{j}.grn.gamma", on_positions, lambda gamma: row(flat(gamma))),
        Rule("stages.{i}.{j}.grn.beta", "stages.{i}.{j}.grn.beta", on_positions, lambda beta: row(flat(beta))),
        Rule("stages.{i}.{j}.pwconv2.linear.{p}", "stages.{i}.{j}.pwconv2.{p}"),
        *END,
    ),
    unused=OFFICIAL.unused,
)
