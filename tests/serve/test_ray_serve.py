"""The file that docs/ray-serve.md has a user copy, on a cluster of this machine."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import convnext
from tests.conftest import MakeFolder
from tests.runs import MakeRun
from tests.serve.conftest import picture

PAGE = Path(__file__).parents[2] / "docs" / "ray-serve.md"
DRIVER = """
import json, sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx, ray
from ray import serve
from ray_app import app

run, port, *files = sys.argv[1:]
ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
serve.start(http_options={"port": int(port)})
serve.run(app({"run": run}))
with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120) as client, ThreadPoolExecutor(8) as pool:
    answers = list(pool.map(lambda file: client.post("/", content=Path(file).read_bytes()), files))
Path("answers.json").write_text(json.dumps([[answer.status_code, answer.json()] for answer in answers]))
serve.shutdown()
ray.shutdown()
"""


@pytest.mark.slow
def test_the_file_on_the_page_serves(make_folder: MakeFolder, make_run: MakeRun, tmp_path: Path) -> None:
    pytest.importorskip("ray.serve", reason="needs the extra: pip install 'convnext[ray]'")
    (code,) = re.findall(r"```py\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (tmp_path / "ray_app.py").write_text(code)
    (tmp_path / "driver.py").write_text(DRIVER)
    run = make_run(make_folder({"cat": 12, "dog": 12}))
    files = [str(path) for path in sorted((tmp_path / "images").rglob("*.jpg"))]
    (tmp_path / "bad.jpg").write_bytes(b"no picture")
    (tmp_path / "cut.jpg").write_bytes(picture(size=(300, 300), kind="jpeg")[:-100])
    bad = [str(tmp_path / "bad.jpg"), str(tmp_path / "cut.jpg")]
    done = subprocess.run(
        [sys.executable, "driver.py", str(run), "18642", *files, *bad],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    *answers, (status, none), (damaged, cut) = json.loads((tmp_path / "answers.json").read_text())
    for (code, answer), expected in zip(answers, convnext.load(run).predict(files), strict=True):
        assert code == 200
        assert answer["label"] == expected.label
        assert answer["probability"] == pytest.approx(expected.probability, abs=1e-5)
    assert (status, set(none)) == (415, {"error"})
    assert (damaged, "truncated" in cut["error"]) == (422, True)
