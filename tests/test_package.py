"""The package as it is imported and typed."""

import subprocess
import sys
import time

import pytest

import convnext


def seconds_of(*calls: tuple[str, ...]) -> list[float]:
    """The quickest of five runs of each call of Python, less that of an empty one; the calls take turns."""
    every = [("-c", ""), *calls]
    times = [float("inf")] * len(every)
    for _ in range(5):
        for i, words in enumerate(every):
            start = time.perf_counter()
            subprocess.run([sys.executable, *words], check=True, capture_output=True)
            times[i] = min(times[i], time.perf_counter() - start)
    return [seconds - times[0] for seconds in times[1:]]


def test_import_is_quick_and_does_not_load_torch() -> None:
    code = "import sys, convnext; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    # A seventh of a second, or on a busy machine twice what two modules of Python's own take.
    ours, known = seconds_of(("-c", code), ("-c", "import asyncio, http.client"))
    assert ours < max(0.15, 2 * known)


def test_help_is_quick() -> None:
    # Half a second, or on a slow machine what the parser alone takes a few times.
    ours, parser = seconds_of(("-m", "convnext", "--help"), ("-c", "import tyro"))
    assert ours < max(0.5, 6 * parser)


@pytest.mark.parametrize("name", convnext.__all__)
def test_every_public_name_loads(name: str) -> None:
    assert getattr(convnext, name) is not None
    assert name in dir(convnext)


def test_unknown_name() -> None:
    with pytest.raises(AttributeError, match="no attribute 'resnext'"):
        _ = convnext.resnext  # pyright: ignore[reportAttributeAccessIssue]


def test_library_does_not_need_tyro() -> None:
    code = "import sys; sys.modules['tyro'] = None; import convnext.study.runner, convnext.training.run"
    subprocess.run([sys.executable, "-c", code], check=True)
