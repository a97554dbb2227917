"""How fast are the fused kernels on this GPU, each alone and in whole networks, beside timm's and torchvision's?

First the GPU's own copy bandwidth and rate of matrix products, then each kernel against them, then networks at 224 px
in bf16: ours with the fused kernels (eager, as a CUDA graph at batch 1, compiled), theirs eager, in channels_last
memory, by torch.compile, and with max-autotune; the fastest of them is the peer. Training is forward under autocast,
cross-entropy, backward and fused AdamW. One process measures everything, a row after the other, the most important
first; rows that would not fit into the time are left out and named. Last, where the time of our own goes.

Writes ``results/gpu-kernels.csv``, ``gpu-networks.csv`` and ``gpu-profile.csv``; needs torch, triton and timm. Usage:
``python benchmarks/gpu.py [--seconds 450] [--only convnext_tiny/training/256,...] [--name gpu]``; ``--toy`` runs all of
it at the smallest size, on the processor in Triton's interpreter, and writes nothing unless it is given a name.
"""

import argparse
import gc
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import islice
from typing import Any

os.environ.setdefault("TRITON_INTERPRET", "1" if "--toy" in sys.argv else "0")  # before Triton loads

import torch
from gpu_kernels import kernels
from gpu_rows import BATCHES, NETWORKS, TOY_BATCHES, Row, all_rows, verdicts
from result_files import write_rows
from torch import nn

import convnext
from convnext.acceleration.clock import quartiles, seconds_of
from convnext.acceleration.folding import folded
from convnext.benchmark.configurations import Call, Setting, inference, training
from convnext.benchmark.machine import PeakMemory
from convnext.errors import reason

START = time.perf_counter()
TOY = "--toy" in sys.argv
DEVICE = torch.device("cpu" if TOY else "cuda")
DTYPE, PRECISION = (torch.float32, "fp32") if TOY else (torch.bfloat16, "bf16")
SIZE, LARGEST = (32, TOY_BATCHES[-1]) if TOY else (224, BATCHES[-1])
STAGES = [(8, 4)] if TOY else [(96, 56), (192, 28), (384, 14), (768, 7)]
TOY_SIZES: dict[str, Any] = {"depths": (1, 1, 1, 1), "dims": (8, 16, 32, 64)}
GRAPHS = ("max-autotune", "CUDA graph", "fused, CUDA graph")
ROUNDS, ROUND_SECONDS, KERNEL_SECONDS = 5, 0.3, 0.03
KERNEL_PARTS = 4
AHEAD = [
    Row("convnext_tiny", "training", LARGEST, "convnext", "fused"),
    Row("convnext_tiny", "inference", LARGEST, "convnext", "fused"),
    Row("convnext_tiny", "inference", 1, "convnext", "fused"),
    Row("convnextv2_tiny", "training", LARGEST, "convnext", "fused"),
]


def network_of(row: Row) -> nn.Module:
    """A row's network on the device, with random weights."""
    if not TOY:
        name = row.name if row.library == "convnext" else f"{row.library}/{row.name}"
        return convnext.create_model(name).to(DEVICE)
    if row.library == "convnext":
        from convnext.models.convnext import ConvNeXt

        return ConvNeXt(**TOY_SIZES).to(DEVICE)
    from timm.models.convnext import ConvNeXt as TimmConvNeXt

    return TimmConvNeXt(**TOY_SIZES).to(DEVICE)


def call_of(row: Row) -> Call:
    """What a row runs: inference on a batch, or a training step."""
    model = network_of(row)
    if row.library == "convnext" and row.setting != "plain":
        model = folded(model) if row.mode == "inference" else model
        convnext.accelerate(model, training=True, experimental=True)
    if row.setting == "max-autotune":
        model = torch.compile(model, mode="max-autotune")
    setting = Setting(channels_last=row.setting != "eager", compiled=row.setting in ("compiled", "fused, compiled"))
    images = torch.randn(row.batch, 3, SIZE, SIZE, device=DEVICE)
    if row.mode == "training":
        labels = torch.randint(1000, (row.batch,), device=DEVICE)
        return training(model, images, labels, PRECISION, setting)  # pyright: ignore[reportArgumentType]
    call = inference(model, images, PRECISION, setting)  # pyright: ignore[reportArgumentType]
    return graphed(call) if row.setting.endswith("CUDA graph") else call


def graphed(call: Call) -> Call:
    """A call whose launches are recorded once and replayed."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()

    def replay(alive: Call = call) -> None:  # noqa: ARG001 (what the graph works on)
        graph.replay()

    return replay


def compile_ahead(seconds: float) -> None:
    """Fill Triton's cache on disk with what will be tuned, in several processes at once: it compiles one by one."""
    parts = [f"{i}/{KERNEL_PARTS}" for i in range(KERNEL_PARTS)] + [row.cell for row in AHEAD]
    words = [sys.executable, __file__, "--ahead"]
    running = [subprocess.Popen([*words, part], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) for part in parts]
    end = time.perf_counter() + seconds
    for process in running:
        try:
            process.wait(max(0.01, end - time.perf_counter()))
        except subprocess.TimeoutExpired:
            process.kill()


def run_once(part: str) -> None:
    """One of the processes of :func:`compile_ahead`."""
    for row in AHEAD:
        if row.cell == part:
            call_of(row)()
            return
    first, count = map(int, part.split("/"))
    with torch.inference_mode():
        for measured in islice(kernels(LARGEST, STAGES, DEVICE, DTYPE), first, None, count):
            measured.call()


def rounds_of(call: Call, round_seconds: float = ROUND_SECONDS) -> list[float]:
    """Seconds of one call in each round, many calls in a row to a round."""
    if TOY:
        return [seconds_of(call)]
    for _ in range(3):
        call()
    calls = max(1, int(round_seconds / max(1e-6, seconds_of(call))))

    def several() -> None:
        for _ in range(calls):
            call()

    calls = max(1, int(calls * round_seconds / max(1e-6, seconds_of(several))))  # the first guess counts a wait each
    return [seconds_of(several) / calls for _ in range(ROUNDS)]


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Raise a TimeoutError in what takes longer."""

    def stop(*_: Any) -> None:
        raise TimeoutError("no time was left")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(0.01, seconds))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def measure(row: Row, left: float) -> dict[str, Any]:
    """A row's images a second and memory, or why there are none."""
    found: dict[str, Any] = {
        "network": row.name,
        "mode": row.mode,
        "batch": row.batch,
        "library": row.library,
        "setting": row.setting,
        "precision": PRECISION,
    }
    before = torch.cuda.memory_allocated() if not TOY else 0
    result: dict[str, Any] = dict.fromkeys(("images_per_second", "quartiles", "peak_mib", "error"), "")
    try:
        with at_most(left):
            call = call_of(row)
            for _ in range(1 if TOY else 3):  # compiled with max-autotune, the first only warms up, the second records
                call()
            give_back()
            memory = PeakMemory(DEVICE)
            memory.reset()
            seconds = rounds_of(call)
        low, median, high = (row.batch / value for value in reversed(quartiles(seconds)))
        peak = memory.bytes()
        if row.setting in GRAPHS:  # the memory that a graph works in is reserved, whatever lives in it
            peak = torch.cuda.memory_reserved()
        result["images_per_second"], result["quartiles"] = f"{median:.1f}", f"{low:.1f} to {high:.1f}"
        result["peak_mib"] = "" if peak is None else f"{max(0, peak - before) / 2**20:.0f}"
    except Exception as error:  # a library or its compiler may fail in any way: that is this row's result
        result["error"] = f"{type(error).__name__}: {reason(error)}"
    call = None
    torch.compiler.reset()
    give_back()
    return found | result


def give_back() -> None:
    """Give memory that is free back to the GPU."""
    gc.collect()
    if not TOY:
        torch.cuda.empty_cache()


def machine() -> tuple[float, float]:
    """Bytes a second that a copy moves, read and written, and FLOP/s of a matrix product: the best of some."""
    count = 2**16 if TOY else 2**29
    source = torch.empty(count, dtype=torch.float32, device=DEVICE)
    target = torch.empty_like(source)
    copied = 2 * source.nbytes / min(rounds_of(partial(target.copy_, source)))
    del source, target
    rate = 0.0
    for size in (64,) if TOY else (4096, 8192):
        left, right = (torch.randn(size, size, device=DEVICE, dtype=DTYPE) for _ in range(2))
        rate = max(rate, 2.0 * size**3 / min(rounds_of(partial(torch.mm, left, right))))
    return copied, rate


def kernel_rows(bandwidth: float, rate: float, left: float) -> list[dict[str, Any]]:
    """Each kernel at each stage, against the machine, as far as the time goes."""
    rows, end = [], time.perf_counter() + left
    for measured in kernels(LARGEST, STAGES, DEVICE, DTYPE):
        try:
            with torch.inference_mode(), at_most(end - time.perf_counter()):
                _, seconds, _ = quartiles(rounds_of(measured.call, KERNEL_SECONDS))
        except Exception as error:  # its result, as with a network
            print(
                f"not measured: {measured.name}, {measured.shape}: {type(error).__name__}: {reason(error)}", flush=True
            )
            continue
        possible = max(measured.bytes / bandwidth, measured.flop / rate)
        rows.append(
            {
                "kernel": measured.name,
                "map": measured.shape,
                "precision": PRECISION,
                "microseconds": f"{1e6 * seconds:.1f}",
                "gigabytes_per_second": f"{measured.bytes / seconds / 1e9:.1f}",
                "teraflops": f"{measured.flop / seconds / 1e12:.2f}",
                "possible_microseconds": f"{1e6 * possible:.1f}",
                "share_of_possible": f"{possible / seconds:.3f}",
                "copy_gigabytes_per_second": f"{bandwidth / 1e9:.1f}",
                "product_teraflops": f"{rate / 1e12:.2f}",
            }
        )
        print(*list(rows[-1].values())[:8], sep="  ", flush=True)
    give_back()
    return rows


def profile(mode: str) -> list[dict[str, Any]]:
    """Where the time of our largest batch goes, kernel by kernel."""
    row = Row(NETWORKS[0], mode, LARGEST, "convnext", "fused")
    call = call_of(row)
    call()
    activity = torch.profiler.ProfilerActivity
    with torch.profiler.profile(activities=[activity.CPU if TOY else activity.CUDA]) as recorded:
        seconds_of(call)
    events = recorded.key_averages()
    found = [
        ((event.self_cpu_time_total if TOY else event.self_device_time_total), event.count, event.key)
        for event in events
    ]
    total = sum(microseconds for microseconds, _, _ in found)
    del call
    give_back()
    return [
        {
            "network": row.name,
            "mode": mode,
            "batch": row.batch,
            "kernel": key[:120],
            "calls": count,
            "microseconds": f"{microseconds:.0f}",
            "share": f"{microseconds / max(total, 1e-9):.3f}",
        }
        for microseconds, count, key in sorted(found, reverse=True)[:25]
    ]


def driver() -> str:
    """The version of the GPU's driver."""
    words = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout.split()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return ""


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=450)
    parser.add_argument("--only", default="", help="cells NETWORK/MODE/BATCH, separated by commas")
    parser.add_argument("--name", default="" if TOY else "gpu", help="of the result files")
    parser.add_argument("--toy", action="store_true")
    parser.add_argument("--ahead", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not (TOY or torch.cuda.is_available()):
        raise SystemExit("this measures a GPU, and there is none here: --toy tries it out on the processor")
    if options.ahead:
        run_once(options.ahead)
        return
    facts = {"driver": driver(), "cuda": torch.version.cuda or ""}

    def write(part: str, rows: list[dict[str, Any]]) -> None:
        if options.name and rows:
            write_rows(f"{options.name}-{part}", [row | facts for row in rows], ("triton",))

    def left() -> float:
        return options.seconds - (time.perf_counter() - START)

    if not TOY:
        compile_ahead(min(100, left() / 4))
    bandwidth, rate = machine()
    print(f"copies {bandwidth / 1e9:.0f} GB/s, matrix products {rate / 1e12:.1f} TFLOP/s in {PRECISION}", flush=True)
    chosen = [row for row in all_rows(TOY) if not options.only or row.cell in options.only.split(",")]
    if not options.only:
        try:
            write("kernels", kernel_rows(bandwidth, rate, left() / 3))
        except RuntimeError as error:  # the networks are measured all the same
            print(f"not measured: kernels: {reason(error)}", flush=True)
    rows, dropped = [], []
    reserve = 0 if TOY else 25  # for the profile
    for row in chosen:
        if left() - reserve < (0 if TOY else row.seconds):
            dropped.append(row)
            continue
        rows.append(measure(row, left() - reserve))
        print(*list(rows[-1].values()), sep="  ", flush=True)
        write("networks", rows)  # what is written stays, whatever comes
    names = [] if TOY else dict.fromkeys(row.name for row in chosen)
    macs = {name: convnext.cost(convnext.create_model(name)).macs for name in names}
    print("\n".join(verdicts(rows, rate, macs)))
    for row in dropped:
        print(f"left out for want of time: {row.cell}, {row.library}, {row.setting}")
    if not options.only and left() > 0:
        with at_most(left()):
            write("profile", [line for mode in ("training", "inference") for line in profile(mode)])
    print(f"{time.perf_counter() - START:.0f} s")


if __name__ == "__main__":
    main()
