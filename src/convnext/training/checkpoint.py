"""The run folder: recipe, classes, metrics, environment and weights, each written whole or not at all."""

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from convnext.data import ImageData
from convnext.environment import environment
from convnext.errors import RunError, UsageError
from convnext.files import append_line, is_vacant, read_json, write_atomically, write_json
from convnext.training.recipe import Recipe


@dataclass(frozen=True)
class RunFolder:
    """A run's folder on disk."""

    dir: Path

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
        there, here = read_json(path), recipe.identity
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

    def begin(self, recipe: Recipe, data: ImageData) -> None:
        """Record recipe, classes, images, and the environment."""
        write_json(self.dir / "data.json", {"images": data.fingerprint} | ({"split": data.split} if data.split else {}))
        write_json(self.dir / "classes.json", list(data.classes))
        write_json(self.dir / "environment.json", environment())
        write_json(self.dir / "recipe.json", recipe.to_dict())

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
        write_atomically(self.dir / "best.safetensors", safetensors.torch.save(plain))
