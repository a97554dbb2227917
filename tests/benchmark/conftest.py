"""Measurements whose figures are given."""

from typing import Any

from convnext.benchmark.configurations import Configuration
from convnext.benchmark.worker_process import Measurement


def measurement(
    library: str, setting: str, *seconds: float, work: float = 10, memory: int | None = 100, **change: Any
) -> Measurement:
    fields: dict[str, Any] = {"name": "net", "mode": "inference", "precision": "fp32", "batch": 10} | change
    return Measurement(Configuration(library=library, setting=setting, **fields), work, list(seconds), memory)
