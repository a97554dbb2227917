"""How accurate does ``convnext train digits`` get, and in what time, beside ResNet-18 in the same harness?

Both networks are trained by the recipe ``digits``, taking turns seed by seed; only the network differs. The accuracy is
the last epoch's on the 360 held-out digits, so nothing is chosen by looking at them; the best epoch's stands beside it.
Writes ``results/digits-cpu.csv``. Usage: ``python benchmarks/digits.py [--seeds 3]``.
"""

import argparse
import os
import tempfile
import time
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does

from result_files import write_rows

from convnext.training.checkpoint import RunFolder
from convnext.training.fit import fit
from convnext.training.recipes import digits

NETWORKS = (digits().model, "torchvision/resnet18")


def measure(model: str, seed: int) -> dict[str, str | int | float]:
    """Train once, from a folder that is thrown away."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        for _ in fit(replace(digits(), model=model, seed=seed), Path(folder)):
            pass
        seconds = time.perf_counter() - start
        log = RunFolder(Path(folder)).metrics()
    return {
        "network": model,
        "seed": seed,
        "top1_last": round(log[-1]["top1"], 2),
        "top1_best": round(max(epoch["top1"] for epoch in log), 2),
        "epochs": len(log),
        "seconds": round(seconds, 1),
        "images_per_second": round(sum(epoch["images_per_second"] for epoch in log) / len(log)),
    }


def main() -> None:
    """Train, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    seeds = parser.parse_args().seeds
    rows = []
    for seed in range(seeds):
        for network in NETWORKS:
            rows.append(measure(network, seed))
            print(", ".join(f"{name} {value}" for name, value in rows[-1].items()), flush=True)
    write_rows("digits-cpu", rows)
    ours, theirs = ([row["seconds"] for row in rows if row["network"] == network] for network in NETWORKS)
    print(f"time of {NETWORKS[1]} over {NETWORKS[0]}: {sum(theirs) / sum(ours):.2f}")


if __name__ == "__main__":
    main()
