"""How fast do this package's kernels make training on the processor, each alone and in a whole step of ConvNeXt-T?

Calls take turns, round by round, so that a slow moment of the machine falls on all; ratios are medians of the rounds'
own. The ceiling is the machine's own matrix products, of which a step is three forward passes. Writes
``results/training-kernels-PROCESSOR.csv``. Usage: ``python benchmarks/training_kernels.py [--rounds 15] [--steps 7]``.
"""

import argparse
import os
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from result_files import processor_kind, write_rows
from torch import Tensor, nn

import convnext
from convnext.acceleration.clock import alternate, quartiles, times_as_fast
from convnext.acceleration.cpu import training_modules
from convnext.acceleration.cpu.native import available
from convnext.benchmark.benchmark_plan import choose_precisions
from convnext.benchmark.configurations import Precision
from convnext.benchmark.machine import flop_of_image, matrix_products
from convnext.models.convnext import Block
from convnext.models.layers import DepthwiseConv2d, LayerNorm

BATCH = 8
STAGES = ((96, 56), (192, 28), (384, 14), (768, 7))  # ConvNeXt-T's at 224 px: channels, height and width
CPU = torch.device("cpu")


def rows_of(
    what: str, precision: str, batch: int, seconds: dict[str, list[float]], flop: float = 0, ceiling: float = 0
) -> list[dict[str, Any]]:
    """A row a path: milliseconds, how many times as fast the first path is, and the share of the ceiling."""
    rows = []
    ours = next(iter(seconds.values()))
    for name, times in seconds.items():
        low, median, high = quartiles(times)
        rows.append(
            {
                "what": what,
                "precision": precision,
                "batch": batch,
                "path": name,
                "milliseconds": f"{1e3 * median:.2f}",
                "quartiles": f"{1e3 * low:.2f} to {1e3 * high:.2f}",
                "ours_times_as_fast": f"{times_as_fast(ours, times):.2f}",
                "of_ceiling": f"{flop / median / ceiling:.2f}" if ceiling else "",
            }
        )
        print(*rows[-1].values(), sep="  ", flush=True)
    return rows


def with_kernels(word: str, call: Callable[[], Any]) -> Any:
    """A call with this package's kernels on or off."""
    os.environ["CONVNEXT_KERNELS"] = word
    return call()


def layers(channels: int, size: int, precision: str) -> dict[str, tuple[Callable[..., Tensor], tuple[Tensor, ...]]]:
    """Parts of a block, and their inputs: maps in channels_last memory."""

    def maps(width: int, dtype: torch.dtype = torch.float32) -> Tensor:
        x = torch.randn(BATCH, width, size, size, dtype=dtype).contiguous(memory_format=torch.channels_last)
        return x.requires_grad_()

    x, hidden = maps(channels), maps(4 * channels)
    normed = maps(channels, torch.bfloat16 if precision == "bf16" else torch.float32)  # a convolution's output
    block = convnext.accelerate(Block(channels, 7, 0.1, 1.0, grn=False), training=True)
    depthwise, norm = DepthwiseConv2d(channels, 7), LayerNorm(channels)
    return {
        "depthwise convolution": (convnext.accelerate(depthwise, training=True), (x,)),
        "LayerNorm": (convnext.accelerate(norm, training=True), (normed.permute(0, 2, 3, 1),)),
        "linear layer and GELU": (
            lambda x: choose(training_modules.linear_gelu, plain_gelu)(x, block.pwconv1),
            (x.permute(0, 2, 3, 1),),
        ),
        "linear layer, LayerScale, stochastic depth, addition": (
            lambda shortcut, hidden: choose(training_modules.add_branch, plain_branch)(shortcut, hidden, block),
            (x.permute(0, 2, 3, 1), hidden.permute(0, 2, 3, 1)),
        ),
        "both linear layers and what is between and behind them": (
            lambda shortcut, x: choose(training_modules.add_mlp, plain_mlp)(shortcut, x, block),
            (x.permute(0, 2, 3, 1), normed.permute(0, 2, 3, 1)),
        ),
    }


def choose(ours: Callable[..., Tensor], plain: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The kernels' path, or torch's where they are off."""
    return ours if available() else plain


def plain_gelu(x: Tensor, linear: nn.Linear) -> Tensor:
    """A linear layer and GELU by torch."""
    return F.gelu(linear(x))


def plain_branch(shortcut: Tensor, x: Tensor, block: Block) -> Tensor:
    """The end of a block by torch."""
    return shortcut + block.drop_path(block.gamma * block.pwconv2(x))


def plain_mlp(shortcut: Tensor, x: Tensor, block: Block) -> Tensor:
    """The MLP of a block by torch."""
    return plain_branch(shortcut, plain_gelu(x, block.pwconv1), block)


def forward_and_backward(layer: Callable[..., Tensor], inputs: tuple[Tensor, ...], precision: str) -> None:
    """A layer's part of a step."""
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        output = layer(*inputs)
    output.backward(torch.ones_like(output))


def layer_rows(precision: str, rounds: int) -> list[dict[str, Any]]:
    """Every layer, forward and backward, at each stage's shape."""
    rows = []
    for channels, size in STAGES:
        for name, (layer, inputs) in layers(channels, size, precision).items():
            call = partial(forward_and_backward, layer, inputs, precision)
            calls = {"ours": partial(with_kernels, "on", call), "torch": partial(with_kernels, "off", call)}
            rows += rows_of(f"{name} {size}x{size}x{channels}", precision, BATCH, alternate(calls, rounds))
    return rows


def training_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, batch: tuple[Tensor, Tensor], precision: str
) -> None:
    """One step."""
    images, labels = batch
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        logits = model(images)
    loss = F.cross_entropy(logits.float(), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def step_rows(
    name: str, peers: tuple[str, ...], precision: Precision, steps: int, options: dict[str, Any]
) -> list[dict]:
    """A network's training step: with the kernels, without, and those of other libraries, eager in channels_last."""
    image_size, batch_size = options.pop("image_size"), options.pop("batch_size")
    images = torch.randn(batch_size, 3, image_size, image_size).contiguous(memory_format=torch.channels_last)
    batch = images, torch.randint(options.get("num_classes", 1000), (batch_size,))
    calls = {}
    for path, model_name, word in (
        ("ours", name, "on"),
        ("kernels off", name, "off"),
        *((peer, peer, "off") for peer in peers),
    ):
        model = convnext.create_model(model_name, **options).train().to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        if path == "ours":
            convnext.accelerate(model, training=True)
        optimizer = torch.optim.AdamW(model.parameters(), fused=True)
        calls[path] = partial(with_kernels, word, partial(training_step, model, optimizer, batch, precision))
    seconds = alternate(calls, steps)
    if name != "convnext_tiny":
        return rows_of(f"step of {name}", precision, batch_size, seconds)
    macs = convnext.cost(convnext.create_model(name), image_size).macs
    product, flop = matrix_products(precision, CPU)
    ceiling = flop / min(alternate({"product": product}, 15)["product"])
    return rows_of(
        f"step of {name}", precision, batch_size, seconds, batch_size * flop_of_image(macs, "training"), ceiling
    )


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=7)
    options = parser.parse_args()
    if not available():
        raise SystemExit("this measures the C kernels, which are not to be had here")
    rows = []
    for precision in choose_precisions((), CPU):
        whole = {"image_size": 224, "batch_size": BATCH}
        rows += step_rows("convnext_tiny", ("timm/convnext_tiny",), precision, options.steps, whole)
        rows += layer_rows(precision, options.rounds)
    for step in ("kernel_7", "separate_downsampling"):
        micro = {"image_size": 32, "batch_size": 64, "num_classes": 10, "stem_stride": 2}
        rows += step_rows(f"roadmap_micro/{step}", (), "fp32", 5 * options.steps, micro)
    write_rows(f"training-kernels-{processor_kind()}", rows)


if __name__ == "__main__":
    main()
