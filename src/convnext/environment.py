"""The machine and the versions that a measured figure belongs to."""

import datetime
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

__version__ = "0.1.0"

PACKAGES = ("convnext", "torch", "torchvision", "timm", "numpy")


def environment() -> dict[str, Any]:
    """Machine, versions and date, as every result file records them."""
    import torch

    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "processor": f"{processor()}, {vector_instructions()}",
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: installed_version(name) for name in PACKAGES},
    }


def processor() -> str:
    """The processor's name as its maker gives it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    if platform.system() == "Darwin":
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
        return answer.stdout.strip() or platform.machine()
    return platform.processor() or platform.machine()


def vector_instructions() -> str:
    """What torch computes with on this processor: AVX2, AVX512, ...; makers give unlike processors one name."""
    import torch

    return torch.backends.cpu.get_cpu_capability()


def installed_version(package: str) -> str | None:
    """A package's version, or None where it is not installed."""
    from importlib.metadata import PackageNotFoundError, version  # which takes longer than all of `import convnext`

    try:
        return version(package)
    except PackageNotFoundError:
        return None
