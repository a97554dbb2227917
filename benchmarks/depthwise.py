"""How fast does the depthwise convolution train here, against torch's own?

Paths take turns, round by round, so that a slow moment of the machine falls on all; ratios are medians of the rounds'
own. Writes ``results/depthwise-PROCESSOR.csv``. Usage: ``python benchmarks/depthwise.py [--rounds 31]``.
"""

import argparse
from functools import partial

import torch
import torch.nn.functional as F
from result_files import processor_kind, write_rows

from convnext.acceleration.clock import alternate, quartiles, times_as_fast
from convnext.acceleration.cpu.depthwise import depthwise_conv2d, depthwise_gradient
from convnext.acceleration.cpu.native import available
from convnext.benchmark.benchmark_plan import choose_precisions
from convnext.benchmark.configurations import Precision
from convnext.benchmark.machine import DTYPES

BATCH = 8
STAGES = ((96, 56), (192, 28), (384, 14), (768, 7))  # ConvNeXt-T's at 224 px: channels, height and width
KERNEL = 7


def rows_of(what: str, precision: str, seconds: dict[str, list[float]], against: str, flop: float) -> list[dict]:
    """A row a path: milliseconds, and how many times as fast as the path ``against`` it is."""
    rows = []
    for name, times in seconds.items():
        low, median, high = quartiles(times)
        rows.append(
            {
                "what": what,
                "precision": precision,
                "batch": BATCH,
                "path": name,
                "milliseconds": f"{1e3 * median:.2f}",
                "quartiles": f"{1e3 * low:.2f} to {1e3 * high:.2f}",
                "gflops": f"{flop / median / 1e9:.1f}",
                "against": against,
                "times_as_fast": f"{times_as_fast(times, seconds[against]):.2f}",
            }
        )
        print(*rows[-1].values(), sep="  ")
    return rows


def torchs_weight_gradient(x: torch.Tensor, weight: torch.Tensor, grad: torch.Tensor) -> None:
    """The gradients with respect to weight and bias by torch."""
    channels, padding = x.shape[1], KERNEL // 2
    torch.ops.aten.convolution_backward.default(
        grad, x, weight, [channels], [1, 1], [padding] * 2, [1, 1], False, [0, 0], channels, [False, True, True]
    )


def convolution_rows(precision: Precision, rounds: int) -> list[dict]:
    """The gradient of the weight, and backward as a whole, at each stage's shape."""
    rows = []
    for channels, size in STAGES:
        shape = (BATCH, channels, size, size)
        x, grad = (
            torch.randn(shape, dtype=DTYPES[precision]).contiguous(memory_format=torch.channels_last) for _ in range(2)
        )
        x.requires_grad_()
        weight = torch.randn(channels, 1, KERNEL, KERNEL, dtype=DTYPES[precision], requires_grad=True)
        bias = torch.zeros(channels, dtype=DTYPES[precision], requires_grad=True)
        convolve = partial(F.conv2d, x, weight, bias, padding=KERNEL // 2, groups=channels)
        outputs = {"ours": depthwise_conv2d(x, weight, bias, 1), "torch": convolve()}
        flop = 2.0 * x.numel() * KERNEL**2
        where = f"{size}x{size}x{channels}"
        with torch.no_grad():
            forward = alternate({"torch": convolve}, rounds)
            gradients = {
                "ours": partial(depthwise_gradient, x, weight, grad, wants_x=False),
                "torch": partial(torchs_weight_gradient, x, weight, grad),
            }
            weight_gradient = alternate(gradients, rounds)
        backwards = {
            name: partial(torch.autograd.grad, output, (x, weight, bias), grad, retain_graph=True)
            for name, output in outputs.items()
        }
        rows += rows_of(f"forward {where}", precision, forward, "torch", flop)
        rows += rows_of(f"weight gradient {where}", precision, weight_gradient, "torch", flop)
        rows += rows_of(f"backward {where}", precision, alternate(backwards, rounds), "torch", 2 * flop)
    return rows


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=31)
    options = parser.parse_args()
    if not available():
        raise SystemExit("this measures the C kernel, which is not to be had here")
    rows = []
    for precision in choose_precisions((), torch.device("cpu")):
        rows += convolution_rows(precision, options.rounds)
    write_rows(f"depthwise-{processor_kind()}", rows)


if __name__ == "__main__":
    main()
