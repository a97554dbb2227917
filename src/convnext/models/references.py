"""Networks to compare with, by their own builders: ``torchvision/NAME`` and ``timm/NAME``, without weights."""

import inspect
import warnings
from typing import Any

from torch import nn

from convnext.errors import UsageError, unknown_name

LIBRARIES = ("torchvision", "timm")
TORCHVISION_OPTIONS = ("num_classes", "image_size")
TIMM_OPTIONS = ("num_classes", "image_size", "in_chans", "drop_path_rate")


def is_reference(name: str) -> bool:
    """Whether ``name`` is of the form ``torchvision/NAME`` or ``timm/NAME``."""
    return name.partition("/")[0] in LIBRARIES


def list_references(library: str) -> list[str]:
    """The names of a library's image classifiers, with the library in front."""
    if library == "timm":
        import timm

        return [f"timm/{name}" for name in timm.list_models()]
    import torchvision

    return [f"torchvision/{name}" for name in torchvision.models.list_models(module=torchvision.models)]


def create_reference(name: str, **options: Any) -> nn.Module:
    """Build a reference network with random weights.

    Args:
        name: ``torchvision/NAME`` or ``timm/NAME``.
        options: ``num_classes`` (0 for features: timm only); ``image_size``, which only networks that are built for one
            size take notice of; for timm also ``in_chans`` and ``drop_path_rate``.

    Returns:
        The library's own module: logits for images, but no ``forward_features`` in this package's sense.

    Raises:
        UsageError: the name is unknown, or this network has no such option.
    """
    library, _, network = name.partition("/")
    known = list_references(library)
    if name not in known:
        raise unknown_name("reference", name, known)
    allowed = TIMM_OPTIONS if library == "timm" else TORCHVISION_OPTIONS
    for option in options:
        if option not in allowed:
            raise UsageError(f"{name} takes no option {option!r}: choose among {', '.join(allowed)}")
    image_size = options.pop("image_size", None)
    create = create_timm if library == "timm" else create_torchvision
    try:
        return create(network, image_size, options)
    except (TypeError, ValueError, AssertionError) as error:  # the builders differ in what they take
        asked = ", ".join(f"{option}={value}" for option, value in (options | {"image_size": image_size}).items())
        raise UsageError(f"{name} cannot be built with {asked}: {error or type(error).__name__}") from error


def create_timm(network: str, image_size: int | None, arguments: dict[str, Any]) -> nn.Module:
    """A network by timm's builder."""
    import timm

    published = timm.get_pretrained_cfg(network)
    if image_size is not None and published is not None and published.fixed_input_size:
        arguments["img_size"] = image_size
    return timm.create_model(network, **arguments)


def create_torchvision(network: str, image_size: int | None, arguments: dict[str, Any]) -> nn.Module:
    """A network by torchvision's builder."""
    import torchvision

    if arguments.get("num_classes") == 0:
        raise ValueError("it has no form without a classifier; timm's networks have")

    builder = torchvision.models.get_model_builder(network)
    constructor = inspect.signature(inspect.signature(builder).return_annotation.__init__).parameters
    if image_size is not None and "image_size" in constructor:
        arguments["image_size"] = image_size
    if "aux_logits" in constructor:
        arguments["aux_logits"] = False  # classifiers that only training uses are no part of the comparison
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The default weight initialization", category=FutureWarning)
        return builder(weights=None, **arguments)
