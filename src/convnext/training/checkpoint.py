"""The run folder (recipe, classes, preprocessing, metrics, environment and weights, each written whole or not at all),
and the checkpoints of a training that is under way.
"""

import io
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from convnext.data import ImageData
from convnext.environment import environment
from convnext.errors import DivergedError, RunError, UsageError
from convnext.files import append_line, is_vacant, read_json, write_atomically, write_json
from convnext.training.build import preprocessing_of
from convnext.training.distributed import Processes
from convnext.training.learner import Learner
from convnext.training.meter import Meter
from convnext.training.metrics import gather
from convnext.training.recipe import Recipe
from convnext.weights.reading import BEST


@dataclass(frozen=True)
class RunFolder:
    """A run's folder on disk."""

    dir: Path

    @property
    def best(self) -> Path:
        """The weights of the best epoch; there from the first finished one on."""
        return self.dir / BEST

    @property
    def preprocessing(self) -> Path:
        """How images are prepared for the network."""
        return self.dir / "preprocessing.json"

    def check(self, recipe: Recipe, data: ImageData) -> None:
        """Refuse a folder in which this recipe cannot begin or go on.

        Raises:
            UsageError: the folder holds a run of another recipe or of other images, or other files.
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
        images = self.dir / "data.json"
        if images.exists():
            there |= {"images": read_json(images).get("images")}
            here |= {"images": data.fingerprint}
        for name, value in here.items():
            if there.get(name) != value:
                raise UsageError(
                    f"{self.dir} belongs to another recipe ({name} is {there.get(name)!r} there, {value!r} here): "
                    "choose another folder with --out, or the same recipe to go on"
                )

    @property
    def is_begun(self) -> bool:
        """Whether there is a checkpoint to go on from."""
        return (self.dir / "last.pt").exists()

    def begin(self, recipe: Recipe, data: ImageData) -> None:
        """Record recipe, classes, images and how they are prepared, and the environment."""
        write_json(self.dir / "recipe.json", recipe.to_dict())  # first: it is what makes a folder a run's
        write_json(self.dir / "data.json", {"images": data.fingerprint} | ({"split": data.split} if data.split else {}))
        write_json(self.dir / "classes.json", list(data.classes))
        write_json(self.preprocessing, preprocessing_of(recipe).to_dict())
        write_json(self.dir / "environment.json", environment())

    def metrics(self) -> list[dict[str, Any]]:
        """The finished epochs' metrics, oldest first; a last line that was cut off in the writing is left out."""
        path = self.dir / "metrics.jsonl"
        metrics = []
        for line in path.read_text().splitlines() if path.exists() else ():
            try:
                metrics.append(json.loads(line))
            except ValueError:
                break
        return metrics

    def write_metrics(self, metrics: list[dict[str, Any]]) -> None:
        """Make the log that of the last checkpoint: what is behind it is trained again."""
        write_atomically(self.dir / "metrics.jsonl", "".join(json.dumps(epoch) + "\n" for epoch in metrics))

    def add_metrics(self, metrics: dict[str, Any]) -> None:
        """Append one epoch's metrics."""
        append_line(self.dir / "metrics.jsonl", json.dumps(metrics, allow_nan=False))

    def save_last(self, state: dict[str, Any]) -> None:
        """Save all that it takes to go on."""
        buffer = io.BytesIO()
        torch.save(state, buffer)
        write_atomically(self.dir / "last.pt", buffer.getbuffer())

    def load_last(self, device: torch.device) -> dict[str, Any] | None:
        """What :meth:`save_last` saved; None before the first save."""
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


class Checkpoints:
    """The checkpoints of a training under way: what it goes on from, and when they are due. The first process writes.

    Args:
        run: where they lie.
        learner: what they hold.
        processes: those that train together.
        seconds: between two of them within an epoch.
    """

    def __init__(self, run: RunFolder, learner: Learner, processes: Processes, seconds: float) -> None:
        self.run, self.learner, self.processes, self.seconds = run, learner, processes, seconds
        self.saved = time.monotonic()

    def restore(self, device: torch.device) -> tuple[int, int, list[dict[str, Any]], dict[str, Any] | None]:
        """Go on from the last checkpoint: its epoch and step, the metrics until then, and the epoch's sums.

        Raises:
            RunError: it is damaged, or the processes do not see the same one.
        """
        state = self.run.load_last(device)
        epoch, step = (state["epoch"], state["step"]) if state else (0, 0)
        if state:
            self.learner.load_state_dict(state["learner"])
        if len(set(gather((epoch, step)))) > 1:
            raise RunError(
                f"the processes see different checkpoints in {self.run.dir} (process {self.processes.rank} epoch "
                f"{epoch}, step {step}): the folder must be on a file system that all machines share"
            )
        return epoch, step, state["metrics"] if state else [], state["meter"] if state else None

    def begin(self, recipe: Recipe, data: ImageData, log: list[dict[str, Any]]) -> None:
        """Record whose folder this is, and make the log that of the checkpoint."""
        if self.processes.first:
            self.run.begin(recipe, data)
            self.run.write_metrics(log)

    @property
    def due(self) -> bool:
        """Whether the last checkpoint is old enough for another."""
        return time.monotonic() - self.saved >= self.seconds

    def save(
        self, epoch: int, step: int, meter: Meter | None, log: list[dict[str, Any]], finished: bool = False
    ) -> None:
        """Save all that it takes to go on with this step of this epoch.

        Raises:
            DivergedError: the weights are not finite; the last checkpoint stays.
        """
        self.saved = time.monotonic()
        if not self.processes.first:
            return
        if not self.learner.is_finite():
            raise DivergedError(
                f"the weights are not finite after epoch {epoch + 1}, step {step}: lower --lr, with another "
                f"--out; the last checkpoint in {self.run.dir} is whole"
            )
        learner = self.learner.state_dict(finished)
        sums = meter.state_dict() if meter else None
        self.run.save_last({"epoch": epoch, "step": step, "learner": learner, "meter": sums, "metrics": log})

    def save_best(self) -> None:
        """Save the weights that are evaluated."""
        if self.processes.first:
            self.run.save_best(self.learner.evaluated.state_dict())

    def add_metrics(self, metrics: dict[str, Any]) -> None:
        """Append one epoch's metrics to the log."""
        if self.processes.first:
            self.run.add_metrics(metrics)

    @property
    def kept(self) -> str:
        """What to do next."""
        return f"the same command goes on from the last checkpoint in {self.run.dir}"
