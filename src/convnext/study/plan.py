"""The plan of a study of the roadmap, checked before anything runs or is written."""

import dataclasses
import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from convnext.data import load_data
from convnext.device import choose_device
from convnext.errors import ConvNeXtError, UsageError, reason, unknown_name
from convnext.files import is_vacant, read_json, write_json
from convnext.models import is_reference, roadmap
from convnext.models.cost import Cost, cost
from convnext.models.roadmap import Step
from convnext.training.build import build_model
from convnext.training.recipe import Recipe
from convnext.training.recipes import from_scratch
from convnext.training.run import data_name

IMAGENET_SHAPE = "imagenet"  # no data, only its shape: 1000 classes and 224 px
# Fewer than the data's recipe has: enough to tell the steps apart, in a demonstration's minutes.
EPOCHS = {"digits": 12}


@dataclass(frozen=True)
class Entry:
    """One model of a study: a step of the roadmap, or a reference (``step`` is None), and its cost."""

    model: str
    step: Step | None
    cost: Cost

    @property
    def key(self) -> str:
        """The step's key, or the reference's name."""
        return self.step.key if self.step else self.model


@dataclass(frozen=True)
class Plan:
    """A study.

    Attributes:
        regime: of the roadmap.
        entries: the steps in the roadmap's order, then the references; those of earlier commands as well.
        asked: keys of the entries that this command names.
        recipe: the one recipe of every training; each sets its own model and seed.
        num_classes: of the data.
        images: the data's fingerprint; None where there is no data.
        notes: remarks about the data.
        folder: where everything is written; None for nowhere.
        seeds: trainings of each model.
        minutes: begin no further round of seeds that would end later than this; None for no limit.
        train: False to count and measure only.
    """

    regime: str
    entries: tuple[Entry, ...]
    asked: frozenset[str]
    recipe: Recipe
    num_classes: int
    images: str | None
    notes: tuple[str, ...]
    folder: Path | None
    seeds: int
    minutes: float | None
    train: bool

    def recipe_of(self, entry: Entry, seed: int) -> Recipe:
        """The recipe of one training."""
        return dataclasses.replace(self.recipe, model=entry.model, seed=seed)

    def run_folder(self, entry: Entry, seed: int) -> Path:
        """The folder of one training."""
        assert self.folder is not None
        return self.folder / "runs" / entry.key.replace("/", "-") / f"seed-{seed}"

    @property
    def shared_recipe(self) -> dict[str, Any]:
        """The fields that all trainings have in common."""
        return {name: value for name, value in self.recipe.to_dict().items() if name not in ("model", "seed")}

    @property
    def identity(self) -> dict[str, Any]:
        """What another command must have in common with this study to continue it."""
        recipe = {name: value for name, value in self.recipe.identity.items() if name in self.shared_recipe}
        return {"regime": self.regime, "images": self.images, **recipe}

    def record(self) -> None:
        """Write ``study.json``: identity and entries, with those that other commands wrote meanwhile."""
        assert self.folder is not None
        earlier = read_study(self)
        study: dict[str, Any] = {"identity": self.identity}
        for kind, keys in (("steps", self.step_keys), ("references", self.reference_names)):
            study[kind] = list(dict.fromkeys([*earlier.get(kind, ()), *keys]))
        write_json(self.folder / "study.json", study)

    @property
    def step_keys(self) -> list[str]:
        """The keys of the steps."""
        return [entry.key for entry in self.entries if entry.step]

    @property
    def reference_names(self) -> list[str]:
        """The names of the references."""
        return [entry.key for entry in self.entries if not entry.step]

    @property
    def command(self) -> str:
        """The command that makes this study, with all that its folder holds."""
        arguments = ["convnext", "roadmap", "--regime", self.regime]
        if self.recipe.data != IMAGENET_SHAPE:
            arguments += ["--data", self.recipe.data]
        if len(self.step_keys) < len(roadmap(self.regime)):
            arguments += ["--steps", ",".join(self.step_keys)]
        if self.reference_names:
            arguments += ["--references", ",".join(self.reference_names)]
        arguments += ["--epochs", str(self.recipe.epochs), "--seeds", str(self.seeds)] if self.train else ["--no-train"]
        arguments += ["--image-size", str(self.recipe.image_size)]
        return shlex.join(arguments + (["--out", str(self.folder)] if self.folder else []))


def make_plan(
    *,
    regime: str,
    data: str | None = None,
    steps: Sequence[str] = (),
    references: Sequence[str] = (),
    epochs: int | None = None,
    image_size: int | None = None,
    seeds: int = 2,
    minutes: float | None = None,
    device: str = "auto",
    train: bool = True,
    out: Path | None = None,
) -> Plan:
    """Check the options of a study, and turn them into a plan.

    Args:
        regime: ``micro``, ``tiny`` or ``base``.
        data: see :func:`convnext.data.load_data`; digits by default, or without training ImageNet's classes and image
            size for the two regimes of the paper.
        steps: keys; all by default.
        references: names such as ``torchvision/resnet18``.
        epochs, image_size, device: see :class:`Recipe`; the data's recipe decides by default.
        seeds, minutes, train: see :class:`Plan`.
        out: the folder; ``runs/roadmap-REGIME-DATA`` by default, none without training.

    Raises:
        UsageError: an unknown regime, step, reference or data; a value out of range; images too small for a network; or
            a folder that belongs to another study.
    """
    if seeds < 1:
        raise UsageError(f"seeds is {seeds}, needs 1 or more")
    if minutes is not None and not 0 <= minutes < math.inf:
        raise UsageError(f"minutes is {minutes}, needs 0 or more")
    choose_device(device)
    path = roadmap(regime)
    keys = [step.key for step in path]
    for key in steps:
        if key not in keys:
            raise unknown_name("step", key, keys)
    for name in references:
        if not is_reference(name):
            raise UsageError(f"{name} is not a reference: name its library as well, torchvision/{name} or timm/{name}")
    recipe, num_classes, images, notes = choose_data(regime, data, train)
    given = {"epochs": epochs, "image_size": image_size}
    change: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    # As in the paper, without the EMA of the weights, which harms models with BatchNorm.
    recipe = dataclasses.replace(recipe, model="", seed=0, stem_stride=None, ema_decay=0.0, device=device, **change)
    folder = out
    if folder is None and train:
        folder = Path("runs") / f"roadmap-{regime}-{data_name(recipe.data)}"

    asked = frozenset([*(steps or keys), *references])
    plan = Plan(regime, (), asked, recipe, num_classes, images, notes, folder, seeds, minutes, train)
    earlier = read_study(plan)
    shown = asked.union(earlier.get("steps", ()))
    names = [(f"roadmap_{regime}/{step.key}", step) for step in path if step.key in shown]
    names += [(name, None) for name in dict.fromkeys([*earlier.get("references", ()), *references])]
    return dataclasses.replace(plan, entries=tuple(Entry(name, step, entry_cost(plan, name)) for name, step in names))


def choose_data(regime: str, data: str | None, train: bool) -> tuple[Recipe, int, str | None, tuple[str, ...]]:
    """The data's recipe, number of classes, fingerprint and notes; without data, ImageNet's recipe and classes."""
    if data is None and not train and regime != "micro":
        return dataclasses.replace(from_scratch("imagenet:"), data=IMAGENET_SHAPE), 1000, None, ()
    recipe = from_scratch("digits" if data is None else data)
    recipe = dataclasses.replace(recipe, epochs=EPOCHS.get(recipe.data, recipe.epochs))
    loaded = load_data(recipe.data, val_fraction=recipe.val_fraction)
    return recipe, len(loaded.classes), loaded.fingerprint, loaded.notes


def read_study(plan: Plan) -> dict[str, Any]:
    """The ``study.json`` of earlier commands in the plan's folder; empty for a new folder.

    Raises:
        UsageError: the folder belongs to another study, or to something else.
    """
    if plan.folder is None:
        return {}
    path = plan.folder / "study.json"
    if not path.exists():
        if not is_vacant(plan.folder):
            raise UsageError(
                f"{plan.folder} exists and is not a study (study.json is missing): choose another with --out"
            )
        return {}
    study = read_json(path)
    identity = study.get("identity") or {}
    for name, value in plan.identity.items():
        there = identity.get(name)
        if there != value:
            raise UsageError(
                f"{plan.folder} belongs to another study ({name} is {there!r} there, {value!r} here): choose another "
                "folder with --out, or the same options to continue it"
            )
    return study


def entry_cost(plan: Plan, model: str) -> Cost:
    """A model's cost at the plan's image size, counted on the meta device.

    Raises:
        UsageError: the model is unknown, or cannot take such images.
    """
    try:
        with torch.device("meta"):
            module = build_model(dataclasses.replace(plan.recipe, model=model), plan.num_classes)
        return cost(module, plan.recipe.image_size)
    except ConvNeXtError:
        raise
    except (RuntimeError, AssertionError, ValueError) as error:  # a reference that cannot take images of this size
        raise UsageError(
            f"{model} cannot take images of {plan.recipe.image_size} px ({reason(error)}): pass a larger --image-size, "
            "or leave it out"
        ) from error
