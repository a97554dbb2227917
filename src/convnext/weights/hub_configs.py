"""The JSON files that timm and transformers keep beside weights: ``config.json`` and ``preprocessor_config.json``."""

from typing import Any, cast

from PIL import Image

from convnext.data.preprocessing import EVAL_CROP, SQUASH_FROM, Interpolation, Preprocessing
from convnext.errors import UsageError
from convnext.weights.shapes import Architecture

PLACEHOLDER = "LABEL_"  # transformers' names of unnamed classes


def check_supported(architecture: Architecture, layout: str) -> None:
    """Refuse models that the library of a layout cannot build.

    Raises:
        UsageError: the message names the features that it lacks.
    """
    it, stride = architecture, architecture.stem_stride
    is_staged = not it.is_isotropic
    unsupported = {
        "official": {},
        "timm": {f"stems of stride {stride}": is_staged and stride != 4},  # after a finer one, stage 1 strides as well
        "torchvision": {
            "V2": it.grn,
            "V1 without layer scale": not it.layer_scale and not it.grn,
            f"kernel size {it.kernel_size}": it.kernel_size != 7,
            f"stems of stride {stride}": is_staged and stride != 4,
            f"images of {it.in_channels} channels": it.in_channels != 3,
            "models without a classifier": it.num_classes == 0,
        },
        "transformers": {
            f"kernel size {it.kernel_size}": it.kernel_size != 7,
            "stems of stride 1": stride == 1,
            "V2 with layer scale": it.grn and it.layer_scale,
            f"norms with eps {it.norm_eps:g}": it.norm_eps != 1e-6,
        },
    }[layout]
    if layout != "official":
        unsupported = {"isotropic ConvNeXt": it.is_isotropic} | unsupported
    if found := [feature for feature, is_needed in unsupported.items() if is_needed]:
        raise UsageError(f"{layout} has no {' and no '.join(found)}: convert to official")


def timm_builder(architecture: Architecture) -> tuple[str, dict[str, Any]]:
    """The name of a model in timm, and its builder's arguments that differ from that name's own.

    A size without a name is the nearest named model, changed by arguments.
    """
    arguments: dict[str, Any] = {}
    if architecture.variant is None:
        sizes = {name: list(value) for name, value in architecture.size.items()}
        arguments |= {**sizes, "norm_eps": architecture.norm_eps}
    if architecture.in_channels != 3:
        arguments["in_chans"] = architecture.in_channels
    if architecture.kernel_size != 7:
        arguments["kernel_sizes"] = architecture.kernel_size
    if architecture.layer_scale == architecture.grn:  # by default V1 has layer scale and V2 has not
        arguments["ls_init_value"] = 1e-6 if architecture.layer_scale else None
    return architecture.variant or ("convnextv2_tiny" if architecture.grn else "convnext_tiny"), arguments


def timm_config(
    architecture: Architecture, classes: tuple[str, ...] | None, preprocessing: Preprocessing
) -> dict[str, Any]:
    """The ``config.json`` from which ``timm.create_model("local-dir:FOLDER", pretrained=True)`` builds the model."""
    name, arguments = timm_builder(architecture)
    channels = range(architecture.in_channels)
    document: dict[str, Any] = {
        "architecture": name,
        "num_classes": architecture.num_classes,
        "num_features": architecture.dims[-1],
        "model_args": arguments,
        "pretrained_cfg": {
            "custom_load": False,
            "input_size": [architecture.in_channels, preprocessing.image_size, preprocessing.image_size],
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
    return document | ({"label_names": list(classes)} if classes else {})


def read_timm_config(document: dict[str, Any]) -> tuple[Any, Preprocessing | None]:
    """Class names, or None, and the preprocessing; None for images of other than 1 or 3 channels.

    Raises:
        UsageError: the preprocessing is one that this package does not have.
        LookupError, TypeError, ValueError: the document is not timm's.
    """
    options = document.get("pretrained_cfg", document)
    names = document.get("label_names") or options.get("label_names")
    channels, height, width = options.get("input_size", (3, 224, 224))
    if channels not in (1, 3):
        return names, None
    known = ("crop_mode", "interpolation", "mean", "std")
    given = {name: options[name] for name in known if options.get(name) is not None}
    return names, Preprocessing(square((height, width)), options.get("crop_pct") or 0.875, **given)


def transformers_config(
    architecture: Architecture, classes: tuple[str, ...] | None, image_size: int, norm_eps: float
) -> dict[str, Any]:
    """The ``config.json`` from which ``AutoModelForImageClassification.from_pretrained(FOLDER)`` builds the model."""
    kind = "ConvNextV2" if architecture.grn else "ConvNext"
    document: dict[str, Any] = {
        "architectures": [kind + ("ForImageClassification" if architecture.num_classes else "Model")],
        "model_type": kind.lower(),
        "num_channels": architecture.in_channels,
        "patch_size": architecture.stem_stride,
        "num_stages": 4,
        "hidden_sizes": list(architecture.size["dims"]),
        "depths": list(architecture.depths),
        "hidden_act": "gelu",
        "initializer_range": 0.02,
        "layer_norm_eps": norm_eps,
        "drop_path_rate": 0.0,
        "image_size": image_size,
    }
    if not architecture.grn:
        document["layer_scale_init_value"] = 1e-6 if architecture.layer_scale else 0.0
    if architecture.num_classes:
        names = classes or [f"{PLACEHOLDER}{label}" for label in range(architecture.num_classes)]
        document["id2label"] = {str(label): name for label, name in enumerate(names)}
        document["label2id"] = {name: label for label, name in enumerate(names)}
    return document


def transformers_preprocessor(preprocessing: Preprocessing) -> dict[str, Any]:
    """The ``preprocessor_config.json`` for transformers' image processors.

    That of ConvNeXt crops below 384 pixels and squashes from there on; for the rest, processors of other models do.

    Raises:
        UsageError: none of them does it.
    """
    size = preprocessing.image_size
    is_squashed = preprocessing.crop_mode == "squash"
    if preprocessing.crop_mode == "border" or (is_squashed and preprocessing.resize_size != size):
        how = "border" if preprocessing.crop_mode == "border" else "squash with a crop"
        raise UsageError(f"transformers has no crop mode {how}: convert to timm")
    common = {
        "do_resize": True,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(preprocessing.mean),
        "image_std": list(preprocessing.std),
        "resample": int(Image.Resampling[preprocessing.interpolation.upper()]),
    }
    if is_squashed == (size >= SQUASH_FROM):
        own = {"size": {"shortest_edge": size}, "crop_pct": preprocessing.crop_pct}
        return {"image_processor_type": "ConvNextImageProcessor", **own, **common}
    if is_squashed:
        return {"image_processor_type": "ViTImageProcessor", "size": {"height": size, "width": size}, **common}
    crop = {"do_center_crop": True, "crop_size": {"height": size, "width": size}}
    resize = {"size": {"shortest_edge": preprocessing.resize_size}}
    return {"image_processor_type": "BitImageProcessor", **resize, **crop, **common}


def read_transformers_config(document: dict[str, Any]) -> tuple[Any, Any]:
    """Class names and the epsilon of the final norm; each None if the document has none.

    Raises:
        LookupError, TypeError, ValueError: the document is not transformers'.
    """
    named, classes = document.get("id2label"), None
    if named and not all(str(name).startswith(PLACEHOLDER) for name in named.values()):
        labels = sorted(named, key=int)
        if [int(label) for label in labels] != list(range(len(labels))):
            raise UsageError("id2label does not number the classes from 0 on")
        classes = [named[label] for label in labels]
    return classes, document.get("layer_norm_eps")


def read_transformers_preprocessor(document: dict[str, Any]) -> Preprocessing:
    """The preprocessing of one of transformers' image processors.

    Raises:
        UsageError: this package does not have it.
        LookupError, TypeError, ValueError: the document is not transformers'.
    """
    if not document.get("do_resize", True):
        raise UsageError("it does not resize images, this package does")
    kind = str(document.get("image_processor_type") or document.get("feature_extractor_type") or "")
    size, crop = document.get("size", 224), document.get("crop_size")
    interpolation = Image.Resampling(document.get("resample", Image.Resampling.BICUBIC)).name.lower()
    fields: dict[str, Any] = {"interpolation": cast(Interpolation, interpolation)}
    if document.get("do_normalize", True):
        given = {"mean": document.get("image_mean"), "std": document.get("image_std")}
        fields |= {name: tuple(value) for name, value in given.items() if value is not None}
    else:
        fields |= {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    if kind.startswith("ConvNext"):
        side = int(size["shortest_edge"] if isinstance(size, dict) else size)
        if side >= SQUASH_FROM:
            return Preprocessing(side, 1.0, "squash", **fields)
        return Preprocessing(side, document.get("crop_pct") or EVAL_CROP, "center", **fields)
    if document.get("do_center_crop") and crop is not None:
        return Preprocessing.resized(square(crop), square(size), **fields)
    return Preprocessing(square(size), 1.0, "squash", **fields)


def square(size: Any) -> int:
    """The side of a square: a number, a pair, or a dictionary of height and width or the shortest edge."""
    if isinstance(size, dict):
        height, width = (size.get(name, size.get("shortest_edge")) for name in ("height", "width"))
    else:
        height, width = size if isinstance(size, list | tuple) else (size, size)
    if height is None or height != width or int(height) < 1:
        raise UsageError(f"images of {width} x {height} pixels: this package takes squares")
    return int(height)
