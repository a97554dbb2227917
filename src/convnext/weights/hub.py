"""Download published checkpoints: timm's copies from the Hugging Face hub, else the authors' files."""

import hashlib
import os
import re
import socket
import sys
import zipfile
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import torch
from filelock import FileLock

from convnext.console import console_on, say
from convnext.errors import RunError, reason
from convnext.files import DISK_FULL, cannot_write, writing
from convnext.quantities import megabytes
from convnext.weights.published import HUB_FILE, Published, at_hand, published, weights_cache

TIMEOUT = 10  # seconds without a connection, a response or a byte
HUB_TIMEOUT = 5  # seconds for the hub's first response; its client alone would retry for 23 without a network


def fetch(variant: str, tag: str) -> Path:
    """Return the file of a published checkpoint; download it, with progress on stderr, unless it is on this machine.

    Timm's copy on the Hugging Face hub comes first: it holds tensors alone, and its SHA-256 is known.

    Raises:
        UsageError: there is no such checkpoint.
        RunError: it cannot be downloaded; the message has the address, the file's name and the folder for it. Or the
            disk is full.
    """
    row = published(variant, tag)
    if found := at_hand(variant, tag):
        return found
    if variable := offline_variable():
        raise unavailable(row, f"{variable} is set, so no download was tried")
    reasons = []
    if row.hub:
        try:
            return fetch_from_hub(row.hub)
        except Exception as error:  # of many kinds, which differ between versions of the hub's client
            reasons.append(f"{row.hub} on the Hugging Face hub: {str(error).partition(chr(10))[0] or type(error)}")
            say(f"{reasons[0]}; trying {row.address}", console_on(sys.stderr))
    try:
        return fetch_from_authors(row)
    except (OSError, HTTPException, ValueError) as error:
        if isinstance(error, HTTPError):
            error.close()
        raise unavailable(row, "; ".join([*reasons, f"{row.address}: {reason(error)}"])) from error


def fetch_from_hub(repository: str) -> Path:
    """Download timm's copy into the hub's cache, and check its SHA-256.

    Raises:
        ValueError: the file has another SHA-256; it is deleted.
        Exception: of the hub's client.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url

    etag = get_hf_file_metadata(hf_hub_url(repository, HUB_FILE), timeout=HUB_TIMEOUT).etag
    path = Path(hf_hub_download(repository, HUB_FILE))
    if etag and re.fullmatch("[0-9a-f]{64}", etag):
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != etag:
            path.resolve().unlink()
            path.unlink(missing_ok=True)
            raise ValueError(f"its SHA-256 is {digest}, not {etag}: it is deleted")
    return path


def fetch_from_authors(row: Published) -> Path:
    """Download the authors' file; it takes its name once it is whole. A second process waits for the first.

    Raises:
        OSError, HTTPException, ValueError: no connection, no such file, or not the expected file, which is deleted.
        RunError: the disk is full, or the folder cannot be written to.
    """
    path = weights_cache() / row.file
    temporary = path.with_name(f".{path.name}.download")
    with writing(path, row.tensor_bytes):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path.with_name(f".{path.name}.lock"))
        lock.acquire()
    before = socket.getdefaulttimeout()
    try:
        if path.is_file():
            return path
        socket.setdefaulttimeout(TIMEOUT)  # download_url_to_file has no argument for it
        with urlopen(Request(row.address, method="HEAD", headers={"User-Agent": "convnext"})) as response:
            size = int(response.headers.get("Content-Length", 0))
        say(f"downloading {row.address} ({megabytes(size)})", console_on(sys.stderr))
        torch.hub.download_url_to_file(row.address, str(temporary), progress=sys.stderr.isatty())
        check_download(temporary, row, size)
        with writing(path, size):
            temporary.replace(path)
        return path
    except OSError as error:
        if error.errno in DISK_FULL:
            raise cannot_write(path, error, row.tensor_bytes) from error
        raise
    finally:
        socket.setdefaulttimeout(before)
        temporary.unlink(missing_ok=True)
        lock.release()


def check_download(path: Path, row: Published, size: int) -> None:
    """Refuse a file that is not whole.

    The authors publish no checksums. The file must have as many bytes as the server stated, no fewer than its tensors,
    and match the checksums of torch's zip format.

    Raises:
        ValueError: the message has both figures.
    """
    found = path.stat().st_size
    if found != (size or found):
        raise ValueError(f"{found:,} bytes of {size:,} arrived")
    if found < row.tensor_bytes:
        raise ValueError(f"it has {found:,} bytes, fewer than its tensors ({row.tensor_bytes:,})")
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if damaged := archive.testzip():
                raise ValueError(f"{damaged} in it does not match its checksum")


def offline_variable() -> str | None:
    """The environment variable that forbids to use the network, or None."""
    from huggingface_hub import constants

    if os.environ.get("CONVNEXT_OFFLINE", "0") not in ("", "0"):
        return "CONVNEXT_OFFLINE"
    return "HF_HUB_OFFLINE (or TRANSFORMERS_OFFLINE)" if constants.HF_HUB_OFFLINE else None


def unavailable(row: Published, why: str) -> RunError:
    """The error for a checkpoint that is not on this machine and cannot be downloaded, with the remedies."""
    from huggingface_hub import constants

    ways = [
        f"no {row.tag} weights of {row.variant} on this machine ({why}). Where there is a network, do one of these:",
        f"- get {row.address} ({megabytes(row.tensor_bytes)} or more) and put {row.file} into {weights_cache()} here, "
        "or set CONVNEXT_WEIGHTS to the folder that has it",
    ]
    if row.hub:
        folder = f"models--{row.hub.replace('/', '--')} of its cache into {constants.HF_HUB_CACHE}"
        ways.append(f"- run `hf download {row.hub} {HUB_FILE}` and copy the folder {folder} here")
    if variable := offline_variable():
        ways.append(f"- unset {variable} to let this program download it")
    return RunError("\n  ".join(ways))
