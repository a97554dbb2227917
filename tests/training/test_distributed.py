"""Several processes: the same training as one, exact, and a clear end when one of them dies."""

import dataclasses
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from convnext.errors import UsageError
from convnext.training.build import build_state
from convnext.training.distributed import SINGLE_RANK, Ranks
from convnext.training.recipe import Recipe
from convnext.training.recipes import small
from convnext.training.run import train
from tests.conftest import MakeFolder
from tests.training.runs import cut_off, log, position, state, wait_for_checkpoint

ONE_THREAD = os.environ | {"OMP_NUM_THREADS": "1", "RANK": "", "WORLD_SIZE": ""}


@pytest.fixture
def data(make_folder: MakeFolder) -> Path:
    return make_folder({"train/cat": 20, "train/dog": 20, "val/cat": 4, "val/dog": 3})


def recipe(data: Path, **change: Any) -> Recipe:
    """Ten steps of eight images."""
    values: dict[str, Any] = {
        "model": "roadmap_micro/separate_downsampling",
        "image_size": 32,
        "stem_stride": 4,
        "epochs": 2,
        "batch_size": 8,
        "workers": 0,
        "drop_path": 0.0,
    }
    values |= {"augment": "rand_augment", "random_erasing": 0.0, "ema_decay": 0.9, "clip_grad": 1.0, "seed": 1}
    values |= {"warmup_epochs": 0, "lr": 1e-3, "lr_batch_size": 8}
    return dataclasses.replace(small(str(data)), **values | change)


def words(recipe: Recipe, out: Path) -> list[str]:
    """A recipe as the command line's words."""
    given = {f"--{name.replace('_', '-')}": value for name, value in recipe.to_dict().items() if name != "data"}
    plain = [(flag, str(value)) for flag, value in given.items() if type(value) in (int, float, str) and value != ""]
    return ["train", recipe.data, "--out", str(out), *(word for pair in plain for word in pair)]


def launch(arguments: list[str], *launcher: str) -> subprocess.Popen[str]:
    launcher = launcher or ("--standalone", "--nproc-per-node", "2")
    command = [sys.executable, "-m", "torch.distributed.run", *launcher, "-m", "convnext", *arguments]
    env = {name: value for name, value in ONE_THREAD.items() if value}
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)


def finish(process: subprocess.Popen[str], seconds: float = 240) -> str:
    out, said = process.communicate(timeout=seconds)
    assert process.returncode == 0, said
    return out


def learned(folder: Path) -> dict[str, dict[str, Tensor]]:
    return {part: state(folder)["learner"][part] for part in ("model", "average")}


def assert_close(first: Path, second: Path) -> None:
    torch.testing.assert_close(learned(first), learned(second), rtol=0, atol=1e-5)
    for one, other in zip(log(first), log(second), strict=True):
        assert one["train_loss"] == pytest.approx(other["train_loss"], abs=1e-5)
        assert one["loss"] == pytest.approx(other["loss"], abs=1e-5)
        assert (one["images"], one["top1"]) == (other["images"], other["top1"])


ALL_RANDOMNESS: dict[str, Any] = {
    "mixup": 0.8,
    "cutmix": 1.0,
    "random_erasing": 0.5,
    "drop_path": 0.3,
    "repeated_augmentation": 2,
}


@pytest.mark.slow
def test_two_ranks_equal_one_at_the_same_batch(data: Path, tmp_path: Path) -> None:
    """Without what draws random numbers whatever the micro-batches; with it where these are the same."""
    finish(launch(words(recipe(data), tmp_path / "two")))
    for name, accumulate in (("one", 1), ("parts", 4)):
        train(recipe(data, accumulate=accumulate), tmp_path / name)
        assert_close(tmp_path / "two", tmp_path / name)
    finish(launch(words(recipe(data, **ALL_RANDOMNESS, accumulate=2), tmp_path / "random-two")))
    train(recipe(data, **ALL_RANDOMNESS, accumulate=4), tmp_path / "random-one")
    assert_close(tmp_path / "random-two", tmp_path / "random-one")


def free_port() -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return str(listener.getsockname()[1])


def launch_two_machines(arguments: list[str]) -> list[subprocess.Popen[str]]:
    """Two launchers of one rank each."""
    options = ("--nnodes", "2", "--nproc-per-node", "1", "--master-addr", "127.0.0.1", "--master-port", free_port())
    return [launch(arguments, *options, "--node-rank", str(rank)) for rank in range(2)]


@pytest.mark.slow
def test_two_machines_of_one_rank_each(data: Path, tmp_path: Path) -> None:
    for node in launch_two_machines(words(recipe(data), tmp_path / "two")):
        finish(node)
    train(recipe(data), tmp_path / "one")
    assert_close(tmp_path / "two", tmp_path / "one")


def children(process: subprocess.Popen[str]) -> list[int]:
    """The launcher's training processes, by rank."""
    ranks = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
                variables = dict(pair.split("=", 1) for pair in (folder / "environ").read_text().split("\0") if pair)
            except (OSError, ValueError):
                continue
            if parent == str(process.pid) and "RANK" in variables:
                ranks[int(variables["RANK"])] = int(folder.name)
    return [ranks[rank] for rank in sorted(ranks)]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds the processes in /proc")
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_process_ends_the_job_and_it_goes_on(data: Path, tmp_path: Path, rank: int) -> None:
    long = recipe(data, epochs=12, checkpoint_minutes=0)
    process = launch(words(long, tmp_path / "two"))
    wait_for_checkpoint(tmp_path / "two")
    killed = time.monotonic()
    os.kill(children(process)[rank], signal.SIGKILL)
    _, said = process.communicate(timeout=60)
    assert time.monotonic() - killed < 60
    assert process.returncode != 0
    assert f"rank {1 - rank} cannot continue" in said
    finish(launch(words(long, tmp_path / "two")))
    train(long, tmp_path / "one")
    assert_close(tmp_path / "two", tmp_path / "one")


ALL_SIGNALS = ("--signals-to-handle", "SIGTERM,SIGINT,SIGUSR1")  # SIGUSR1 would otherwise end torchrun alone


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="has no such signals")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
def test_a_signal_to_torchrun_saves_in_mid_epoch_and_the_run_goes_on(data: Path, tmp_path: Path, name: str) -> None:
    long = recipe(data, epochs=8)
    process = launch(words(long, tmp_path / "two"), "--standalone", "--nproc-per-node", "2", *ALL_SIGNALS)
    wait_for_checkpoint(tmp_path / "two")
    process.send_signal(signal.Signals[name])
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert f"stopped by {name} in epoch" in said
    assert position(tmp_path / "two")[1] > 0
    finish(launch(words(long, tmp_path / "two")))
    train(long, tmp_path / "one")
    assert_close(tmp_path / "two", tmp_path / "one")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="has no such signals")
def test_no_machine_leaves_before_the_first_has_saved(data: Path, tmp_path: Path) -> None:
    """A launcher such as srun may end the whole job as soon as one machine's part of it has ended."""
    run = tmp_path / "two"
    nodes = launch_two_machines(words(recipe(data, epochs=8), run))
    wait_for_checkpoint(run)
    nodes[1].send_signal(signal.SIGTERM)
    _, said = nodes[1].communicate(timeout=60)
    assert position(run)[1] > 0
    assert "stopped by SIGTERM" in said
    assert "stopped by a signal to another rank" in nodes[0].communicate(timeout=60)[1]


@pytest.mark.slow
def test_two_processes_go_on_from_the_last_step_of_an_epoch(data: Path, tmp_path: Path) -> None:
    """A checkpoint with nothing left to train in its epoch, only to evaluate, as a stop there leaves it."""
    whole = recipe(data, batch_size=40, epochs=2, checkpoint_minutes=0)
    cut_off(whole, tmp_path / "two", (0, 1))
    assert position(tmp_path / "two") == (0, 1)
    finish(launch(words(whole, tmp_path / "two")))
    train(whole, tmp_path / "one")
    assert_close(tmp_path / "two", tmp_path / "one")


@pytest.mark.slow
def test_what_is_wrong_with_the_words_is_said_once(tmp_path: Path) -> None:
    for wrong, message in ((["--nonsense", "1"], "nonsense"), (["--model", "convnext_tinny"], "unknown model")):
        process = launch(["train", "digits", "--out", str(tmp_path / "run"), *wrong])
        _, said = process.communicate(timeout=120)
        assert process.returncode != 0
        assert said.count(message) == 1


def test_sync_batch_norm_needs_gpus() -> None:
    asked = Recipe(model="torchvision/resnet18", sync_batch_norm=True, image_size=32)
    build_state(asked, 3, torch.device("cpu"), SINGLE_RANK)
    with pytest.raises(UsageError, match="sync_batch_norm"):
        build_state(asked, 3, torch.device("cpu"), Ranks(rank=0, world_size=2))
