"""Where published checkpoints lie on this machine, and how those that do not get there."""

import os
import re
import sys
from pathlib import Path

import torch

from convnext.console import console_on, say
from convnext.errors import RunError
from convnext.files import user_cache
from convnext.quantities import megabytes
from convnext.weights.download import DownloadError, download, sha256_of
from convnext.weights.published import Published, published, tags_of

HUB_FILE = "model.safetensors"
HUB_SECONDS = 5  # for the hub's first answer; its own client would try for 23 seconds where there is no network


def at_hand(variant: str, tag: str | None = None) -> Path | None:
    """A published checkpoint that lies on this machine, or None; the network is not asked.

    Looked for under its official name in ``CONVNEXT_WEIGHTS``, in torch hub's folder, and in ``convnext/weights`` of
    the user's cache; then, as timm's copy, in the Hugging Face hub's cache.

    Args:
        variant: a network's name.
        tag: which checkpoint; without it the first of the network's that is found, in the order of ``PUBLISHED``.
    """
    for wanted in tags_of(variant) if tag is None else [tag]:
        row = published(variant, wanted)
        for folder in (weights_cache(), Path(torch.hub.get_dir()) / "checkpoints", user_cache("weights")):
            if (folder / row.file).is_file():
                return folder / row.file
        if found := in_hub_cache(row):
            return found
    return None


def fetch(variant: str, tag: str) -> Path:
    """A published checkpoint's file: the one at hand, or downloaded once, with a bar on stderr.

    From the Hugging Face hub first, where timm's copy is a file that holds tensors alone and whose SHA-256 is known;
    from the authors' address where the hub has none or cannot be reached.

    Raises:
        UsageError: there is no such checkpoint.
        RunError: it cannot be downloaded; the message has address, file and folder. Or the disk is full.
    """
    row = published(variant, tag)
    if found := at_hand(variant, tag):
        return found
    if is_offline():
        raise unavailable(row, "HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set, so no download was tried")
    reasons = []
    if row.hub:
        try:
            return fetch_from_hub(row.hub)
        except Exception as error:  # of many kinds, which differ between the versions of the hub's client
            reasons.append(f"{row.hub} on the Hugging Face hub: {str(error).partition(chr(10))[0] or type(error)}")
            say(f"{reasons[0]}; trying {row.address}", console_on(sys.stderr))
    path = weights_cache() / row.file
    try:
        download(row.address, path, sha256=row.sha256, size=row.bytes, least=row.tensor_bytes)
    except DownloadError as error:
        raise unavailable(row, "; ".join([*reasons, str(error)])) from error
    return path


def fetch_from_hub(repository: str) -> Path:
    """Download timm's copy into the hub's cache; its SHA-256 is checked where the hub names it.

    Raises:
        RunError: what came is another file; it is deleted.
        Exception: what the hub's client raises.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url

    named = get_hf_file_metadata(hf_hub_url(repository, HUB_FILE), timeout=HUB_SECONDS)
    path = Path(hf_hub_download(repository, HUB_FILE))
    if named.etag and re.fullmatch("[0-9a-f]{64}", named.etag) and (digest := sha256_of(path)) != named.etag:
        path.resolve().unlink()
        path.unlink(missing_ok=True)
        raise RunError(f"its SHA-256 is {digest}, not {named.etag}: it is deleted")
    return path


def in_hub_cache(row: Published) -> Path | None:
    """Timm's copy of a checkpoint in the hub's cache, or None."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(row.hub, HUB_FILE) if row.hub else None
    return Path(found) if isinstance(found, str) else None


def is_offline() -> bool:
    """Whether ``HF_HUB_OFFLINE``, or ``TRANSFORMERS_OFFLINE``, forbids to ask the network."""
    from huggingface_hub import constants

    return constants.HF_HUB_OFFLINE


def unavailable(row: Published, reason: str) -> RunError:
    """What to do where a checkpoint is neither at hand nor to be had."""
    from huggingface_hub import constants

    ways = [
        f"no {row.tag} weights of {row.variant} on this machine ({reason}). Where there is a network, do one of these:",
        f"- get {row.address} ({megabytes(row.tensor_bytes)} or more) and put {row.file} into {weights_cache()} here, "
        "or set CONVNEXT_WEIGHTS to the folder that has it",
    ]
    if row.hub:
        folder = f"models--{row.hub.replace('/', '--')}"
        ways.append(
            f"- run `hf download {row.hub} {HUB_FILE}` and copy the folder {folder} of its cache into "
            f"{constants.HF_HUB_CACHE} here"
        )
    if is_offline():
        ways.append("- unset HF_HUB_OFFLINE and TRANSFORMERS_OFFLINE to let this program download it")
    else:
        ways.append("With HF_HUB_OFFLINE=1 this program asks no network and says this at once.")
    return RunError("\n  ".join(ways))


def weights_cache() -> Path:
    """The folder for downloaded weights: ``CONVNEXT_WEIGHTS``, or ``convnext/weights`` in the user's cache."""
    return Path(os.environ["CONVNEXT_WEIGHTS"]) if "CONVNEXT_WEIGHTS" in os.environ else user_cache("weights")
