"""The ``config.json`` and ``preprocessor_config.json`` that transformers keeps beside a network's weights."""

from typing import Any, cast

from PIL import Image

from convnext.data.preprocessing import EVAL_CROP, SQUASH_FROM, Interpolation, Preprocessing
from convnext.errors import UsageError
from convnext.weights.architecture import Architecture

PLACEHOLDER = "LABEL_"  # how classes are called that nobody named


def write_config(
    architecture: Architecture, classes: tuple[str, ...] | None, image_size: int, norm_eps: float
) -> dict[str, Any]:
    """The document from which ``AutoModelForImageClassification.from_pretrained(FOLDER)`` builds the network.

    Args:
        architecture: the network.
        classes: names of its classes.
        image_size: pixels a side of its images.
        norm_eps: of the norm behind the pooling.

    Raises:
        UsageError: transformers has no form for this network.
    """
    check(architecture)
    kind = "ConvNextV2" if architecture.grn else "ConvNext"
    use = "ForImageClassification" if architecture.num_classes else "Model"
    names = classes or [f"{PLACEHOLDER}{label}" for label in range(architecture.num_classes)]
    document: dict[str, Any] = {
        "architectures": [kind + use],
        "model_type": kind.lower(),
        "num_channels": architecture.in_channels,
        "patch_size": architecture.stem_stride,
        "num_stages": 4,
        "hidden_sizes": [architecture.width * 2**i for i in range(4)],
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
        document["id2label"] = {str(label): name for label, name in enumerate(names)}
        document["label2id"] = {name: label for label, name in enumerate(names)}
    return document


def check(architecture: Architecture) -> None:
    """Refuse what transformers cannot build.

    Raises:
        UsageError: the message names it.
    """
    odd = {
        "isotropic networks": architecture.is_isotropic,
        f"kernel size {architecture.kernel_size}": architecture.kernel_size != 7,
        "stems of stride 1": architecture.stem_stride == 1,
        "V2 with layer scale": architecture.grn and architecture.layer_scale,
        f"norms with eps {architecture.norm_eps:g}": architecture.norm_eps != 1e-6,
    }
    if found := [what for what, holds in odd.items() if holds]:
        raise UsageError(f"transformers has no {' and no '.join(found)}: official is a layout that has")


def write_preprocessor(preprocessing: Preprocessing) -> dict[str, Any]:
    """The document for transformers' image processors.

    Its own for ConvNeXt crops below 384 pixels and squashes from there on; what else there is, others of its processors
    do.

    Raises:
        UsageError: none of them does it.
    """
    size = preprocessing.image_size
    common = {
        "do_resize": True,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(preprocessing.mean),
        "image_std": list(preprocessing.std),
        "resample": int(Image.Resampling[preprocessing.interpolation.upper()]),
    }
    if preprocessing.crop_mode == "border":
        raise UsageError("transformers has no crop mode border: convert to the layout timm, or train with another")
    squash = preprocessing.crop_mode == "squash"
    if squash and preprocessing.resize_size != size:
        raise UsageError("transformers does not squash and crop: convert to the layout timm")
    if squash == (size >= SQUASH_FROM):
        own = {"size": {"shortest_edge": size}, "crop_pct": preprocessing.crop_pct}
        return {"image_processor_type": "ConvNextImageProcessor", **own, **common}
    if squash:
        return {"image_processor_type": "ViTImageProcessor", "size": {"height": size, "width": size}, **common}
    crop = {"do_center_crop": True, "crop_size": {"height": size, "width": size}}
    resize = {"size": {"shortest_edge": preprocessing.resize_size}}
    return {"image_processor_type": "BitImageProcessor", **resize, **crop, **common}


def read_config(document: dict[str, Any]) -> tuple[Any, float | None]:
    """Class names, or None where there are none, and what the norm behind the pooling adds to the variance."""
    named = document.get("id2label")
    classes = None
    if named and not all(str(name).startswith(PLACEHOLDER) for name in named.values()):
        classes = [named[label] for label in sorted(named, key=int)]
        if [int(label) for label in sorted(named, key=int)] != list(range(len(classes))):
            raise UsageError("id2label does not number the classes from 0 on")
    norm_eps = document.get("layer_norm_eps")
    return classes, None if norm_eps is None else float(norm_eps)


def read_preprocessor(document: dict[str, Any]) -> Preprocessing:
    """The preprocessing of one of transformers' image processors.

    Raises:
        UsageError: it does what this package does not.
    """
    kind = str(document.get("image_processor_type") or document.get("feature_extractor_type") or "")
    if not document.get("do_resize", True):
        raise UsageError("it does not resize images, this package does")
    size = document.get("size", 224)
    crop = document.get("crop_size")
    interpolation = Image.Resampling(document.get("resample", Image.Resampling.BICUBIC)).name.lower()
    fields: dict[str, Any] = {"interpolation": cast(Interpolation, interpolation)}
    if document.get("do_normalize", True):
        for name, value in (("mean", document.get("image_mean")), ("std", document.get("image_std"))):
            fields |= {} if value is None else {name: tuple(value)}
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
    """The side of a square, which sizes are written as in several ways."""
    if isinstance(size, dict):
        height, width = (size.get(name, size.get("shortest_edge")) for name in ("height", "width"))
    else:
        height, width = size if isinstance(size, list | tuple) else (size, size)
    if height is None or height != width:
        raise UsageError(f"images of {width} x {height} pixels: this package takes squares")
    if int(height) < 1:
        raise UsageError(f"images of {width} x {height} pixels: there are none so small")
    return int(height)
