"""What a study of the roadmap is asked to do, checked before anything runs or is written."""

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
from convnext.errors import ConvNeXtError, UsageError, unknown_name
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
    """One network of a study: a step of the roadmap, or a reference (``step`` is None), and its cost."""

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
        entries: the steps in the roadmap's order, then the references; those of earlier calls as well.
        asked: keys of the entries that this call asks for.
        recipe: the one recipe of every training; each sets its own model and seed.
        num_classes: of the data.
        images: the data's fingerprint; None where there is no data.
        notes: what should be known about the data.
        folder: where everything is written; None for nowhere.
        seeds: trainings of each network.
        minutes: begin no further round of seeds that would end later than this; None for no limit.
        train: False counts and measures only.
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
        """Where one training lies."""
        assert self.folder is not None
        return self.folder / "runs" / entry.key.replace("/", "-") / f"seed-{seed}"

    @property
    def shared_recipe(self) -> dict[str, Any]:
        """What all trainings have in common."""
        return {name: value for name, value in self.recipe.to_dict().items() if name not in ("model", "seed")}

    @property
    def identity(self) -> dict[str, Any]:
        """What makes another call go on with this study rather than be refused."""
        recipe = {name: value for name, value in self.recipe.identity.items() if name in self.shared_recipe}
        return {"regime": self.regime, "images": self.images, **recipe}

    def record(self) -> None:
        """Write down whose folder this is and what it holds; what other calls wrote meanwhile stays."""
        assert self.folder is not None
        earlier = read_study(self)
        study: dict[str, Any] = {"identity": self.identity}
        for kind in ("steps", "references"):
            here = [entry.key for entry in self.entries if bool(entry.step) == (kind == "steps")]
            study[kind] = list(dict.fromkeys([*earlier.get(kind, ()), *here]))
        write_json(self.folder / "study.json", study)

    @property
    def command(self) -> str:
        """The call that makes this study, with all that its folder holds."""
        words = ["convnext", "roadmap", "--regime", self.regime]
        if self.recipe.data != IMAGENET_SHAPE:
            words += ["--data", self.recipe.data]
        steps = [entry.key for entry in self.entries if entry.step]
        if len(steps) < len(roadmap(self.regime)):
            words += ["--steps", ",".join(steps)]
        references = [entry.key for entry in self.entries if not entry.step]
        if references:
            words += ["--references", ",".join(references)]
        words += ["--epochs", str(self.recipe.epochs), "--seeds", str(self.seeds)] if self.train else ["--no-train"]
        words += ["--image-size", str(self.recipe.image_size)]
        return shlex.join(words + (["--out", str(self.folder)] if self.folder else []))


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
    """Check what was asked for, and turn it into a plan.

    Args:
        regime: ``micro``, ``tiny`` or ``base``.
        data: see :func:`convnext.data.load_data`; by default digits, or without training ImageNet's shape for the two
            regimes that the paper has.
        steps: keys; by default all.
        references: names such as ``torchvision/resnet18``.
        epochs: in place of the recipe's.
        image_size: in place of the recipe's.
        seeds: trainings of each network.
        minutes: see :class:`Plan`.
        device: as in a recipe.
        train: whether anything will be trained.
        out: the folder; by default ``runs/roadmap-REGIME-DATA``, or none without training. What earlier calls did
            there is reported as well.

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
            raise UsageError(f"{name} is no reference: name its library as well, torchvision/{name} or timm/{name}")
    images, notes = None, ()
    if data is None and not train and regime != "micro":
        recipe, num_classes = from_scratch("imagenet:"), 1000
        recipe = dataclasses.replace(recipe, data=IMAGENET_SHAPE)
    else:
        recipe = from_scratch("digits" if data is None else data)
        recipe = dataclasses.replace(recipe, epochs=EPOCHS.get(recipe.data, recipe.epochs))
        loaded = load_data(recipe.data, val_fraction=recipe.val_fraction)
        num_classes, images, notes = len(loaded.classes), loaded.fingerprint, loaded.notes
    change: dict[str, Any] = {"epochs": epochs, "image_size": image_size}
    change = {name: value for name, value in change.items() if value is not None}
    # As in the paper, without the running average of the weights, which harms networks with BatchNorm.
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


def read_study(plan: Plan) -> dict[str, Any]:
    """What earlier calls in the plan's folder recorded; nothing for a new folder.

    Raises:
        UsageError: the folder belongs to another study, or to something else.
    """
    if plan.folder is None:
        return {}
    path = plan.folder / "study.json"
    if not path.exists():
        if not is_vacant(plan.folder):
            raise UsageError(f"{plan.folder} is there already and holds no study: choose another with --out")
        return {}
    study = read_json(path)
    identity = study.get("identity") or {}
    for name, value in plan.identity.items():
        there = identity.get(name)
        if there != value:
            raise UsageError(
                f"{plan.folder} belongs to another study ({name} is {there!r} there, {value!r} here): choose another "
                "folder with --out, or the same words to go on"
            )
    return study


def entry_cost(plan: Plan, model: str) -> Cost:
    """A network's cost at the plan's image size, counted on the meta device.

    Raises:
        UsageError: the network is unknown, or cannot take such images.
    """
    try:
        with torch.device("meta"):
            network = build_model(dataclasses.replace(plan.recipe, model=model), plan.num_classes)
        return cost(network, plan.recipe.image_size)
    except ConvNeXtError:
        raise
    except (RuntimeError, AssertionError, ValueError) as error:  # a reference that cannot take images of this size
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UsageError(
            f"{model} cannot take images of {plan.recipe.image_size} px ({reason}): pass a larger --image-size, or "
            "leave it out"
        ) from error
