"""Models of torchvision and timm with the weights that their library publishes, and its preprocessing."""

import contextlib
import pickle
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from convnext.data.imagenet import class_names
from convnext.data.preprocessing import Preprocessing
from convnext.errors import RunError, UsageError, unknown_name
from convnext.models.references import list_references

Pretrained = tuple[nn.Module, tuple[str, ...], Preprocessing, str]  # and a description of the weights


def load_pretrained(name: str) -> Pretrained:
    """Load ``torchvision/NAME`` with its default weights, or ``timm/NAME``, ``timm/NAME.TAG`` with timm's.

    They are downloaded once, into the library's own cache.
    """
    library, _, model = name.partition("/")
    known = list_references(library)
    if f"{library}/{model.partition('.')[0]}" not in known:
        raise unknown_name("reference", name, known)
    with contextlib.redirect_stdout(sys.stderr):  # torch.hub prints its download
        return (load_torchvision if library == "torchvision" else load_timm)(name, model)


def load_torchvision(name: str, model: str) -> Pretrained:
    """Load a model of torchvision."""
    from torchvision import models

    if model not in models.list_models(module=models):
        raise unknown_name("reference", name, list_references("torchvision"))
    weights = models.get_model_weights(model).DEFAULT  # pyright: ignore[reportAttributeAccessIssue]
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    path = folder / weights.url.rpartition("/")[2]
    try:
        # First as plain tensors: torchvision's builder would run the code in a stranger's file.
        weights.get_state_dict(progress=sys.stderr.isatty(), check_hash=True, map_location="cpu", weights_only=True)
        module = models.get_model(model, weights=weights, progress=False)
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError) as error:
        reason = str(error).partition("\n")[0]
        raise RunError(f"{path} does not hold weights for {name} ({reason}): remove it to download it anew") from error
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
    return module.eval(), tuple(weights.meta["categories"]), preprocessing, str(weights)


def load_timm(name: str, model: str) -> Pretrained:
    """Load a model of timm with the weights of its tag, or of its default tag."""
    import timm
    from timm.data import resolve_data_config  # pyright: ignore[reportPrivateImportUsage]

    tags = timm.list_pretrained(f"{model.partition('.')[0]}.*")
    if not tags or ("." in model and model not in tags):
        instead = f"it has {', '.join(f'timm/{known}' for known in tags)}" if tags else "timm publishes none for it"
        raise UsageError(f"no weights for {name}: {instead}")
    published: Any = timm.get_pretrained_cfg(model)
    classes = class_names(published.num_classes)
    if classes is None:
        raise UsageError(f"{name} has {published.num_classes} classes without known names: take another tag or model")
    try:
        module = timm.create_model(model, pretrained=True)
    except Exception as error:  # timm and the hub's client raise many kinds, for a missing model and for a bad file
        raise RunError(unavailable(name, published, error)) from error
    options = resolve_data_config(model=module)
    channels, height, width = options.pop("input_size")
    preprocessing = Preprocessing(width, **options)
    if height != width or channels != preprocessing.channels:
        raise UsageError(f"{name} takes images of {channels} x {height} x {width}: squares of its channels are needed")
    return module.eval(), classes, preprocessing, f"timm's {published.architecture}.{published.tag}"


def unavailable(name: str, published: Any, error: Exception) -> str:
    """The message where timm has no weights in its cache and cannot fetch them."""
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
