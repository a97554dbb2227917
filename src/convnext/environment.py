"""The machine and the versions that a measured figure belongs to."""

import datetime
import importlib
import importlib.util
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

from convnext.errors import UsageError

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


def import_extra(package: str, extra: str) -> Any:
    """Import a package that an extra of this one installs.

    Raises:
        UsageError: it, or something that it needs itself, is not installed.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise not_installed(error.name or package, extra) from error


def check_installed(package: str, extra: str) -> None:
    """Refuse to begin without a package that an extra of this one installs; it is not imported yet.

    Raises:
        UsageError: it is not installed.
    """
    try:
        found = importlib.util.find_spec(package)
    except ValueError:  # a module without a specification
        found = None
    if found is None:
        raise not_installed(package, extra)


def not_installed(package: str, extra: str) -> UsageError:
    """The error for a package that is not installed."""
    return UsageError(f"{package} is not installed: pip install 'convnext[{extra}]'")
