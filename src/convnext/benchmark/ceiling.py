"""The ceiling: how fast this machine multiplies matrices, which no network's convolutions and linear layers exceed."""

from functools import partial

import torch

from convnext.acceleration.clock import alternate
from convnext.benchmark.case import Precision
from convnext.benchmark.settings import Call

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
# Rows, inner size and columns: linear layers of ConvNeXt-T's last three stages for 16 images of 224 px, and squares.
SIZES = ((12544, 192, 768), (3136, 384, 1536), (784, 3072, 768), (1024, 1024, 1024), (2048, 2048, 2048))
GPU_SIZES = ((4096, 4096, 4096), (8192, 8192, 8192))
TRAINING_PASSES = 3  # forward, and backward for the gradients of input and weights


def matrix_products(precision: Precision, device: torch.device) -> tuple[Call, float]:
    """The matrix product of the highest rate among sizes like a network's, as a call; and its FLOP."""
    calls, flop = {}, {}
    for size in SIZES if device.type == "cpu" else GPU_SIZES:
        rows, inner, columns = size
        left = torch.randn(rows, inner, device=device, dtype=DTYPES[precision])
        right = torch.randn(inner, columns, device=device, dtype=DTYPES[precision])
        calls[size] = partial(torch.mm, left, right)
        flop[size] = 2.0 * rows * inner * columns
    times = alternate(calls, rounds=5)
    best = max(calls, key=lambda size: flop[size] / min(times[size]))
    return calls[best], flop[best]


def flop_of_image(macs: int, mode: str) -> float:
    """FLOP that an image takes: twice its multiply-accumulates, in training for each of the three passes."""
    return 2.0 * macs * (TRAINING_PASSES if mode == "training" else 1)
