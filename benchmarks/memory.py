"""What does recomputing activations save in a training step of ConvNeXt-T, ours and timm's, and what does it cost?

Each measurement is a fresh process, which takes a step to warm up and then those that are timed; the cases take turns.
Both networks go through this package's training step, without drop path and mixing, and so differ in nothing else.
Memory is the peak over what the process held before its first step: activations, gradients and AdamW's averages. On a
processor that is resident memory, on a GPU what torch allocates. Time on a processor is that of all its cores
together, which leaves out what else runs on it; on a GPU it is the clock's.
Writes ``results/memory-DEVICE.csv``. Usage: ``python benchmarks/memory.py [--batch 32] [--steps 1] [--rounds 2]``.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from typing import NamedTuple

import torch
from result_files import write_rows

from convnext.training.build import build_state
from convnext.training.recipe import Recipe

OURS, TIMM = "convnext_tiny", "timm/convnext_tiny"
SIZE = 224
MIB = 2**20
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
PRECISION = "bf16" if DEVICE.type == "cuda" else "fp32"


class Case(NamedTuple):
    """A network, with or without recomputed activations."""

    network: str
    recomputed: bool


CASES = [Case(network, recomputed) for network in (OURS, TIMM) for recomputed in (False, True)]


def peak_bytes() -> int:
    """The most that this process has ever held."""
    if DEVICE.type == "cuda":
        return torch.cuda.max_memory_allocated()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def clock() -> float:
    """Seconds: of the clock once the GPU is done, or of the processor, all threads together."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def measure(case: Case, batch: int, steps: int) -> dict[str, list[float]]:
    """MiB of the steps together, and the seconds of each, in this process."""
    recipe = Recipe(model=case.network, precision=PRECISION, drop_path=0, mixup=0, cutmix=0)
    recipe = replace(recipe, checkpoint_activations=case.recomputed)
    state = build_state(recipe, 1000, DEVICE)
    images, labels = torch.randn(batch, 3, SIZE, SIZE, device=DEVICE), torch.randint(1000, (batch,), device=DEVICE)
    before = peak_bytes()
    seconds = []
    for _ in range(1 + steps):
        start = clock()
        state.backward(images, labels, weight=1, is_last=True)
        state.step(skip=torch.zeros((), device=DEVICE))
        seconds.append(clock() - start)
    return {"mib": [(peak_bytes() - before) / MIB], "seconds": seconds[1:]}


def measure_apart(case: Case, batch: int, steps: int) -> dict[str, list[float]]:
    """The same in a process of its own."""
    words = [sys.executable, __file__, "--batch", str(batch), "--steps", str(steps), "--case", str(CASES.index(case))]
    waiting = os.environ | {"OMP_WAIT_POLICY": "PASSIVE"}  # threads that wait must not count as busy
    return json.loads(subprocess.run(words, stdout=subprocess.PIPE, check=True, env=waiting).stdout)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--case", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case is not None:
        print(json.dumps(measure(CASES[options.case], options.batch, options.steps)))
        return
    found = {case: {"mib": [], "seconds": []} for case in CASES}
    for _ in range(options.rounds):
        for case in CASES:
            for kind, values in measure_apart(case, options.batch, options.steps).items():
                found[case][kind] += values
    mib, seconds = ({case: statistics.median(found[case][kind]) for case in CASES} for kind in ("mib", "seconds"))
    rows = []
    for case in CASES:
        plain, timm = case._replace(recomputed=False), case._replace(network=TIMM)
        rows.append(
            {
                "network": case.network,
                "activations": "recomputed" if case.recomputed else "kept",
                "precision": PRECISION,
                "batch": options.batch,
                "mib": f"{mib[case]:.0f}",
                "mib_range": f"{min(found[case]['mib']):.0f} to {max(found[case]['mib']):.0f}",
                "clock": "wall" if DEVICE.type == "cuda" else "processor, all threads",
                "seconds_a_step": f"{seconds[case]:.3f}",
                "seconds_range": f"{min(found[case]['seconds']):.3f} to {max(found[case]['seconds']):.3f}",
                "memory_to_kept": f"{mib[case] / mib[plain]:.3f}",
                "time_to_kept": f"{seconds[case] / seconds[plain]:.3f}",
                "memory_to_timm": f"{mib[case] / mib[timm]:.3f}",
                "time_to_timm": f"{seconds[case] / seconds[timm]:.3f}",
            }
        )
        print(*rows[-1].values(), sep="  ")
    write_rows(f"memory-{DEVICE.type}", rows)


if __name__ == "__main__":
    main()
