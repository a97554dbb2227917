"""Result files: what was measured, each row with the date, machine, versions and commit it belongs to."""

import csv
import subprocess
from pathlib import Path
from typing import Any

from convnext.environment import environment, installed_version, vector_instructions

RESULTS = Path(__file__).parent / "results"


def processor_kind() -> str:
    """What to name a file after that another kind of processor must not write over: cpu-avx2, cpu-avx512, ..."""
    return f"cpu-{vector_instructions().lower()}"


def write_rows(name: str, rows: list[dict[str, Any]], packages: tuple[str, ...] = ()) -> None:
    """Write ``results/NAME.csv``; ``packages`` are named with their versions beside those that always are."""
    facts = environment()
    versions = facts["versions"] | {package: installed_version(package) for package in packages}
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout
    setting = {
        "date": facts["date"],
        "machine": f"{facts['gpu'] or facts['processor']}, {facts['threads']} threads",
        "versions": " ".join(f"{package}={version}" for package, version in versions.items()),
        "commit": commit.strip(),
    }
    RESULTS.mkdir(exist_ok=True)
    with (RESULTS / f"{name}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0], *setting])
        writer.writeheader()
        writer.writerows(row | setting for row in rows)
