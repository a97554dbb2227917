"""The run folder (recipe, classes, preprocessing, metrics, environment and weights, each written whole or not at all),
and the checkpoints of a training under way.
"""

import hashlib
import io
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from torch import Tensor, nn

from convnext.data import ImageData
from convnext.data.sources import OBJECT
from convnext.environment import environment
from convnext.errors import DivergedError, RunError, UsageError
from convnext.files import append_line, is_vacant, read_json, write_atomically, write_json
from convnext.training.build import Training, preprocessing_of
from convnext.training.distributed import gather
from convnext.training.meter import Meter
from convnext.training.recipe import Recipe
from convnext.weights.reading import BEST


@dataclass(frozen=True)
class RunFolder:
    """A run's folder on disk."""

    dir: Path

    @property
    def best(self) -> Path:
        """The weights of the best epoch; there from the first finished epoch on."""
        return self.dir / BEST

    @property
    def preprocessing(self) -> Path:
        """The file that holds the preprocessing of the model's images."""
        return self.dir / "preprocessing.json"

    def check(self, recipe: Recipe, data: ImageData, model: nn.Module | None = None) -> None:
        """Refuse a folder in which this recipe, with a model that was passed or its own, can neither begin nor resume.

        Raises:
            UsageError: the folder has a run of another recipe, other images or another model, or other files.
        """
        path = self.dir / "recipe.json"
        if not path.exists():
            if not is_vacant(self.dir):
                raise UsageError(f"{self.dir} has files but no run of this program: choose another folder with --out")
            return
        try:
            there, here = Recipe.from_dict(read_json(path)).identity, recipe.identity
        except UsageError as error:
            raise UsageError(f"{path}: {error}: choose another folder with --out") from error
        except (TypeError, AttributeError) as error:
            raise RunError(f"{path} is damaged ({error}): choose another folder with --out") from error
        if (self.dir / "data.json").exists():
            recorded = read_json(self.dir / "data.json")
            current = fingerprints(data, model)
            there |= {name: recorded.get(name) for name in current}
            here |= current
        for name, value in here.items():
            if there.get(name) != value:
                objects = ", and pass the same objects" if OBJECT in f"{there.get(name)}" else ""
                raise UsageError(
                    f"{self.dir} belongs to another recipe ({name} is {there.get(name)!r} there, {value!r} here): "
                    f"choose another folder with --out, or take the same recipe to resume{objects}"
                )

    @property
    def is_begun(self) -> bool:
        """True if there is a checkpoint to resume from."""
        return (self.dir / "last.pt").exists()

    def begin(self, recipe: Recipe, data: ImageData, model: nn.Module | None = None) -> None:
        """Record recipe, classes, images and how they are prepared, and the environment."""
        write_json(self.dir / "recipe.json", recipe.to_dict())  # first: it is what makes a folder a run's
        write_json(self.dir / "data.json", fingerprints(data, model) | ({"split": data.split} if data.split else {}))
        write_json(self.dir / "classes.json", list(data.classes))
        write_json(self.preprocessing, preprocessing_of(recipe).to_dict())
        write_json(self.dir / "environment.json", environment())

    def metrics(self) -> list[dict[str, Any]]:
        """The finished epochs' metrics, oldest first, without a last line that was cut off in writing."""
        path = self.dir / "metrics.jsonl"
        metrics = []
        for line in path.read_text().splitlines() if path.exists() else ():
            try:
                metrics.append(json.loads(line))
            except ValueError:
                break
        return metrics

    def load_last(self, device: torch.device) -> dict[str, Any] | None:
        """Load the last checkpoint; None before the first one.

        Raises:
            RunError: it is damaged.
        """
        path = self.dir / "last.pt"
        if not path.exists():
            return None
        try:
            return torch.load(path, map_location=device, weights_only=True)
        except Exception as error:  # torch raises many kinds for a damaged file, with advice that does not fit here
            raise RunError(f"cannot read {path}, it is damaged: move it away to begin {self.dir} anew") from error

    def save_best(self, weights: dict[str, Tensor]) -> None:
        """Save the weights of the best epoch so far."""
        plain = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
        write_atomically(self.best, safetensors.torch.save(plain))


def fingerprints(data: ImageData, model: nn.Module | None) -> dict[str, str]:
    """Tell the images, and a model that was passed as an object, from others of the same name."""
    if model is None:
        return {"images": data.fingerprint}
    shapes = [f"{name} {tuple(tensor.shape)}" for name, tensor in model.state_dict().items()]
    digest = hashlib.sha256("\n".join(shapes).encode()).hexdigest()[:12]
    return {"images": data.fingerprint, "module": f"{len(shapes)} tensors, {digest}"}


class Start(NamedTuple):
    """Where a training begins or resumes: after ``step`` steps of ``epoch``, with the sums of its meter."""

    epoch: int
    step: int
    meter: dict[str, Any] | None


class Checkpoints:
    """The checkpoints of a training under way, and the ``log`` of its epochs' metrics; the main rank writes them."""

    def __init__(self, run: RunFolder, training: Training, model: nn.Module | None = None) -> None:
        self.run, self.training, self.state, self.ranks = run, training, training.state, training.ranks
        self.model = model  # passed as an object
        self.log: list[dict[str, Any]] = []
        self.saved = time.monotonic()

    def restore(self) -> Start:
        """Load the last checkpoint, and record whose folder this is.

        Raises:
            RunError: the checkpoint is damaged, or the ranks do not see the same one.
        """
        state = self.run.load_last(self.training.device)
        start = Start(state["epoch"], state["step"], state["meter"]) if state else Start(0, 0, None)
        if state:
            self.state.load_state_dict(state["learner"])
            self.log = state["metrics"]
        if len(set(gather((start.epoch, start.step)))) > 1:
            raise RunError(
                f"the ranks see different checkpoints in {self.run.dir} (rank {self.ranks.rank} epoch {start.epoch}, "
                f"step {start.step}): the folder must be on a file system that all machines share"
            )
        if self.ranks.is_main:
            self.run.begin(self.training.recipe, self.training.data, self.model)
            lines = "".join(json.dumps(epoch) + "\n" for epoch in self.log)  # later epochs are trained again
            write_atomically(self.run.dir / "metrics.jsonl", lines)
        return start

    @property
    def is_due(self) -> bool:
        """True if the last checkpoint is old enough for another one."""
        return time.monotonic() - self.saved >= self.training.checkpoint_seconds

    def save(self, epoch: int, step: int, meter: Meter | None = None) -> None:
        """Save everything needed to resume after ``step`` steps of ``epoch``.

        Raises:
            DivergedError: the weights are not finite; the last checkpoint stays.
        """
        self.saved = time.monotonic()
        if not self.ranks.is_main:
            return
        if not self.state.is_finite():
            raise DivergedError(
                f"the weights are not finite after epoch {epoch + 1}, step {step}: lower --lr, with another "
                f"--out; the last checkpoint in {self.run.dir} is whole"
            )
        learner = self.state.state_dict(is_finished=epoch == self.training.epochs)
        sums, buffer = meter.state_dict() if meter else None, io.BytesIO()
        torch.save({"epoch": epoch, "step": step, "learner": learner, "meter": sums, "metrics": self.log}, buffer)
        write_atomically(self.run.dir / "last.pt", buffer.getbuffer())

    def end_epoch(self, metrics: dict[str, Any]) -> None:
        """Save a finished epoch: its weights, if they are the best so far, the checkpoint, and its metrics."""
        is_best = metrics["top1"] > max((earlier["top1"] for earlier in self.log), default=-math.inf)
        if is_best and self.ranks.is_main:
            self.run.save_best(self.state.evaluated.state_dict())
        self.log.append(metrics)
        self.save(metrics["epoch"], 0)
        if self.ranks.is_main:
            append_line(self.run.dir / "metrics.jsonl", json.dumps(metrics, allow_nan=False))

    @property
    def advice(self) -> str:
        """A hint on resuming, for messages."""
        return f"the same command resumes from the last checkpoint in {self.run.dir}"
