"""A small study, run once: two steps and a reference on the digits, two seeds of one epoch."""

import json
from pathlib import Path
from typing import Any

import pytest

from convnext.study.plan import Plan, make_plan
from convnext.study.report import write_report
from convnext.study.runner import run_study

STEPS = ("move_up_depthwise", "kernel_7", "kernel_9")
REFERENCE = "timm/test_vit"


def small_plan(out: Path | None, **change: Any) -> Plan:
    options: dict[str, Any] = {"steps": STEPS, "references": [REFERENCE], "epochs": 1} | change
    return make_plan(regime="micro", data="digits", out=out, **options)


@pytest.fixture(scope="session")
def study_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study") / "out"
    (*_, last) = run_study(small_plan(folder))
    write_report(last.results, folder)
    return folder


@pytest.fixture
def results(study_folder: Path) -> dict[str, Any]:
    return json.loads((study_folder / "results.json").read_text())
