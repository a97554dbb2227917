"""`convnext.optimize` beside timm on this machine: images a second, ratios within one run, share of the ceiling.

    python benchmarks/optimize.py [--batches 16 1] [--precisions fp32 bf16] [--model convnext_tiny]

All take turns, round by round. The ceiling is the machine's own product of two matrices, in the same rounds. Ours is
the form that `optimize` measures as fastest among those that are not compiled: compiling takes minutes beside others.
"""

import argparse
import copy
from collections.abc import Callable
from typing import Any

import torch
from result_files import write_rows
from torch import Tensor, nn

import convnext
from convnext.models.cost import cost
from convnext.speed.clock import alternate, quartiles, times_as_fast

SIZE = 2048  # rows and columns of the ceiling's matrices
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="convnext_tiny")
    parser.add_argument("--batches", type=int, nargs="+", default=[16, 1])
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16"])
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--seconds", type=float, default=60, help="of each setting's rounds, about")
    options = parser.parse_args()
    rows = []
    for precision in options.precisions:
        for batch in options.batches:
            rows += measured(options, precision, batch)
    write_rows("optimize-cpu", rows)


def measured(options: argparse.Namespace, precision: str, batch: int) -> list[dict[str, Any]]:
    """The rows of one precision and batch."""
    dtype, images = DTYPES[precision], torch.randn(batch, 3, 224, 224)
    ours = convnext.create_model(options.model).eval()
    fast = convnext.optimize(ours, images, precision, seconds=30)
    theirs = convnext.create_model(f"timm/{options.model}").eval()
    name = f"convnext optimised ({fast.report.choice})"
    calls: dict[str, Callable[[], Any]] = {name: lambda: fast(images), "convnext eager": eager(ours, images, dtype)}
    peers = {
        "timm eager": eager(theirs, images, dtype),
        "timm channels_last": eager(theirs, images, dtype, torch.channels_last),
        "timm channels_last, compiled, frozen": frozen(theirs, images, dtype),
    }
    matrix = torch.randn(SIZE, SIZE).to(dtype)
    with torch.inference_mode():
        times = alternate(calls | peers | {"ceiling": lambda: matrix @ matrix}, options.rounds, seconds=options.seconds)
    ceiling = 2 * SIZE**3 / quartiles(times.pop("ceiling"))[0]
    flops = 2 * cost(ours, 224).macs * batch
    best_peer = min(peers, key=lambda peer: quartiles(times[peer])[1])
    rows = []
    for setting, seconds in times.items():
        low, median, high = quartiles(seconds)
        rows.append(
            {
                "network": options.model,
                "setting": setting,
                "precision": precision,
                "batch": batch,
                "images_per_second": f"{batch / median:.2f}",
                "quartiles": f"{batch / high:.2f} to {batch / low:.2f}",
                "times_as_fast_as_best_peer": f"{times_as_fast(seconds, times[best_peer]):.3f}",
                "ceiling_gflops": f"{ceiling / 1e9:.0f}",
                "share_of_ceiling": f"{flops / low / ceiling:.3f}",
                "rounds": len(seconds),
            }
        )
        print(*rows[-1].values(), sep="  ", flush=True)
    return rows


def eager(
    model: nn.Module, images: Tensor, dtype: torch.dtype, layout: torch.memory_format = torch.contiguous_format
) -> Callable[[], Tensor]:
    """A network's forward pass, with weights and images of a dtype and layout."""
    copied = copy.deepcopy(model).to(dtype=dtype, memory_format=layout)  # pyright: ignore[reportCallIssue]
    given = images.to(dtype=dtype, memory_format=layout)
    return lambda: copied(given)


def frozen(model: nn.Module, images: Tensor, dtype: torch.dtype) -> Callable[[], Tensor]:
    """The same through torch.compile with freezing, in channels_last."""
    copied = copy.deepcopy(model).to(dtype=dtype, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    given = images.to(dtype=dtype, memory_format=torch.channels_last)
    function = torch.compile(copied, options={"freezing": True})
    return lambda: function(given)


if __name__ == "__main__":
    main()
