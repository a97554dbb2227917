"""The plan of a benchmark, checked before anything is measured."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, get_args

import torch
from torch import nn

from convnext.benchmark.configurations import CEILING, EXPORTED, OURS, Configuration, Mode, Precision, settings_for
from convnext.benchmark.machine import choose_threads, cpus_for
from convnext.benchmark.peers import check_libraries, has_model, library_of
from convnext.device import autocast_for, choose_device, has_bf16
from convnext.errors import ConvNeXtError, UsageError, reason, unknown_name
from convnext.inference.model import Model, resolve
from convnext.models import create_model
from convnext.models.cost import cost, image_channels
from convnext.weights.names import parse_name

BUILT_BY_NAME = ("architecture", "library")  # kinds of names of which each process builds the model itself


def open_model(name: str, trust: bool = False) -> Model:
    """Open a model to measure; an architecture gets random weights, which do not change its speed.

    Args:
        name: as for :func:`convnext.inference.model.resolve`.
        trust: open a ``.pt2`` file that was not exported here, though it can run any code.

    Raises:
        UsageError: there is no such model, or a file may run code and is not trusted.
        RunError: a file is damaged or missing, or weights could not be downloaded.
    """
    parsed = parse_name(name)
    return resolve(parsed.model, "none") if parsed.kind in BUILT_BY_NAME else resolve(name, trust=trust)


@dataclass(frozen=True)
class Plan:
    """A benchmark to be run.

    Attributes:
        groups: configurations that are measured interleaved: those of a mode, batch and precision, with the ceiling's.
        models: the opened models by name; those that are built by name are not among them.
        macs: multiply-accumulates of one image, by model.
        notes: what is left out, and why.
        device: torch's device.
        threads: of each process.
        cpus: that each process may run on; none for any.
        rounds: maximum for each configuration.
        seconds: a group begins no further round after this.
        race: end configurations that another setting of the same model clearly beats.
        min_rounds: of every group, whatever they take.
    """

    groups: list[list[Configuration]]
    models: dict[str, nn.Module]
    macs: dict[str, int]
    notes: list[str]
    device: torch.device
    threads: int
    cpus: set[int]
    rounds: int
    seconds: float
    race: bool = True
    min_rounds: int = 1


def make_plan(
    models: Sequence[Model],
    *,
    against: Sequence[str] = (),
    modes: Sequence[str] = ("inference",),
    precisions: Sequence[str] = (),
    batches: Sequence[int] = (16,),
    image_size: int | None = None,
    device: str = "auto",
    threads: int | None = None,
    compiled: bool = True,
    rounds: int = 10,
    seconds: float = 60,
    race: bool = True,
) -> Plan:
    """Check the options of a benchmark, and list its configurations.

    Args:
        models, against: see :func:`open_model`, and libraries to compare with.
        modes, batches: see :class:`Configuration`.
        precisions: fp32, bf16 or both; none for all that the device computes in.
        image_size: height and width in pixels; the model's own by default.
        threads: of each process; one per core by default.
        compiled: measure with torch.compile as well.
        device, rounds, seconds, race: see :class:`Plan`.

    Raises:
        UsageError: a name is unknown, a library is not installed, a number is out of range, or the machine has no
            instructions for a precision.
    """
    check_libraries(against)
    check_names("mode", modes, get_args(Mode))
    for kind, given in (("model", models), ("mode", modes), ("batch", batches)):
        if not given:
            raise UsageError(f"no {kind} is named, needs one or more")
    size = 1 if image_size is None else image_size
    for name, value in (("rounds", rounds), ("image size", size), *(("batch", batch) for batch in batches)):
        if value < 1:
            raise UsageError(f"{name} is {value}, needs 1 or more")
    if not seconds > 0:
        raise UsageError(f"seconds is {seconds:g}, needs more than 0")
    used, chosen = choose_device(device), choose_threads(threads)
    columns = choose_precisions(precisions, used)
    sizes = {model.name: image_size or model.image_size for model in models}
    macs = {model.name: count_macs(model, sizes[model.name], modes, used) for model in models}
    groups, notes = [], list[str]()
    candidates = [(model, library) for model in models for library in libraries_of(model, against, notes)]
    for mode, batch, precision in product(dict.fromkeys(modes), dict.fromkeys(batches), columns):
        shared: dict[str, Any] = {"mode": mode, "batch": batch, "device": str(used)}
        group = [Configuration("matrix products", CEILING, precision=precision, setting="eager", **shared)]
        for model, library in candidates:
            own = {"precision": precision, "image_size": sizes[model.name], "in_channels": channels_of(model)}
            settings = settings_for(library, mode, compiled)  # pyright: ignore[reportArgumentType]
            if model.exported:
                settings, own["precision"] = [*EXPORTED], model.exported.card.precision
            if not model.exported or precision == columns[0]:  # an exported file has one precision
                group += [Configuration(model.name, library, setting=name, **shared, **own) for name in settings]
        groups.append(group)
    opened = {model.name: model.module for model in models if model.kind not in BUILT_BY_NAME}
    return Plan(groups, opened, macs, notes, used, chosen, cpus_for(chosen), rounds, seconds, race)


def check_names(kind: str, names: Sequence[str], known: Sequence[str]) -> None:
    """Refuse names that are not among the known ones."""
    for name in names:
        if name not in known:
            raise unknown_name(kind, name, known)


def choose_precisions(names: Sequence[str], device: torch.device) -> list[Precision]:
    """The precisions by name; without names all that the device computes in.

    Raises:
        UsageError: one is unknown, or there are no instructions for it.
    """
    known: tuple[Precision, ...] = get_args(Precision)
    check_names("precision", names, known)
    for name in names:
        autocast_for(name, device)
    return [
        precision for precision in known if (precision in names if names else precision == "fp32" or has_bf16(device))
    ]


def count_macs(model: Model, size: int, modes: Sequence[str], device: torch.device) -> int:
    """Multiply-accumulates of one image; an exported file says how many.

    Raises:
        UsageError: the model cannot take images of this size, or an exported file what is requested of it.
    """
    if model.exported:
        if device.type != "cpu":
            raise UsageError(f"{model.name} is an exported file, which runs on the CPU: take --device cpu")
        if "training" in modes:
            raise UsageError(f"{model.name} is an exported file, which only infers: leave out --mode training")
        if size != model.image_size and model.exported.card.size is not None:
            raise UsageError(f"{model.name} takes images of {model.image_size} px alone: leave out --image-size")
        return round(model.macs * (size / model.image_size) ** 2)
    try:
        with torch.device("meta"):  # a library may build a model for one image size
            module = create_model(model.name, image_size=size) if model.kind == "library" else model.module
        return cost(module, size).macs
    except ConvNeXtError as error:
        raise UsageError(f"{model.name}: {error}") from error
    except (RuntimeError, AssertionError, ValueError) as error:  # libraries differ in how they refuse
        raise UsageError(f"{model.name} does not take images of {size} px ({reason(error)})") from error


def libraries_of(model: Model, against: Sequence[str], notes: list[str]) -> list[str]:
    """The model's own library, and those of ``against`` that have it as well; the others are noted."""
    own = library_of(model.name) if model.kind in BUILT_BY_NAME else OURS
    found = [own]
    for library in dict.fromkeys(against):
        if model.kind == "architecture" and has_model(library, model.name):
            found.append(library)
        elif library != own:
            notes.append(f"{library} has no model like {model.name}: it is measured without")
    return found


def channels_of(model: Model) -> int:
    """Channels of a model's images."""
    if model.exported:
        return model.exported.card.channels
    return 3 if model.kind in BUILT_BY_NAME else image_channels(model.module)
