"""Compile the depthwise kernels for the maps of networks; print what each needs, as JSON. Not in the interpreter."""

import json
import sys

import torch

from convnext.kernels.gpu import depthwise_triton
from tests.kernels.gpu.compiled import Compiler

MAPS = [(64, 56, 96), (256, 28, 192), (64, 14, 384), (64, 7, 768), (1, 14, 384), (64, 9, 352)]  # N, H = W, C


def main(maps: list[tuple[int, int, int]], dtype: torch.dtype, size: int) -> None:
    """Forward, both gradients and the norm's."""
    compiler = Compiler()
    depthwise_triton.launch = compiler
    for samples, side, channels in maps:
        x = torch.empty(samples, side, side, channels, dtype=dtype, device="meta")
        weight, bias = (torch.empty(shape, device="meta") for shape in ((channels, 1, size, size), (channels,)))
        _, scale = depthwise_triton.convolve_norm(x, weight, bias, 1e-6)
        depthwise_triton.norm_gradient(x, x, scale)
        depthwise_triton.convolve(x, weight, None, turned=True)
        depthwise_triton.weight_gradient(x, x, size)
    json.dump([need._asdict() for need in compiler.needs], sys.stdout)


if __name__ == "__main__":
    index, name, size = sys.argv[1:]
    main(MAPS if index == "all" else [MAPS[int(index)]], getattr(torch, name), int(size))
