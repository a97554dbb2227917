"""What TensorBoard and Weights & Biases are told, read back from what they wrote; and what a run that goes on adds."""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from convnext.errors import RunError, UsageError
from convnext.training.logging import check_trackers, open_trackers
from convnext.training.recipes import digits

RECIPE = digits().to_dict()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A run's folder; wandb keeps to it, and away from network and account."""
    for name in ("CONFIG", "CACHE", "DATA"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / "wandb-own"))
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    folder = tmp_path / "run"
    folder.mkdir()
    yield folder
    if wandb := sys.modules.get("wandb"):
        wandb.teardown()  # its service, and what it took from the environment


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """TensorBoard's figures as its own reader sees them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def log_steps(folder: Path, names: list[str], values: dict[int, dict[str, float]]) -> None:
    trackers = open_trackers(names, folder, RECIPE, first_step=min(values, default=1))
    for tracker in trackers:
        for step, figures in values.items():
            tracker.log(step, figures)
        tracker.close()


def test_tensorboard(folder: Path) -> None:
    (tracker,) = open_trackers(["tensorboard"], folder, RECIPE, first_step=1)
    tracker.log(1, {"top1": 50.0, "loss": 1.5})
    tracker.log(2, {"top1": 62.5, "loss": 1.25})
    assert scalars(folder) == {"top1": [(1, 50.0), (2, 62.5)], "loss": [(1, 1.5), (2, 1.25)]}  # before it is closed
    tracker.close()


def test_tensorboard_has_the_recipe(folder: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import plugin_data_pb2

    log_steps(folder, ["tensorboard"], {})
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    content = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    recorded = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info.hparams  # pyright: ignore
    assert set(recorded) == set(RECIPE)
    assert recorded["model"].string_value == "roadmap_micro/separate_downsampling"
    assert recorded["lr"].number_value == 6e-3
    assert recorded["betas"].string_value == "[0.9, 0.999]"


def test_tensorboard_of_a_resumed_run_has_each_step_once(folder: Path) -> None:
    log_steps(folder, ["tensorboard"], {step: {"top1": 10.0 * step} for step in (1, 2, 3)})  # killed after step 2
    log_steps(folder, ["tensorboard"], {step: {"top1": 10.0 * step + 1} for step in (3, 4)})
    assert scalars(folder) == {"top1": [(1, 10.0), (2, 20.0), (3, 31.0), (4, 41.0)]}


def test_wandb_offline(folder: Path) -> None:
    for steps in ((1, 2), (3,)):
        log_steps(folder, ["wandb"], {step: {"top1": 60.125 + step} for step in steps})
    name = (folder / "wandb" / "id.txt").read_text()
    logs = sorted(folder.glob("wandb/offline-run-*/*.wandb"), key=lambda log: log.stat().st_mtime)
    assert [log.name for log in logs] == [f"run-{name}.wandb"] * len(logs)
    texts, until = (b"61.125", b"62.125", b"63.125", b"roadmap_micro/separate_downsampling"), time.monotonic() + 10
    while missing := [text for text in texts if not any(text in log.read_bytes() for log in logs)]:
        assert time.monotonic() < until, missing  # its service writes in a process of its own
        time.sleep(0.1)


def test_two_at_once(folder: Path) -> None:
    log_steps(folder, ["tensorboard", "wandb"], {1: {"top1": 60.125}})
    assert scalars(folder) == {"top1": [(1, 60.125)]}
    assert list(folder.glob("wandb/offline-run-*"))


def test_wandb_without_an_account(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    with pytest.raises(RunError, match="WANDB_MODE=offline"):
        open_trackers(["wandb"], folder, RECIPE, first_step=1)


def test_unknown_and_missing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"'tensorbord'.*tensorboard"):
        check_trackers(["tensorbord"])
    for name in ("tensorboard", "wandb"):
        check_trackers([name])
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(UsageError, match=rf"convnext\[{name}\]"):
            open_trackers([name], folder, RECIPE, first_step=1)
    assert not list(folder.iterdir())


def test_no_tracker_is_imported_unless_used(folder: Path) -> None:
    code = f"""if True:
        import sys
        from pathlib import Path
        from convnext.training.logging import open_trackers
        assert open_trackers([], Path({str(folder)!r}), {{}}, first_step=1) == []
        assert not {{"tensorboard", "wandb"}} & set(sys.modules)
    """
    subprocess.run([sys.executable, "-c", code], check=True)
    assert not list(folder.iterdir())


def test_a_folder_that_cannot_be_written(folder: Path) -> None:
    (folder / "tensorboard").write_text("in the way")
    with pytest.raises(RunError, match=r"cannot write .*tensorboard"):
        open_trackers(["tensorboard"], folder, RECIPE, first_step=1)
