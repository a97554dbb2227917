"""The ``config.json`` that timm keeps beside a network's weights: architecture, classes and preprocessing."""

from typing import Any

from convnext.data.preprocessing import Preprocessing
from convnext.errors import UsageError
from convnext.weights.architecture import Architecture

CONV_MLP = {"atto", "femto", "pico", "nano"}  # sizes that timm builds with 1x1 convolutions in place of linear layers


def has_conv_mlp(architecture: Architecture) -> bool:
    """Whether timm builds a network with 1x1 convolutions in place of linear layers."""
    return (architecture.variant or "").partition("_")[2] in CONV_MLP


def write(architecture: Architecture, classes: tuple[str, ...] | None, preprocessing: Preprocessing) -> dict[str, Any]:
    """The document, from which ``timm.create_model("local-dir:FOLDER", pretrained=True)`` builds the network.

    Raises:
        UsageError: timm has no form for this network.
    """
    size = [architecture.in_channels, preprocessing.image_size, preprocessing.image_size]
    channels = range(architecture.in_channels)
    document: dict[str, Any] = {
        "architecture": timm_name(architecture),
        "num_classes": architecture.num_classes,
        "num_features": architecture.width * 8,
        "model_args": model_args(architecture),
        "pretrained_cfg": {
            "custom_load": False,
            "input_size": size,
            "fixed_input_size": False,
            "interpolation": preprocessing.interpolation,
            "crop_pct": preprocessing.crop_pct,
            "crop_mode": preprocessing.crop_mode,
            "mean": [preprocessing.mean[i % preprocessing.channels] for i in channels],
            "std": [preprocessing.std[i % preprocessing.channels] for i in channels],
            "num_classes": architecture.num_classes,
            "pool_size": [7, 7],
            "first_conv": "stem.0",
            "classifier": "head.fc",
        },
    }
    if classes:
        document["label_names"] = list(classes)
    return document


def timm_name(architecture: Architecture) -> str:
    """What timm calls a network: the name here, and for sizes without one the nearest, changed by arguments."""
    return architecture.variant or ("convnextv2_tiny" if architecture.grn else "convnext_tiny")


def model_args(architecture: Architecture) -> dict[str, Any]:
    """The arguments of timm's builder that differ from the named network's own.

    Raises:
        UsageError: timm has no form for this network.
    """
    if architecture.is_isotropic:
        raise UsageError("timm has no isotropic ConvNeXt: official is the only layout that has")
    arguments: dict[str, Any] = {}
    if architecture.variant is None:
        widths = [architecture.width * 2**i for i in range(4)]
        arguments |= {"depths": list(architecture.depths), "dims": widths, "norm_eps": architecture.norm_eps}
    if architecture.in_channels != 3:
        arguments["in_chans"] = architecture.in_channels
    if architecture.kernel_size != 7:
        arguments["kernel_sizes"] = architecture.kernel_size
    if architecture.stem_stride != 4:
        stride = architecture.stem_stride  # behind a finer stem, timm's first stage strides as well
        raise UsageError(f"timm has no stem of stride {stride}: official is the only layout that has")
    if architecture.layer_scale == architecture.grn:  # V1 has it and V2 has not, unless told otherwise
        arguments["ls_init_value"] = 1e-6 if architecture.layer_scale else None
    return arguments


def read(document: dict[str, Any]) -> tuple[Any, Preprocessing | None]:
    """Class names, or None, and the preprocessing; None where images have channels that no picture has.

    Raises:
        UsageError: the preprocessing is one that this package has not.
        KeyError: a field is missing.
    """
    options = document.get("pretrained_cfg", document)
    names = document.get("label_names") or options.get("label_names")
    channels, height, width = options.get("input_size", (3, 224, 224))
    if channels not in (1, 3):
        return names, None
    if height != width:
        raise UsageError(f"images of {width} x {height} pixels: this package takes squares")
    known = ("crop_mode", "interpolation", "mean", "std")
    given = {name: options[name] for name in known if options.get(name) is not None}
    return names, Preprocessing(height, options.get("crop_pct") or 0.875, **given)
