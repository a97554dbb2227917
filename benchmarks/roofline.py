"""Where does ConvNeXt-T's time go on this processor, and how little could it be? The roofline of every operation.

Each operation's time is set against the least that the machine's own speeds allow for its arithmetic and its memory:
products at the rate of a large matrix product, bytes (each tensor read or written once) at that of a large copy.
Writes ``results/roofline-PROCESSOR.csv`` and ``docs/roofline-MODE-PROCESSOR``, ``.png`` and ``.svg``. Usage:
``python benchmarks/roofline.py [--batch 8] [--rounds 7]``.
"""

import argparse
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from result_files import processor_kind, write_rows
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

import convnext
from convnext.acceleration.clock import seconds_of
from convnext.benchmark.benchmark_plan import choose_precisions
from convnext.benchmark.configurations import Precision
from convnext.benchmark.machine import matrix_products
from convnext.environment import environment
from convnext.plotting import BLUE, GREY, LIGHT_BLUE, ORANGE, STYLE, write_figure

CPU = torch.device("cpu")
DOCS = Path(__file__).parents[1] / "docs"
NETWORK, SIZE = "convnext_tiny", 224
LEAST_SHARE = 0.01  # of the time, of an operation with a bar of its own
SIDES = ((11, 0), (-11, 0), (0, 10), (0, -10))  # of a point, where its number is: neighbours have different ones
GROUPS = {  # what an operation is called in the figure, by how torch's or this package's own name begins
    "mm": "matrix products",
    "addmm": "matrix products",
    "bmm": "matrix products",
    "convolution_backward": "stem and patch convolutions, backward",
    "convolution": "convolutions",
    "depthwise_conv2d": "depthwise convolution",
    "depthwise_gradient": "depthwise convolution, gradients",
    "gelu": "GELU",
    "bias_gelu": "GELU, with the bias",
    "add_branch": "ends of branches: bias, addition",
    "residual_mlp": "linear layers, GELU, addition",
    "residual_mlp_gradient": "linear layers, GELU, addition, backward",
    "native_layer_norm": "LayerNorm",
    "layer_norm": "LayerNorm",
    "_fused_adamw_": "AdamW",
    "_to_copy": "changes of dtype, copies",
    "copy": "changes of dtype, copies",
    "clone": "changes of dtype, copies",
    "sum": "sums (gradients of biases)",
    "mul": "products and sums of maps",
    "add": "products and sums of maps",
}


@dataclass
class Operation:
    """One operation of a step, or several of one group.

    Attributes:
        seconds: that it took.
        flop: its arithmetic in products and sums; 0 where only memory counts.
        bytes: of all tensors that go in and come out, each once.
    """

    seconds: float = 0.0
    flop: float = 0.0
    bytes: float = 0.0

    def add(self, other: "Operation") -> None:
        """Count another one in."""
        self.seconds += other.seconds
        self.flop += other.flop
        self.bytes += other.bytes

    def possible(self, machine: "Machine") -> float:
        """The least seconds that the machine's speeds allow."""
        return max(self.flop / machine.flops, self.bytes / machine.bandwidth)


@dataclass(frozen=True)
class Machine:
    """What the machine can do: floating-point operations a second in products of matrices, bytes a second in copies."""

    flops: float
    bandwidth: float


class Recorder(TorchDispatchMode):
    """Times every operation that torch runs, and counts its arithmetic and bytes, by group."""

    def __init__(self) -> None:
        super().__init__()
        self.groups: dict[str, Operation] = defaultdict(Operation)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        start = time.perf_counter()
        out = func(*args, **kwargs)
        seconds = time.perf_counter() - start
        count = flop_registry.get(func._overloadpacket)
        flop = count(*args, **kwargs, out_val=out) if count else 0
        self.groups[group_of(func, args)].add(Operation(seconds, flop, bytes_of(func, (args, kwargs, out))))
        return out


def group_of(func: Any, args: Any) -> str:
    """What the figure calls an operation."""
    name = func._overloadpacket.__name__
    if name == "convolution":  # (input, weight, bias, stride, padding, dilation, transposed, output padding, groups)
        return GROUPS["depthwise_conv2d"] if args[8] > 1 else "stem and patch convolutions"
    if name == "convolution_backward" and args[9] > 1:
        return "depthwise convolution, backward"
    begins = [start for start in GROUPS if name.startswith(start)]
    return GROUPS[max(begins, key=len)] if begins else "the rest"


def bytes_of(func: Any, values: Any) -> float:
    """Bytes of the tensors of a call, each counted once; none for a view, which moves nothing."""
    if any(result.alias_info is not None and not result.alias_info.is_write for result in func._schema.returns):
        return 0
    tensors = {(leaf.data_ptr(), leaf.numel()): leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)}
    return sum(tensor.numel() * tensor.itemsize for tensor in tensors.values())


def measure_machine(precision: Precision) -> Machine:
    """The best of some large matrix products and copies."""
    product, flop = matrix_products(precision, CPU)
    source, target = torch.ones(2**26), torch.empty(2**26)
    flops = flop / min(seconds_of(product) for _ in range(12))
    copy = min(seconds_of(lambda: target.copy_(source)) for _ in range(8))
    return Machine(flops, 2 * source.numel() * source.itemsize / copy)


def step_of(mode: str, precision: str, batch: int) -> Callable[[], None]:
    """One pass of inference, or one step of training with AdamW."""
    images = torch.randn(batch, 3, SIZE, SIZE).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(1000, (batch,))
    model: nn.Module = convnext.create_model(NETWORK).to(memory_format=torch.channels_last)  # pyright: ignore
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")
    if mode == "inference":
        model.eval()
        if precision == "bf16":
            model, images = model.to(torch.bfloat16), images.to(torch.bfloat16)

        def infer() -> None:
            with torch.no_grad():
                model(images)

        return infer
    convnext.accelerate(model, training=True)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)

    def train() -> None:
        with autocast:
            loss = F.cross_entropy(model(images).float(), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return train


def record(step: Callable[[], None], rounds: int) -> dict[str, Operation]:
    """Operations of one step by group, the slowest first; their seconds are medians of the rounds."""
    for _ in range(2):
        step()
    runs = []
    for _ in range(rounds):
        with Recorder() as recorder:
            step()
        runs.append(recorder.groups)
    groups = {
        name: Operation(statistics.median(run[name].seconds for run in runs), operation.flop, operation.bytes)
        for name, operation in runs[-1].items()
    }
    total = sum(operation.seconds for operation in groups.values())
    shown: dict[str, Operation] = defaultdict(Operation)
    for name, operation in groups.items():
        shown[name if operation.seconds >= LEAST_SHARE * total else "the rest"].add(operation)
    rest = shown.pop("the rest", None)
    ordered = dict(sorted(shown.items(), key=lambda item: -item[1].seconds))
    return ordered | ({"the rest": rest} if rest else {})


def draw(mode: str, recorded: dict[str, tuple[Machine, dict[str, Operation]]], batch: int) -> Figure:
    """A row a precision: to the left the time that each operation takes and could take, to the right its roofline."""
    facts = environment()
    with matplotlib.rc_context(STYLE):
        heights = [len(groups) + 2 for _, groups in recorded.values()]
        figure = Figure(figsize=(11.5, 0.36 * sum(heights) + 2.2), layout="constrained")
        panels = figure.subplots(len(recorded), 2, squeeze=False, width_ratios=(3, 2), height_ratios=heights)
        for (precision, (machine, groups)), (left, right) in zip(recorded.items(), panels, strict=True):
            draw_times(left, machine, groups, precision)
            draw_roofline(right, machine, groups, precision)
        what = "one pass" if mode == "inference" else "one training step (AdamW)"
        figure.suptitle(
            f"ConvNeXt-T at {SIZE} px, {what} over {batch} images, eager, on {facts['threads']} threads of "
            f"{facts['processor']}\ntorch {facts['versions']['torch']}, {facts['date']}",
            fontsize=10,
        )
        return figure


def draw_times(axes: Axes, machine: Machine, groups: dict[str, Operation], precision: str) -> None:
    """Bars: what each operation takes, and on them what it could take."""
    total = sum(operation.seconds for operation in groups.values())
    possible = sum(operation.possible(machine) for operation in groups.values())
    places = range(len(groups))
    taken = [1e3 * operation.seconds for operation in groups.values()]
    axes.barh(places, taken, color=LIGHT_BLUE, label="measured")
    least = [1e3 * operation.possible(machine) for operation in groups.values()]
    axes.barh(places, least, color=BLUE, height=0.4, label="possible at the machine's own speeds")
    for place, value in zip(places, taken, strict=True):
        axes.text(value, place, f"  {value:.0f} ms, {100e-3 * value / total:.0f} %", va="center", fontsize=8)
    axes.set_yticks(places, [f"{number}  {name}" for number, name in enumerate(groups, 1)])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.22 * max(taken))
    axes.set_xlabel("milliseconds")
    title = f"{precision}: {1e3 * total:.0f} ms, of which {1e3 * possible:.0f} are needed"
    axes.set_title(title, fontsize=10, loc="left")
    axes.legend(loc="lower right", frameon=False, fontsize=8)


def draw_roofline(axes: Axes, machine: Machine, groups: dict[str, Operation], precision: str) -> None:
    """Arithmetic a second over arithmetic a byte; above the roof nothing can be."""
    reach = [1, machine.flops / machine.bandwidth, 1000]
    axes.plot(reach, [min(x * machine.bandwidth, machine.flops) / 1e9 for x in reach], color=GREY, linewidth=1)
    points = [(number, operation) for number, operation in enumerate(groups.values(), 1) if operation.flop]
    for place, (number, operation) in enumerate(sorted(points, key=lambda point: point[1].flop / point[1].seconds)):
        x, y = operation.flop / operation.bytes, operation.flop / operation.seconds / 1e9
        axes.scatter(x, y, color=ORANGE, zorder=3)
        offset = SIDES[place % len(SIDES)]
        axes.annotate(str(number), (x, y), textcoords="offset points", xytext=offset, ha="center", va="center")
    axes.set(xscale="log", yscale="log", xlabel="FLOP a byte", ylabel="GFLOP/s")
    axes.set_ylim(10, 2e-9 * machine.flops)
    axes.set_title(
        f"{precision}: at most {machine.flops / 1e9:.0f} GFLOP/s and {machine.bandwidth / 1e9:.0f} GB/s",
        fontsize=10,
        loc="left",
    )


def main() -> None:
    """Measure, print, draw, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    rows = []
    for mode in ("inference", "training"):
        recorded = {}
        for precision in choose_precisions((), CPU):
            step = step_of(mode, precision, options.batch)
            groups = record(step, options.rounds)
            machine = measure_machine(precision)
            recorded[precision] = machine, groups
            total = sum(operation.seconds for operation in groups.values())
            for name, operation in groups.items():
                rows.append(
                    {
                        "mode": mode,
                        "precision": precision,
                        "batch": options.batch,
                        "operation": name,
                        "milliseconds": f"{1e3 * operation.seconds:.2f}",
                        "share": f"{operation.seconds / total:.3f}",
                        "possible_milliseconds": f"{1e3 * operation.possible(machine):.2f}",
                        "gflops": f"{operation.flop / operation.seconds / 1e9:.1f}" if operation.flop else "",
                        "gigabytes_per_second": f"{operation.bytes / operation.seconds / 1e9:.1f}",
                        "ceiling_gflops": f"{machine.flops / 1e9:.0f}",
                        "ceiling_gigabytes_per_second": f"{machine.bandwidth / 1e9:.1f}",
                    }
                )
                print(*rows[-1].values(), sep="  ")
        write_figure(draw(mode, recorded, options.batch), DOCS / f"roofline-{mode}-{processor_kind()}")
    write_rows(f"roofline-{processor_kind()}", rows)


if __name__ == "__main__":
    main()
