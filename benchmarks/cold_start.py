"""How long from ``convnext predict`` to its first answer, and how much of that is torch's own import?

One photograph (640 x 427) and a run of convnext_tiny with 1000 classes, each time in a process of its own, taking turns
with a process that does nothing but ``import torch``. Writes ``results/cold-start-cpu.csv``. Usage:
``python benchmarks/cold_start.py [--rounds 10]``.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image
from result_files import write_rows
from sklearn.datasets import load_sample_image

from convnext.data import FileImages, ImageData
from convnext.training.build import build_model
from convnext.training.checkpoint import RunFolder
from convnext.training.recipe import Recipe

CLASSES = tuple(f"class {number}" for number in range(1000))


def write_run(folder: Path, model: str = "convnext_tiny") -> None:
    """A run of a network on photographs, with the weights that it begins with."""
    recipe, none = Recipe(data="photographs", model=model), FileImages((), ())
    run = RunFolder(folder)
    run.begin(recipe, ImageData(recipe.data, CLASSES, none, none))
    run.save_best(build_model(recipe, len(CLASSES)).state_dict())


def seconds(*words: str) -> float:
    """The time that a process of Python takes, from its start to its end."""
    start = time.perf_counter()
    subprocess.run([sys.executable, *words], check=True, capture_output=True)
    return time.perf_counter() - start


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as folder:
        run, photograph = Path(folder, "run"), Path(folder, "china.jpg")
        write_run(run)
        Image.fromarray(load_sample_image("china.jpg")).save(photograph, quality=95)
        commands = {
            "import torch": ("-c", "import torch"),
            "convnext predict": ("-m", "convnext", "predict", str(run), str(photograph), "--device", "cpu"),
        }
        times: dict[str, list[float]] = {name: [] for name in commands}
        for words in commands.values():
            seconds(*words)  # so that the files are in memory
        for _ in range(rounds):
            for name, words in commands.items():
                times[name].append(seconds(*words))
    rows = []
    for name, measured in times.items():
        low, median, high = statistics.quantiles(measured, n=4)
        rows.append({"command": name, "seconds": f"{median:.2f}", "quartiles": f"{low:.2f} to {high:.2f}"})
        print(*rows[-1].values(), sep="  ", flush=True)
    write_rows("cold-start-cpu", rows, ("pillow",))


if __name__ == "__main__":
    main()
