"""Networks to compare with, by their own builders: ``torchvision/NAME`` and ``timm/NAME``, without weights."""

import inspect
import warnings
from typing import Any

from torch import nn

from convnext.errors import UsageError, unknown_name

LIBRARIES = ("torchvision", "timm")
TORCHVISION_OPTIONS = ("num_classes", "image_size")
TIMM_OPTIONS = {"num_classes": "num_classes", "in_channels": "in_chans", "drop_path": "drop_path_rate"}


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
        options: ``num_classes``; ``image_size``, which only networks that are built for one size take notice of; for
            timm also ``in_channels`` and ``drop_path``.

    Raises:
        UsageError: the name is unknown, or this network has no such option.
    """
    library, _, network = name.partition("/")
    known = list_references(library)
    if name not in known:
        raise unknown_name("reference", name, known)
    allowed = ("image_size", *TIMM_OPTIONS) if library == "timm" else TORCHVISION_OPTIONS
    for option in options:
        if option not in allowed:
            raise UsageError(f"{name} takes no option {option}: choose among {', '.join(allowed)}")
    image_size = options.pop("image_size", None)
    return create_timm(network, image_size, options) if library == "timm" else create_tv(network, image_size, options)


def create_timm(network: str, image_size: int | None, options: dict[str, Any]) -> nn.Module:
    import timm

    arguments = {TIMM_OPTIONS[option]: value for option, value in options.items()}
    published = timm.get_pretrained_cfg(network)
    if image_size is not None and published is not None and published.fixed_input_size:
        arguments["img_size"] = image_size
    try:
        return timm.create_model(network, **arguments)
    except TypeError as error:  # timm's constructors differ in what they take
        raise UsageError(f"timm/{network} cannot be built with {', '.join(arguments)}: {error}") from error


def create_tv(network: str, image_size: int | None, arguments: dict[str, Any]) -> nn.Module:
    import torchvision

    builder = torchvision.models.get_model_builder(network)
    constructor = inspect.signature(inspect.signature(builder).return_annotation.__init__).parameters
    if image_size is not None and "image_size" in constructor:
        arguments["image_size"] = image_size
    if "aux_logits" in constructor:
        arguments["aux_logits"] = False  # classifiers that only training uses are no part of the comparison
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The default weight initialization", category=FutureWarning)
        return builder(weights=None, **arguments)
