"""The batch script in docs/cluster.md: signalled, it saves and asks for another turn; left alone, it does not."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.training.runs import log, position, wait_for_checkpoint

PAGE = Path(__file__).parents[2] / "docs" / "cluster.md"
TRAINING = "imagenet:/data/imagenet --recipe paper_1k"
STAND_INS = {
    "srun": 'echo $$ > step; exec "$@"',
    "torchrun": f'exec {sys.executable} -m torch.distributed.run "$@"',
    "scancel": 'echo "$@" >> scancel; kill -USR1 "$(cat step)"',
    "scontrol": 'if [ "$1" = show ]; then echo localhost; else echo "$@" >> requeued; fi',
}


def job(folder: Path, epochs: int) -> subprocess.Popen[str]:
    """The script under way on this machine, with two processes on the digits."""
    (found,) = re.findall(r"```bash\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert TRAINING in found
    script = found.replace(TRAINING, f"digits --epochs {epochs} --device cpu --workers 0").replace(
        "--nproc-per-node gpu", "--nproc-per-node 2"
    )
    (folder / "job.sh").write_text(script.replace(":29500", ":0"))
    (folder / "bin").mkdir(exist_ok=True)
    for name, line in STAND_INS.items():
        path = folder / "bin" / name
        path.write_text(f"#!/bin/bash\n{line}\n")
        path.chmod(0o755)
    env = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    env |= {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    env |= {"SLURM_JOB_ID": "7", "SLURM_NNODES": "1", "SLURM_JOB_NODELIST": "here"}
    return subprocess.Popen(["bash", "job.sh"], cwd=folder, env=env, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/bin/bash").exists(), reason="the script is bash's")
def test_the_job_is_requeued_when_its_time_is_up_and_ends_in_the_next_turn(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "imagenet"
    first = job(tmp_path, epochs=5)
    wait_for_checkpoint(run)
    first.send_signal(signal.SIGUSR1)
    _, said = first.communicate(timeout=120)
    assert first.returncode == 1
    assert "stopped by SIGUSR1" in said
    assert (tmp_path / "requeued").read_text() == "requeue 7\n"
    assert (tmp_path / "scancel").read_text() == "--signal=USR1 7\n"
    assert position(run)[1] > 0
    second = job(tmp_path, epochs=5)
    _, said = second.communicate(timeout=240)
    assert second.returncode == 0, said
    assert [metrics["epoch"] for metrics in log(run)] == [1, 2, 3, 4, 5]
    assert (tmp_path / "requeued").read_text() == "requeue 7\n"


@pytest.mark.slow
@pytest.mark.skipif(not Path("/bin/bash").exists(), reason="the script is bash's")
def test_a_job_with_wrong_words_is_not_requeued(tmp_path: Path) -> None:
    failing = job(tmp_path, epochs=0)
    _, said = failing.communicate(timeout=120)
    assert failing.returncode == 1
    assert "epochs is 0" in said
    assert not (tmp_path / "requeued").exists()
