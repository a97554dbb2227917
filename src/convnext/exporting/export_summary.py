"""An export for a reader: what was written, and how it compares, in a few lines."""

from convnext.exporting.export_job import Exported
from convnext.quantities import duration, per_second


def summary(exported: Exported) -> list[str]:
    """The lines."""
    card, checked = exported.card, exported.checked
    found = f"largest difference {checked.difference:.2g} of the largest output"
    if checked.agreement is not None:
        found += f", first class the same on {100 * checked.agreement:.1f} %"
    rates = per_second(checked.images_per_second), per_second(checked.original_images_per_second)
    return [
        f"{card.model} as {card.format}, {card.precision}: {', '.join(map(str, exported.files))} "
        f"({exported.bytes / 1e6:.1f} MB, {duration(exported.seconds)})",
        f"In: {card.input}",
        f"Out: {card.output}",
        f"On {checked.images} {exported.on}: {found}",
        f"{rates[0]} images/s, the network itself {rates[1]}: {checked.times_as_fast:.2f} times as fast",
    ]
