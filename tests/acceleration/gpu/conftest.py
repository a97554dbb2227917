"""Every test of this folder runs compiled on a GPU where there is one, in Triton's interpreter elsewhere.

``tests/conftest.py`` decides which, since that must be known before Triton is imported.
"""

from collections.abc import Iterator

import pytest
import torch

from convnext.acceleration.gpu.triton_runtime import has_triton

DEVICES = [pytest.param("cuda", marks=pytest.mark.gpu)] if torch.cuda.is_available() else ["cpu"]


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> torch.device:
    """Where the kernels run."""
    if not has_triton():
        pytest.skip("needs Triton")
    return torch.device(request.param)


@pytest.fixture
def poisoned() -> Iterator[None]:
    """Memory that torch leaves uninitialised holds NaN, so what a kernel does not write shows."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)
