"""`convnext explain`."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from tyro.conf import Positional

from convnext.cli.options import note, print_json
from convnext.errors import RunError, UsageError

OVER_IMAGES = ("--receptive-field", "--activity", "--similarity")  # what averages over the images of --data


@dataclass(frozen=True)
class Request:
    """The arguments of one call."""

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
        """The models, in modes that take several."""
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
    modes: dict[str, tuple[bool, Callable[[Request], None]]] = {
        "--receptive-field": (receptive_field, show_receptive_field),
        "--kernels": (kernels, show_kernels),
        "--activity": (activity, show_activity),
        "--architecture": (architecture, show_architecture),
        "--similarity": (similarity, show_similarity),
    }
    request = Request(run, others, out, top, label, data, json, device, image_size, trust)
    chosen = [(option, show) for option, (wanted, show) in modes.items() if wanted]
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
    show(request)


def show_maps(request: Request) -> None:
    """Maps over pictures."""
    if not request.others:
        raise UsageError("no images: name files, folders or patterns, or - for a list on standard input")
    from convnext.console import console_on, image_progress, say_warnings
    from convnext.explanation.explanations import explain_each, open_explained
    from convnext.explanation.found import default_folder
    from convnext.explanation.saliency_figure import FigureNames, draw_explanation
    from convnext.inference.inputs import expand_paths, pillow_warnings
    from convnext.inference.output import percent, printable
    from convnext.plotting import write_figure

    paths = list(expand_paths(request.others, sys.stdin))
    if not paths:
        raise UsageError("no images: standard input lists none")
    classifier = open_explained(request.run, request.device, request.trust)
    say_warnings(classifier.notes, console_on(sys.stderr))
    folder, names = request.out or default_folder(request.run), FigureNames()
    entries, unreadable = [], []
    try:
        with pillow_warnings(), image_progress(request.run, len(paths)) as show:
            for explanation in explain_each(classifier, paths, request.label, request.top):
                figure = None
                if explanation.error:
                    unreadable.append(printable(f"{explanation.path}: {explanation.error}"))
                else:
                    figure = folder / f"{names.of(explanation.path)}.png"
                    write_figure(draw_explanation(explanation, request.run), figure)
                    if not request.json:
                        found = f"{explanation.label} {percent(explanation.probability or 0)}"
                        print(printable(f"{explanation.path}: {found}: {figure}"))
                entries.append(explanation.to_dict() | {"figure": None if figure is None else str(figure)})
                show(len(entries))
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"Interrupted after {len(entries)} images; their figures are in {folder}") from None
    if request.json:
        print_json(entries)
    if len(unreadable) < len(entries):
        note(f"Figures, as .png and .svg: {folder}")
    say_warnings((f"no figure for {error}" for error in unreadable), console_on(sys.stderr))
    if unreadable:
        raise RunError(f"{len(unreadable):,} of {len(entries):,} images could not be read, they are named above")


def show_receptive_field(request: Request) -> None:
    """Effective receptive fields."""
    from convnext.explanation.receptive_field import receptive_field, receptive_field_table
    from convnext.explanation.receptive_field_figure import draw_fields

    found = receptive_field(request.names, request.data, request.device)
    show(request, "receptive-field", found.to_dict, receptive_field_table, draw_fields, found)


def show_kernels(request: Request) -> None:
    """Depthwise kernels."""
    from convnext.explanation.depthwise_kernels import depthwise_kernels, kernels_table
    from convnext.explanation.depthwise_kernels_figure import draw_kernels

    if request.others:
        raise UsageError(f"--kernels takes one model, {len(request.names)} were given: call once for each")
    found = depthwise_kernels(request.run)
    show(request, "kernels", found.to_dict, kernels_table, draw_kernels, found)


def show_activity(request: Request) -> None:
    """Channel activity."""
    from convnext.explanation.activity import activity, activity_table
    from convnext.explanation.activity_figure import draw_activity

    found = activity(request.names, request.data, request.device)
    show(request, "activity", found.to_dict, activity_table, draw_activity, found)


def show_architecture(request: Request) -> None:
    """The drawing of one model, or of two with what differs."""
    from convnext.explanation.architecture import architecture
    from convnext.explanation.architecture_figure import draw_architecture
    from convnext.explanation.difference import architecture_table, difference_document
    from convnext.inference.model import resolve

    check_number(request, "--architecture")
    opened = [resolve(name, "none") for name in request.names]
    size = opened[0].image_size if request.image_size is None else request.image_size
    models = [architecture(model.module, model.name, size) for model in opened]
    name = "architecture" if len(models) == 1 else "difference"
    document = models[0].to_dict if len(models) == 1 else lambda: difference_document(*models)
    show(request, name, document, architecture_table, draw_architecture, *models)


def show_similarity(request: Request) -> None:
    """The similarity of the feature maps of two models."""
    from convnext.explanation.similarity import similarity, similarity_table
    from convnext.explanation.similarity_figure import draw_similarity

    check_number(request, "--similarity")
    found = similarity(*request.names, data=request.data, device=request.device)
    show(request, "similarity", found.to_dict, similarity_table, draw_similarity, found)


def check_number(request: Request, option: str) -> None:
    """Refuse more models than can be compared."""
    if len(request.names) > 2:
        raise UsageError(f"{option} takes one model or two, {len(request.names)} were given")


def show(
    request: Request,
    file: str,
    document: Callable[[], dict[str, Any]],
    table: Callable[..., Any],
    draw: Callable[..., Any],
    *found: Any,
) -> None:
    """Write the figure of a result; print its table or its document on stdout, the rest on stderr."""
    from convnext.console import console_on, say_warnings
    from convnext.explanation.found import default_folder
    from convnext.plotting import write_figure

    for result in found:
        say_warnings(getattr(result, "notes", ()), console_on(sys.stderr))
    path = (request.out or default_folder(request.run)) / f"{file}.png"
    write_figure(draw(*found), path)
    if request.json:
        print_json(document() | {"figure": str(path)})
    else:
        console_on(sys.stdout).print(table(*found))
    note(f"Figure, as .png and .svg: {path}")
