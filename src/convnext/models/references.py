"""Models to compare with, by their own builders: ``torchvision/NAME`` and ``timm/NAME``, without weights."""

import inspect
import warnings
from collections.abc import Sequence
from typing import Any

from torch import nn

from convnext.errors import UsageError, unknown_name

OPTIONS = {
    "torchvision": ("num_classes", "image_size"),
    "timm": ("num_classes", "image_size", "in_chans", "drop_path_rate", "output_stride"),
}


def is_reference(name: str) -> bool:
    """True if ``name`` is of the form ``torchvision/NAME`` or ``timm/NAME``."""
    return name.partition("/")[0] in OPTIONS


def list_references(library: str) -> list[str]:
    """The names of a library's image classifiers, with the library in front."""
    if library == "timm":
        import timm

        return [f"timm/{name}" for name in timm.list_models()]
    import torchvision

    return [f"torchvision/{name}" for name in torchvision.models.list_models(module=torchvision.models)]


def create_reference(
    name: str, *, features_only: bool = False, out_indices: Sequence[int] | int | None = None, **options: Any
) -> nn.Module:
    """Build a reference model with random weights.

    Args:
        name: ``torchvision/NAME`` or ``timm/NAME``.
        features_only: build a backbone, as timm does it; timm only.
        out_indices: its feature maps; None for the library's own choice.
        options: ``num_classes`` (0 for features: timm only); ``image_size``, which only models that are built for one
            size take notice of; for timm also ``in_chans``, ``drop_path_rate`` and ``output_stride``.

    Returns:
        The library's own module: logits or feature maps for images.

    Raises:
        UsageError: the name is unknown, or this model has no such option.
    """
    library, _, model = name.partition("/")
    known = list_references(library)
    if name not in known:
        raise unknown_name("reference", name, known)
    for option in options:
        if option not in OPTIONS[library]:
            raise UsageError(f"{name} takes no option {option!r}: choose among {', '.join(OPTIONS[library])}")
    if features_only and library != "timm":
        raise UsageError(
            f"{name} takes no features_only: take timm/NAME or a model of this package, or "
            "torchvision.models.feature_extraction.create_feature_extractor"
        )
    asked = dict(options)
    if features_only:
        options |= {"features_only": True} | ({} if out_indices is None else {"out_indices": out_indices})
    image_size = options.pop("image_size", None)
    create = create_timm if library == "timm" else create_torchvision
    try:
        return create(model, image_size, options)
    except (
        TypeError,
        ValueError,
        AssertionError,
        IndexError,
        NotImplementedError,
    ) as error:  # the builders differ in what they take
        given = ", ".join(f"{option}={value}" for option, value in asked.items())
        raise UsageError(f"{name} cannot be built with {given}: {error or type(error).__name__}") from error


def create_timm(model: str, image_size: int | None, arguments: dict[str, Any]) -> nn.Module:
    """Build a model of timm."""
    import timm

    published = timm.get_pretrained_cfg(model)
    if image_size is not None and published is not None and published.fixed_input_size:
        arguments["img_size"] = image_size
    return timm.create_model(model, **arguments)


def create_torchvision(model: str, image_size: int | None, arguments: dict[str, Any]) -> nn.Module:
    """Build a model of torchvision."""
    import torchvision

    if arguments.get("num_classes") == 0:
        raise ValueError("it has no variant without a classifier; timm's models have")

    builder = torchvision.models.get_model_builder(model)
    constructor = inspect.signature(inspect.signature(builder).return_annotation.__init__).parameters
    if image_size is not None and "image_size" in constructor:
        arguments["image_size"] = image_size
    if "aux_logits" in constructor:
        arguments["aux_logits"] = False  # classifiers that only training uses are no part of the comparison
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The default weight initialization", category=FutureWarning)
        return builder(weights=None, **arguments)
