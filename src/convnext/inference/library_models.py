"""Networks of torchvision and timm with the weights that their library publishes, and its own way to prepare images."""

import contextlib
import pickle
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch

from convnext.data.imagenet import class_names, folder_names
from convnext.data.preprocessing import Preprocessing
from convnext.errors import RunError, UsageError, unknown_name
from convnext.inference.trained import Trained
from convnext.models.references import list_references


def open_published(name: str) -> Trained:
    """Open ``torchvision/NAME`` with its library's default weights, or ``timm/NAME``, ``timm/NAME.TAG`` with timm's.

    They are downloaded once, into the library's own cache.

    Raises:
        UsageError: the name is unknown, the library has no weights for it, or not for known classes.
        RunError: the weights are neither in the cache nor to be had, or damaged; the message says where they belong.
    """
    library, _, network = name.partition("/")
    known = list_references(library)
    if f"{library}/{network.partition('.')[0]}" not in known:
        raise unknown_name("reference", name, known)
    with contextlib.redirect_stdout(sys.stderr):  # where torch.hub speaks of its download
        return (open_torchvision if library == "torchvision" else open_timm)(name, network)


def open_torchvision(name: str, network: str) -> Trained:
    """A network of torchvision with its default weights."""
    from torchvision import models

    if network not in models.list_models(module=models):
        raise unknown_name("reference", name, list_references("torchvision"))
    weights = models.get_model_weights(network).DEFAULT  # pyright: ignore[reportAttributeAccessIssue]
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    path = folder / weights.url.rpartition("/")[2]
    try:
        # First as plain tensors: torchvision's builder would run what a file from a stranger says.
        weights.get_state_dict(progress=sys.stderr.isatty(), check_hash=True, map_location="cpu", weights_only=True)
        model = models.get_model(network, weights=weights, progress=False)
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError) as error:
        reason = str(error).partition("\n")[0]
        raise RunError(f"{path} is no file of weights for {name} ({reason}): remove it to download it anew") from error
    except OSError as error:
        raise RunError(
            f"the weights of {name} could not be downloaded ({error}): fetch {weights.url} elsewhere and put "
            f"{path.name} into {folder}, or set TORCH_HOME to the folder whose hub/checkpoints has it"
        ) from error
    preset = weights.transforms()
    preprocessing = Preprocessing.resized(
        *preset.crop_size,
        *preset.resize_size,
        interpolation=preset.interpolation.value,
        mean=preset.mean,
        std=preset.std,
    )
    classes = tuple(weights.meta["categories"])  # every network of torchvision is published for ImageNet-1K
    return Trained(name, model.eval(), classes, preprocessing, str(weights), aliases=partial(folder_names, 1000))


def open_timm(name: str, network: str) -> Trained:
    """A network of timm with the weights of its tag, or of its default tag."""
    import timm
    from timm.data import resolve_data_config  # pyright: ignore[reportPrivateImportUsage]

    architecture, _, tag = network.partition(".")
    tags = timm.list_pretrained(f"{architecture}.*")
    if not tags or (tag and network not in tags):
        instead = f"it has {', '.join(f'timm/{known}' for known in tags)}" if tags else "timm publishes none for it"
        raise UsageError(f"no weights for {name}: {instead}")
    published: Any = timm.get_pretrained_cfg(network)
    classes = class_names(published.num_classes)
    if classes is None:
        raise UsageError(f"{name} cannot be evaluated: the names of its {published.num_classes} classes are not known")
    try:
        model = timm.create_model(network, pretrained=True)
    except Exception as error:  # timm and the hub's client raise many kinds, for a missing network and for a bad file
        raise RunError(unavailable(name, published, error)) from error
    options = resolve_data_config(model=model)
    channels, height, width = options.pop("input_size")
    preprocessing = Preprocessing(width, **options)
    if height != width or channels != preprocessing.channels:
        raise UsageError(f"{name} takes images of {channels} x {height} x {width}: squares of its channels are needed")
    return Trained(
        name,
        model.eval(),
        classes,
        preprocessing,
        weights=f"timm's {published.architecture}.{published.tag}",
        aliases=partial(folder_names, len(classes)),
    )


def unavailable(name: str, published: Any, error: Exception) -> str:
    """What to do where timm has no weights in its cache and cannot fetch them."""
    reason = str(error).partition("\n")[0] or type(error).__name__
    failed = f"the weights of {name} could not be loaded ({reason})"
    if not published.hf_hub_id:
        folder = Path(torch.hub.get_dir()) / "checkpoints"
        return f"{failed}: fetch {published.url} elsewhere and put it into {folder}"
    from huggingface_hub import constants, hf_hub_url

    repository = published.hf_hub_id.partition("@")[0]
    address = hf_hub_url(repository, published.hf_hub_filename or "model.safetensors")
    return (
        f"{failed}: where {address} can be reached, run `hf download {repository}`, and copy the folder "
        f"models--{repository.replace('/', '--')} of its cache into {constants.HF_HUB_CACHE}"
    )
