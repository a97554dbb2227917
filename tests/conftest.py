"""What the tests share: small images, and folders of them."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does; before torch loads
if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):  # cores are shared out, to what a test starts as well
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // int(workers))))

import numpy as np
import pytest
import torch
from PIL import Image

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # the kernels for a GPU, on the processor; before triton loads

from convnext.files import user_cache
from convnext.training import run
from convnext.training.curves import write_curves
from tests.runs import make_run  # noqa: F401

MakeFolder = Callable[[dict[str, int]], Path]


def use_cache(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Take a folder for the user's cache, empty but for the kernels that are built."""
    kernels = user_cache("kernels")
    kernels.mkdir(parents=True, exist_ok=True)
    patch.setenv("XDG_CACHE_HOME", str(folder))
    user_cache("kernels").parent.mkdir(parents=True)
    user_cache("kernels").symlink_to(kernels)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def _no_waiting_for_the_disk() -> Iterator[None]:
    """Files reach the disk when the system likes: no test cuts the power."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


@pytest.fixture(autouse=True, scope="session")
def _no_curves() -> Iterator[None]:
    """Trainings in this process draw no curves, which takes as long as a small one; `curves` has them drawn."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "write_curves", lambda *_: None)
        yield


@pytest.fixture
def curves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainings leave their curves behind."""
    monkeypatch.setattr(run, "write_curves", write_curves)


def write_folder(root: Path, counts: dict[str, int]) -> Path:
    """Write JPEG files below a folder: ``{"cats": 5, "val/dogs": 2}``; each class has a colour of its own."""
    generator = np.random.default_rng(0)
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        colour = np.frombuffer(Path(name).name.ljust(3).encode()[:3], np.uint8)
        for i in range(count):
            pixels = generator.integers(0, 60, (40, 48, 3)) + colour
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(root / name / f"{i}.jpg")
    return root


@pytest.fixture
def make_folder(tmp_path: Path) -> MakeFolder:
    """Write a folder of images for the test, see :func:`write_folder`."""
    return lambda counts: write_folder(tmp_path / "images", counts)
