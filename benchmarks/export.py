"""What is an exported file worth: each format in each precision, beside the network that it was made of?

Trains ConvNeXt-T and ConvNeXt V2 atto on digits at 64 px, for a few epochs so that their outputs are real ones, and
exports both for images of 224 px. For every file: the largest difference of its outputs and how often its first class
is the network's, on held-out digits, as its export found them; images a second at batch 8, all files of a network and
the network itself in turns; size; and the seconds from the start of ``convnext predict FILE photograph.jpg`` to its
answer. Writes ``results/export-<processor>.csv``.

Usage: ``python benchmarks/export.py [--folder FOLDER] [--rounds 5] [--skip torch-bf16 ...]``; FOLDER keeps what was
trained and exported, and a later call goes on from there. Where the processor has no bf16, torch emulates it, which
takes minutes for each file of ConvNeXt-T.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does

import torch
from PIL import Image
from result_files import processor_kind, write_rows
from sklearn.datasets import load_sample_image

import convnext
from convnext.acceleration.clock import alternate, quartiles, times_as_fast
from convnext.errors import ConvNeXtError
from convnext.exporting.formats import FORMATS
from convnext.training.recipes import digits

NETWORKS = ("convnext_tiny", "convnextv2_atto")
SIZE, BATCH = 224, 8
STARTS = 2  # the files are in memory, as they were just opened
SECONDS = 60  # begin no further round of a network later than this


def trained(name: str, folder: Path) -> Path:
    """A run of a network on digits at 64 px; what is there already is taken."""
    run = folder / name
    if not (run / "best.safetensors").exists():
        recipe = replace(digits("digits", name), image_size=64, epochs=5, batch_size=32, lr=5e-4, lr_batch_size=32)
        convnext.train(recipe, run)
    return run


def exported(run: Path, skipped: list[str]) -> dict[Path, dict[str, Any]]:
    """Every format in every precision that it has: what each export found, by its file."""
    found = {}
    for kind in FORMATS.values():
        for precision in kind.precisions:
            out = run / f"{run.name}-{kind.name}-{precision}{kind.suffix}"
            facts = out.with_suffix(".json")
            if f"{kind.name}-{precision}" in skipped:
                continue
            if not facts.exists():
                try:
                    made = convnext.export(run, kind.name, precision=precision, size=SIZE, out=out)
                except ConvNeXtError as error:
                    print(f"{out.name}: {error}", flush=True)
                    continue
                facts.write_text(json.dumps(made.to_dict()))
            found[out] = json.loads(facts.read_text())
            print(f"{out.name}: {found[out]['seconds']:.0f} s, difference {found[out]['difference']:.2g}", flush=True)
    return found


def cold_start(named: Path, photograph: Path) -> float:
    """Seconds of a process that answers with what a photograph shows."""
    start = time.perf_counter()
    words = "predict", str(named), str(photograph), "--device", "cpu", "--trust"
    subprocess.run([sys.executable, "-m", "convnext", *words], check=True, capture_output=True)
    return time.perf_counter() - start


def measured(run: Path, files: dict[Path, dict[str, Any]], photograph: Path, rounds: int) -> list[dict[str, Any]]:
    """The rows of a network: itself, then its files."""
    networks: dict[Path, torch.nn.Module] = {run: convnext.load(run, device="cpu").model}
    networks |= {path: convnext.load(path, trust=True).model for path in files}
    images = torch.randn(BATCH, 3, SIZE, SIZE).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        calls = {path: lambda network=network: network(images) for path, network in networks.items()}
        times = alternate(calls, rounds, warm_up=1, seconds=SECONDS)
    starts = alternate({path: lambda path=path: cold_start(path, photograph) for path in networks}, STARTS, warm_up=0)
    rows = []
    for path, taken in times.items():
        facts = files.get(path)
        low, median, high = quartiles([BATCH / seconds for seconds in taken])
        size = facts["bytes"] if facts else (run / "best.safetensors").stat().st_size
        rows.append(
            {
                "network": run.name,
                "format": facts["format"] if facts else "run",
                "precision": facts["precision"] if facts else "fp32",
                "difference": f"{facts['difference']:.2g}" if facts else "",
                "agreement": round(100 * facts["agreement"], 1) if facts else "",
                "images_per_second": round(median, 1),
                "quartiles": f"{low:.1f} to {high:.1f}",
                "times_as_fast": round(times_as_fast(taken, times[run]), 2),
                "megabytes": round(size / 1e6, 1),
                "cold_start_seconds": round(quartiles(starts[path])[1], 2),
                "export_seconds": facts["seconds"] if facts else "",
                "batch": BATCH,
                "rounds": len(taken),
            }
        )
        print(", ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
    return rows


def main() -> None:
    """Train, export, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="keeps what was trained and exported, for a later call")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--networks", nargs="*", default=NETWORKS, choices=NETWORKS)
    parser.add_argument("--skip", nargs="*", default=[], metavar="FORMAT-PRECISION", help="files not to export")
    parser.add_argument("--measure", action=argparse.BooleanOptionalAction, default=True, help="or export alone")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        photograph = Path(temporary, "china.jpg")
        Image.fromarray(load_sample_image("china.jpg")).save(photograph, quality=95)
        made = {run: exported(run, options.skip) for run in (trained(name, folder) for name in options.networks)}
        if not options.measure:
            return
        rows = [row for run, files in made.items() for row in measured(run, files, photograph, options.rounds)]
    write_rows(f"export-{processor_kind()}", rows, ("onnx", "onnxruntime", "openvino", "nncf"))


if __name__ == "__main__":
    main()
