"""`convnext explain`."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from tyro.conf import Positional

from convnext.cli.options import note, print_json
from convnext.errors import RunError, UsageError

if TYPE_CHECKING:
    from convnext.explanation.found import Found

OVER_IMAGES = ("--receptive-field", "--activity", "--similarity")  # what averages over the images of --data


@dataclass(frozen=True)
class Asked:
    """The words of one call."""

    run: str
    others: tuple[str, ...]
    out: Path | None
    top: int
    label: str | None
    data: str | None
    json: bool
    device: str
    image_size: int | None
    trust: bool

    @property
    def names(self) -> tuple[str, ...]:
        """All the networks, where the other words are networks as well."""
        return (self.run, *self.others)


def explain(
    run: Positional[str],
    others: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="IMAGE...")] = (),
    receptive_field: bool = False,
    kernels: bool = False,
    activity: bool = False,
    architecture: bool = False,
    similarity: bool = False,
    out: Path | None = None,
    top: int = 5,
    label: str | None = None,
    data: str | None = None,
    json: bool = False,
    device: str = "auto",
    image_size: int | None = None,
    trust: bool = False,
) -> None:
    """Show what a network looks at in pictures: Grad-CAM and occlusion over each, beside its most probable classes.

    What cannot be read is named at the end, on stderr; the rest is drawn, and the exit status is 1. Or, with an option,
    show what is inside: then the other words are networks to compare.

    Args:
        run: a run's folder; a weights file or folder of any layout; VARIANT.TAG for the authors' published weights;
            or the name of a network, such as roadmap_micro/kernel_7, which is untrained.
        others: images: files, folders, patterns in quotes, or - for a list on standard input.
        receptive_field: how far each stage sees, of one or more networks: trained beside untrained.
        kernels: the depthwise kernels of the network.
        activity: dead and saturated channels of each block, of one or more networks: trained beside untrained.
        architecture: a drawing of the network, part by part with what each costs; of two networks, what differs.
        similarity: how alike the feature maps of two networks are, block by block (CKA); of one, trained beside
            untrained.
        out: folder for the figures; None for RUN/explain, or runs/explain-NAME where RUN is no run's folder.
        top: classes to name for each image.
        label: the class to explain; None for each image's most probable one.
        data: images that --receptive-field, --activity and --similarity are taken over: a folder or a data set's name;
            None for those that the run held out, or else two photographs.
        json: print one JSON document on stdout.
        device: auto (a GPU where there is one), cpu, cuda, mps or xpu.
        image_size: pixels a side of the image that --architecture counts for; None for the run's own, or else 224.
        trust: open a .pt2 file that was not exported here as well, though it can run any code.
    """
    kinds: dict[str, tuple[bool, Callable[[Asked], None]]] = {
        "--receptive-field": (receptive_field, show_receptive_field),
        "--kernels": (kernels, show_kernels),
        "--activity": (activity, show_activity),
        "--architecture": (architecture, show_architecture),
        "--similarity": (similarity, show_similarity),
    }
    asked = Asked(run, others, out, top, label, data, json, device, image_size, trust)
    chosen = [(option, show) for option, (wanted, show) in kinds.items() if wanted]
    if len(chosen) > 1:
        raise UsageError(
            f"{' and '.join(option for option, _ in chosen)} are two things to look at: call once for each"
        )
    option, show = chosen[0] if chosen else ("", show_maps)
    if label is not None and option:
        raise UsageError(f"--label is the class that maps over pictures explain, and {option} draws none: leave it out")
    if data is not None and option not in OVER_IMAGES:
        raise UsageError(f"--data is for {', '.join(OVER_IMAGES)}: leave it out, or add one of them")
    if image_size is not None and option != "--architecture":
        raise UsageError("--image-size is for --architecture: leave it out, or add that")
    if trust and option:
        raise UsageError(f"--trust is for maps over pictures, and {option} looks into no exported file: leave it out")
    show(asked)


def show_maps(asked: Asked) -> None:
    """Maps over pictures."""
    if not asked.others:
        raise UsageError("no images: name files, folders or patterns, or - for a list on standard input")
    from convnext.console import console_on, image_progress, say_warnings
    from convnext.explanation.explanations import explain_each, open_explained
    from convnext.explanation.found import default_folder
    from convnext.explanation.saliency_figure import FigureNames, draw_explanation
    from convnext.inference.inputs import pillow_warnings
    from convnext.inference.output import named_images, percent, printable
    from convnext.plotting import write_figure

    paths = list(named_images(asked.others, sys.stdin))
    if not paths:
        raise UsageError("no images: standard input lists none")
    classifier = open_explained(asked.run, asked.device, asked.trust)
    say_warnings(classifier.notes, console_on(sys.stderr))
    folder, names = asked.out or default_folder(asked.run), FigureNames()
    entries, unreadable = [], []
    try:
        with pillow_warnings(), image_progress(asked.run, len(paths)) as show:
            for explanation in explain_each(classifier, paths, asked.label, asked.top):
                figure = None
                if explanation.error:
                    unreadable.append(printable(f"{explanation.path}: {explanation.error}"))
                else:
                    figure = folder / f"{names.of(explanation.path)}.png"
                    write_figure(draw_explanation(explanation, asked.run), figure)
                    if not asked.json:
                        found = f"{explanation.label} {percent(explanation.probability or 0)}"
                        print(printable(f"{explanation.path}: {found}: {figure}"))
                entries.append(explanation.to_dict() | {"figure": None if figure is None else str(figure)})
                show(len(entries))
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"Interrupted after {len(entries)} images; their figures are in {folder}") from None
    if asked.json:
        print_json(entries)
    if len(unreadable) < len(entries):
        note(f"Figures, as .png and .svg: {folder}")
    say_warnings((f"no figure for {error}" for error in unreadable), console_on(sys.stderr))
    if unreadable:
        raise RunError(f"{len(unreadable):,} of {len(entries):,} images could not be read, they are named above")


def show_receptive_field(asked: Asked) -> None:
    """Effective receptive fields."""
    from convnext.explanation.receptive_field import receptive_field

    show_found(receptive_field(asked.names, asked.data, asked.device), asked)


def show_kernels(asked: Asked) -> None:
    """Depthwise kernels."""
    from convnext.explanation.depthwise_kernels import depthwise_kernels

    if asked.others:
        raise UsageError(f"--kernels shows one network, {len(asked.names)} were named: call once for each")
    show_found(depthwise_kernels(asked.run), asked)


def show_activity(asked: Asked) -> None:
    """Channel activity."""
    from convnext.explanation.activity import activity

    show_found(activity(asked.names, asked.data, asked.device), asked)


def show_architecture(asked: Asked) -> None:
    """The drawing of one network, or of two with what differs."""
    one_or_two(asked, "--architecture")
    from convnext.explanation.architecture import architecture
    from convnext.explanation.difference import difference_of

    if asked.others:
        show_found(difference_of(asked.run, asked.others[0], asked.image_size), asked)
    else:
        show_found(architecture(asked.run, asked.image_size), asked)


def show_similarity(asked: Asked) -> None:
    """The similarity of two networks' feature maps."""
    one_or_two(asked, "--similarity")
    from convnext.explanation.similarity import similarity

    show_found(similarity(*asked.names, data=asked.data, device=asked.device), asked)


def one_or_two(asked: Asked, option: str) -> None:
    """Refuse more networks than can be put beside each other."""
    if len(asked.names) > 2:
        raise UsageError(f"{option} is for one network or two, {len(asked.names)} were named")


def show_found(found: "Found", asked: Asked) -> None:
    """The figure in its folder, the table or the document on stdout, the rest on stderr."""
    from convnext.console import console_on, say_warnings
    from convnext.explanation.found import default_folder
    from convnext.plotting import write_figure

    say_warnings(found.notes, console_on(sys.stderr))
    path = (asked.out or default_folder(asked.run)) / f"{found.file}.png"
    write_figure(found.draw(), path)
    if asked.json:
        print_json(found.to_dict() | {"figure": str(path)})
    else:
        console_on(sys.stdout).print(found.table())
    note(f"Figure, as .png and .svg: {path}")
