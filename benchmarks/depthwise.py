"""How fast does the depthwise convolution train here, against torch's own, alone and in a whole step of ConvNeXt-T?

Paths take turns, round by round, so that a slow moment of the machine falls on all; ratios are medians of the rounds'
own. Writes ``results/depthwise-cpu.csv``. Usage: ``python benchmarks/depthwise.py [--rounds 31] [--steps 7]``.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from result_files import write_rows
from torch import Tensor, nn

import convnext
from convnext.kernels.depthwise import depthwise_conv2d, depthwise_weight_gradient, plain_weight_gradient
from convnext.kernels.native import available

BATCH = 8
STAGES = ((96, 56), (192, 28), (384, 14), (768, 7))  # ConvNeXt-T's at 224 px: channels, height and width
KERNEL = 7
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


def seconds_of(calls: dict[str, Callable[[], Any]], rounds: int, warm_up: int = 2) -> dict[str, list[float]]:
    """Seconds of each call in each round."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for round_number in range(rounds + warm_up):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if round_number >= warm_up:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def rows_of(what: str, precision: str, seconds: dict[str, list[float]], against: str, flop: float) -> list[dict]:
    """A row a path: milliseconds, and how many times as fast as the path ``against`` it is."""
    rows = []
    for name, times in seconds.items():
        low, median, high = statistics.quantiles(times, n=4)
        ratios = [theirs / ours for ours, theirs in zip(times, seconds[against], strict=True)]
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
                "times_as_fast": f"{statistics.median(ratios):.2f}",
            }
        )
        print(*rows[-1].values(), sep="  ")
    return rows


def convolution_rows(precision: str, rounds: int) -> list[dict]:
    """The gradient of the weight, and backward as a whole, at each stage's shape."""
    rows = []
    for channels, size in STAGES:
        shape = (BATCH, channels, size, size)
        x, grad = (
            torch.randn(shape, dtype=PRECISIONS[precision]).contiguous(memory_format=torch.channels_last)
            for _ in range(2)
        )
        x.requires_grad_()
        weight = torch.randn(channels, 1, KERNEL, KERNEL, dtype=PRECISIONS[precision], requires_grad=True)
        bias = torch.zeros(channels, dtype=PRECISIONS[precision], requires_grad=True)
        convolve = partial(F.conv2d, x, weight, bias, padding=KERNEL // 2, groups=channels)
        outputs = {"ours": depthwise_conv2d(x, weight, bias), "torch": convolve()}
        flop = 2.0 * x.numel() * KERNEL**2
        where = f"{size}x{size}x{channels}"
        with torch.no_grad():
            forward = seconds_of({"torch": convolve}, rounds)
            gradients = {
                "ours": partial(depthwise_weight_gradient, x, grad, KERNEL),
                "torch": partial(plain_weight_gradient, x, grad, KERNEL),
            }
            weight_gradient = seconds_of(gradients, rounds)
        backwards = {
            name: partial(torch.autograd.grad, output, (x, weight, bias), grad, retain_graph=True)
            for name, output in outputs.items()
        }
        rows += rows_of(f"forward {where}", precision, forward, "torch", flop)
        rows += rows_of(f"weight gradient {where}", precision, weight_gradient, "torch", flop)
        rows += rows_of(f"backward {where}", precision, seconds_of(backwards, rounds), "torch", 2 * flop)
    return rows


def training_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, batch: tuple[Tensor, Tensor], precision: str, word: str
) -> None:
    """One step, this package's kernels on or off."""
    os.environ["CONVNEXT_KERNELS"] = word
    images, labels = batch
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        loss = F.cross_entropy(model(images).float(), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def step_rows(precision: str, steps: int) -> list[dict]:
    """A training step of ConvNeXt-T with AdamW: fast, plain, and timm's network."""
    images = torch.randn(BATCH, 3, 224, 224).contiguous(memory_format=torch.channels_last)
    batch = images, torch.randint(1000, (BATCH,))
    calls = {}
    paths = (("ours", "convnext_tiny", "on"), ("plain", "convnext_tiny", "off"), ("timm", "timm/convnext_tiny", "off"))
    for path, name, word in paths:
        model = convnext.create_model(name).train().to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        optimizer = torch.optim.AdamW(model.parameters())
        calls[path] = partial(training_step, model, optimizer, batch, precision, word)
    seconds = seconds_of(calls, steps)
    flop = 3 * 2 * 4.456e9 * BATCH  # three forward passes
    return [
        row
        for against in ("plain", "timm")
        for row in rows_of("step of convnext_tiny", precision, seconds, against, flop)
        if row["path"] != against
    ]


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--steps", type=int, default=7)
    options = parser.parse_args()
    if not available():
        raise SystemExit("this measures the C kernel, which is not to be had here")
    rows = []
    for precision in PRECISIONS:
        rows += convolution_rows(precision, options.rounds)
    for precision in PRECISIONS:
        rows += step_rows(precision, options.steps)
    write_rows("depthwise-cpu", rows)


if __name__ == "__main__":
    main()
