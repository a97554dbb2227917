"""`convnext explain`."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from convnext.cli.options import (
    Device,
    ImageNames,
    Json,
    ModelName,
    Top,
    Trust,
    note,
    print_json,
    report_unreadable,
    show,
    warn,
)
from convnext.errors import UsageError

OVER_IMAGES = ("--receptive-field", "--activity", "--similarity")  # modes that average over the images of --data

Mode = tuple[str, list[Any], Callable[[], dict[str, Any]], Callable[..., Any], Callable[..., Any]]


def explain(
    model: ModelName,
    others: ImageNames = (),
    receptive_field: bool = False,
    kernels: bool = False,
    activity: bool = False,
    architecture: bool = False,
    similarity: bool = False,
    out: Path | None = None,
    top: Top = 5,
    label: str | None = None,
    data: str | None = None,
    json: Json = False,
    device: Device = "auto",
    image_size: int | None = None,
    trust: Trust = False,
) -> None:
    """Explain predictions: Grad-CAM and occlusion over each image, beside its most probable classes.

    Images that cannot be read are named at the end, on stderr; the others are drawn, and the exit status is 1. With an
    option, show what is inside a model: the other arguments are models to compare then, and the name of a model without
    weights means initial ones.

    Args:
        receptive_field: how far each stage sees, of one or more models: trained beside untrained.
        kernels: the depthwise kernels of the model.
        activity: dead and saturated channels of each block, of one or more models: trained beside untrained.
        architecture: a drawing of the model, stage by stage with the cost of each; of two models, what differs.
        similarity: how alike the feature maps of two models are, block by block (CKA); of one, trained beside
            untrained.
        out: folder for the figures; None for RUN/explain, or runs/explain-NAME for other models.
        label: the class to explain; None for each image's most probable one.
        data: images that --receptive-field, --activity and --similarity are taken over: a folder or a data set's name;
            None for those that the run held out, or else two photographs.
        image_size: height and width in pixels of the image that --architecture counts for; None for the run's own, or
            else 224.
    """
    modes = {
        "--receptive-field": receptive_field,
        "--kernels": kernels,
        "--activity": activity,
        "--architecture": architecture,
        "--similarity": similarity,
    }
    chosen = [option for option, is_wanted in modes.items() if is_wanted]
    if len(chosen) > 1:
        raise UsageError(f"{' and '.join(chosen)} exclude each other: call once for each")
    option = chosen[0] if chosen else ""
    check_options(option, label, data, image_size, trust)
    from convnext.explanation.found import default_folder

    folder = out or default_folder(model)
    if option:
        show_mode(look_inside(option, (model, *others), data, device, image_size), folder, json)
    elif others:
        show_heat_maps(model, others, folder, top, label, json, device, trust)
    else:
        raise UsageError("no images: name files, folders or patterns, or - for a list on standard input")


def check_options(option: str, label: str | None, data: str | None, image_size: int | None, trust: bool) -> None:
    """Refuse options that the mode does not use."""
    if label is not None and option:
        raise UsageError(f"--label is the class that heat maps explain, and {option} draws none: leave it out")
    if data is not None and option not in OVER_IMAGES:
        raise UsageError(f"--data is for {', '.join(OVER_IMAGES)}: leave it out, or add one of them")
    if image_size is not None and option != "--architecture":
        raise UsageError("--image-size is for --architecture: leave it out, or add that")
    if trust and option:
        raise UsageError(f"--trust is for heat maps, and {option} cannot look into an exported file: leave it out")


def show_heat_maps(
    model: str, images: Sequence[str], folder: Path, top: int, label: str | None, json: bool, device: str, trust: bool
) -> None:
    """Draw heat maps over images."""
    from convnext.console import image_progress
    from convnext.explanation.explanations import explain_each, open_explained
    from convnext.explanation.saliency_figure import FigureNames, draw_explanation
    from convnext.inference.inputs import expand_paths, pillow_warnings
    from convnext.inference.output import percent, printable
    from convnext.plotting import write_figure

    paths = list(expand_paths(images, sys.stdin))
    if not paths:
        raise UsageError("no images: standard input lists none")
    classifier = open_explained(model, device, trust)
    warn(classifier.notes)
    names, entries, unreadable = FigureNames(), [], []
    try:
        with pillow_warnings(), image_progress(model, len(paths)) as progress:
            for explanation in explain_each(classifier, paths, label, top):
                figure = None
                if explanation.error:
                    unreadable.append(printable(f"{explanation.path}: {explanation.error}"))
                else:
                    figure = folder / f"{names.of(explanation.path)}.png"
                    write_figure(draw_explanation(explanation, model), figure)
                    if not json:
                        found = f"{explanation.label} {percent(explanation.probability or 0)}"
                        print(printable(f"{explanation.path}: {found}: {figure}"))
                entries.append(explanation.to_dict() | {"figure": None if figure is None else str(figure)})
                progress(len(entries))
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"Interrupted after {len(entries)} images; their figures are in {folder}") from None
    if json:
        print_json(entries)
    if len(unreadable) < len(entries):
        note(f"Figures, as .png and .svg: {folder}")
    report_unreadable("no figure", unreadable, len(entries))


def look_inside(option: str, names: tuple[str, ...], data: str | None, device: str, image_size: int | None) -> Mode:
    """The file name, the results, and the functions that make their document, table and figure."""
    most = {"--kernels": 1, "--architecture": 2, "--similarity": 2}.get(option, len(names))
    if len(names) > most:
        raise UsageError(f"{option} takes {most} model{'s or one' if most > 1 else ''}, {len(names)} were given")
    if option == "--receptive-field":
        from convnext.explanation.receptive_field import receptive_field, receptive_field_table
        from convnext.explanation.receptive_field_figure import draw_fields

        found = receptive_field(names, data, device)
        return "receptive-field", [found], found.to_dict, receptive_field_table, draw_fields
    if option == "--kernels":
        from convnext.explanation.depthwise_kernels import depthwise_kernels, kernels_table
        from convnext.explanation.depthwise_kernels_figure import draw_kernels

        found = depthwise_kernels(names[0])
        return "kernels", [found], found.to_dict, kernels_table, draw_kernels
    if option == "--activity":
        from convnext.explanation.activity import activity, activity_table
        from convnext.explanation.activity_figure import draw_activity

        found = activity(names, data, device)
        return "activity", [found], found.to_dict, activity_table, draw_activity
    if option == "--similarity":
        from convnext.explanation.similarity import similarity, similarity_table
        from convnext.explanation.similarity_figure import draw_similarity

        found = similarity(*names, data=data, device=device)
        return "similarity", [found], found.to_dict, similarity_table, draw_similarity
    from convnext.explanation.architecture import architecture
    from convnext.explanation.architecture_figure import draw_architecture
    from convnext.explanation.difference import architecture_table, difference_document
    from convnext.inference.model import resolve

    models = [resolve(name, "none") for name in names]
    size = models[0].image_size if image_size is None else image_size
    found = [architecture(model.module, model.name, size) for model in models]
    if len(found) == 1:
        return "architecture", found, found[0].to_dict, architecture_table, draw_architecture
    return "difference", found, lambda: difference_document(*found), architecture_table, draw_architecture


def show_mode(mode: Mode, folder: Path, json: bool) -> None:
    """Write the figure of a result; print its table or its document on stdout, the rest on stderr."""
    from convnext.plotting import write_figure

    file, found, document, table, draw = mode
    for result in found:
        warn(getattr(result, "notes", ()))
    path = folder / f"{file}.png"
    write_figure(draw(*found), path)
    print_json(document() | {"figure": str(path)}) if json else show(table(*found))
    note(f"Figure, as .png and .svg: {path}")
