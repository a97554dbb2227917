"""What a benchmark is asked for, checked before anything is measured."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import get_args

import torch
from torch import nn

from convnext.benchmark.case import CEILING, OURS, Case, Mode, Precision
from convnext.benchmark.peers import check_libraries, has_network, library_of
from convnext.benchmark.pinning import choose_threads, processors_for
from convnext.benchmark.settings import EXPORTED, settings_for
from convnext.device import autocast_for, choose_device, has_bf16
from convnext.errors import ConvNeXtError, UsageError, reason, unknown_name
from convnext.inference.card import Card
from convnext.inference.model import DEFAULT_IMAGE_SIZE, resolve
from convnext.models import create_model
from convnext.models.cost import cost, image_channels
from convnext.weights.names import parse_name


@dataclass(frozen=True)
class Network:
    """What is measured.

    Attributes:
        name: of a network that this package can build, or what an opened one is called.
        model: the opened one; None for one to be built by its name, with random weights.
        image_size: pixels a side that it is made for.
        exported: the card of an exported file; None for a network of torch.
    """

    name: str
    model: nn.Module | None = None
    image_size: int = DEFAULT_IMAGE_SIZE
    exported: Card | None = None


def open_network(name: str, trust: bool = False) -> Network:
    """Open a model to measure by its name; an architecture has random weights, which do not change its speed.

    Args:
        name: as for :func:`convnext.inference.model.resolve`.
        trust: open a ``.pt2`` file that was not exported here, though it can run any code.

    Raises:
        UsageError: there is no such model, or a file may run code and is not trusted.
        RunError: a file is damaged or missing, or weights could not be downloaded.
    """
    parsed = parse_name(name)
    if parsed.kind in ("architecture", "library"):
        return Network(parsed.model)
    model = resolve(name, trust=trust)
    return Network(name, model.module, model.image_size, model.exported.card if model.exported else None)


@dataclass(frozen=True)
class Plan:
    """A benchmark to be run.

    Attributes:
        groups: rows that take turns with each other, each in memory with its process: those of a mode, a batch and a
            precision, with the ceiling's.
        models: the opened networks by name.
        macs: multiply-accumulates of an image, by network.
        notes: what is left out, and why.
        device: where it runs.
        threads: of each process.
        cpus: that each process may run on; none for any.
        rounds: turns of each row, at most.
        seconds: after which a group begins no further round.
        race: whether rows end that another setting of the same network clearly beats.
        least: rounds that every group has, whatever they take.
    """

    groups: list[list[Case]]
    models: dict[str, nn.Module]
    macs: dict[str, int]
    notes: list[str]
    device: torch.device
    threads: int
    cpus: set[int]
    rounds: int
    seconds: float
    race: bool = True
    least: int = 1


def make_plan(
    networks: Sequence[Network],
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
    """Check what is asked for.

    Args:
        networks: what to measure, each under a name of its own.
        against: libraries to compare with.
        modes: inference, training, or both.
        precisions: fp32, bf16 or both; none for all that the device computes in.
        batches: images at a time.
        image_size: pixels a side; the network's own unless given.
        device: ``auto`` or torch's name.
        threads: of each process; one for each core unless given.
        compiled: whether to try what torch.compile makes as well.
        rounds: turns of each row, at most.
        seconds: after which a group of rows begins no further round.
        race: whether rows end that another setting of the same network clearly beats.

    Raises:
        UsageError: a name is unknown, a library is not installed, a number is out of range, or the machine has no
            instructions for a precision.
    """
    check_libraries(against)
    for mode in modes:
        if mode not in get_args(Mode):
            raise unknown_name("mode", mode, get_args(Mode))
    for name, value in [("rounds", rounds), *(("batch", batch) for batch in batches)]:
        if value < 1:
            raise UsageError(f"{name} is {value}, needs 1 or more")
    if not seconds > 0:
        raise UsageError(f"seconds is {seconds:g}, needs more than 0")
    for what, given in (("model", networks), ("mode", modes), ("batch", batches)):
        if not given:
            raise UsageError(f"no {what} is named, needs one or more")
    used, chosen = choose_device(device), choose_threads(threads)
    columns = choose_precisions(precisions, used)
    macs, notes, libraries, sizes = {}, [], {}, {}
    for network in networks:
        sizes[network.name] = size = network.image_size if image_size is None else image_size
        if network.exported:
            macs[network.name] = macs_of_file(network, network.exported, size, modes, used)
        else:
            macs[network.name] = count(network.name, network.model or meta_model(network.name, size), size)
        own = library_of(network.name) if network.model is None else OURS
        libraries[network.name] = [own, *peers_of(network, own, against, notes)]
    channels = {network.name: channels_of(network) for network in networks}
    files = {network.name: network.exported.precision for network in networks if network.exported}
    groups = []
    for mode, batch, precision in product(dict.fromkeys(modes), dict.fromkeys(batches), columns):
        group = [Case("matrix products", CEILING, mode, precision, batch, "eager", device=str(used))]  # pyright: ignore
        for name, library in [(network, library) for network in libraries for library in libraries[network]]:
            if name in files and precision != columns[0]:
                continue  # it has a precision of its own, and is measured once
            settings = [*EXPORTED] if name in files else settings_for(library, mode, compiled)  # pyright: ignore
            own = files.get(name, precision)
            group += [
                Case(name, library, mode, own, batch, setting, sizes[name], channels[name], str(used))  # pyright: ignore
                for setting in settings
            ]
        groups.append(group)
    models = {network.name: network.model for network in networks if network.model is not None}
    cpus = processors_for(chosen)
    return Plan(groups, models, macs, notes, used, chosen, cpus, rounds, seconds, race)


def choose_precisions(names: Sequence[str], device: torch.device) -> list[Precision]:
    """The precisions by name; without names all that the device computes in.

    Raises:
        UsageError: one is unknown, or there are no instructions for it.
    """
    known: tuple[Precision, ...] = get_args(Precision)
    for name in names:
        if name not in known:
            raise unknown_name("precision", name, known)
        autocast_for(name, device)
    if names:
        return [precision for precision in known if precision in names]
    return [precision for precision in known if precision == "fp32" or has_bf16(device)]


def meta_model(name: str, image_size: int) -> nn.Module:
    """A network of this package or a reference, without values."""
    options = {} if library_of(name) == OURS else {"image_size": image_size}
    with torch.device("meta"):
        return create_model(name, **options)


def count(name: str, model: nn.Module, image_size: int) -> int:
    """Multiply-accumulates of one image.

    Raises:
        UsageError: the network cannot take images of this size.
    """
    if image_size < 1:
        raise UsageError(f"image size is {image_size}, needs 1 or more")
    try:
        return cost(model, image_size).macs
    except ConvNeXtError as error:
        raise UsageError(f"{name}: {error}") from error
    except (RuntimeError, AssertionError, ValueError) as error:  # libraries differ in how they refuse
        raise UsageError(f"{name} does not take images of {image_size} px ({reason(error)})") from error


def macs_of_file(network: Network, exported: Card, image_size: int, modes: Sequence[str], device: torch.device) -> int:
    """Multiply-accumulates of one image, by what an exported file says.

    Raises:
        UsageError: it does not train, not take images of this size, or not run on the device.
    """
    if device.type != "cpu":
        raise UsageError(f"{network.name} is an exported file, which runs on the CPU: take --device cpu")
    if "training" in modes:
        raise UsageError(f"{network.name} is an exported file, which only infers: leave out --mode training")
    if image_size != network.image_size and exported.size is not None:
        raise UsageError(f"{network.name} takes images of {network.image_size} px alone: leave out --image-size")
    return round(exported.macs * (image_size / network.image_size) ** 2)


def channels_of(network: Network) -> int:
    """Channels of a network's images."""
    if network.exported:
        return network.exported.channels
    return image_channels(network.model) if network.model else 3


def peers_of(network: Network, own: str, against: Iterable[str], notes: list[str]) -> list[str]:
    """The libraries that have the same network; those that do not are noted."""
    found = []
    for library in dict.fromkeys(against):
        if own == OURS and network.model is None and has_network(library, network.name):
            found.append(library)
        elif library != own:
            notes.append(f"{library} has no network like {network.name}: it is measured without")
    return found
