"""What the tests share: small images, and folders of them."""

import os
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does; before torch loads

import numpy as np
import pytest
import torch
from PIL import Image

# Before anything imports Triton, which takes its interpreter or its compiler from then on.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

MakeFolder = Callable[[dict[str, int]], Path]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def make_folder(tmp_path: Path) -> MakeFolder:
    """Write JPEG files below a folder: ``{"cats": 5, "val/dogs": 2}``; each class has a colour of its own."""

    def make(counts: dict[str, int]) -> Path:
        root = tmp_path / "images"
        generator = np.random.default_rng(0)
        for name, count in counts.items():
            (root / name).mkdir(parents=True)
            colour = np.frombuffer(Path(name).name.ljust(3).encode()[:3], np.uint8)
            for i in range(count):
                pixels = generator.integers(0, 60, (40, 48, 3)) + colour
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(root / name / f"{i}.jpg")
        return root

    return make
