"""The classes of a network and those of some data: matched by name, whatever their order."""

from collections.abc import Mapping, Sequence

from convnext.data.held_out import HeldOut
from convnext.errors import UsageError

LISTED = 10  # names in a message


def match_classes(
    data: HeldOut, classes: Sequence[str], network: str, aliases: Mapping[str, int] | None = None
) -> HeldOut:
    """The data with its labels as the network's, matched by the names of the classes.

    Args:
        data: the images.
        classes: the network's classes.
        network: what to call the network in messages.
        aliases: other names of its classes.

    Returns:
        The data with the network's classes; with a note where it has images of some of them only.

    Raises:
        UsageError: the data has images of classes that the network does not know.
    """
    places = {**(aliases or {}), **{name: label for label, name in enumerate(classes)}}
    present = data.filled()
    unknown = [name for name in present if name not in places]
    reached = {places[name] for name in present if name in places}
    absent = [name for label, name in enumerate(classes) if label not in reached]
    if unknown:
        known = f"of its own {len(classes)} classes, the data lacks {listed(absent)}"
        raise UsageError(
            f"{data.name} has {counted(unknown)} that {network} does not know: {listed(unknown)}; "
            f"{known if absent else 'all of its own are there'}. Give the folders the network's names of the classes, "
            "or leave the others out"
        )
    matched = data.with_classes(places, tuple(classes))
    if not absent:
        return matched
    note = f"{data.name} has images of {len(reached)} of the {len(classes)} classes; none of {listed(absent)}"
    return matched.with_notes(note)


def counted(names: Sequence[str]) -> str:
    """How many classes there are."""
    return "a class" if len(names) == 1 else f"{len(names)} classes"


def listed(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more
