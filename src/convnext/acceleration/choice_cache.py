"""What was found to be fastest, kept in the user's cache: a file for each machine, network and shape of images."""

import hashlib
import json
from typing import Any

import torch
from torch import Tensor, nn

from convnext.acceleration.enabled import enabled
from convnext.environment import __version__, processor, vector_instructions
from convnext.errors import RunError
from convnext.files import read_json, user_cache, write_json


def key_of(model: nn.Module, example: Tensor, precision: str) -> str:
    """A name for what a choice depends on: the machine, versions, the network's structure (not its weights), shape."""
    device = example.device
    facts = {
        "processor": [processor(), vector_instructions()],
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
        "versions": [torch.__version__, __version__],
        "kernels": enabled(),
        "network": repr(model),
        "parameters": [[name, list(value.shape), str(value.dtype)] for name, value in model.state_dict().items()],
        "images": list(example.shape),
        "precision": precision,
    }
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]


def remembered(key: str) -> dict[str, Any] | None:
    """What was kept under a name; None where nothing was, or it cannot be read."""
    try:
        return read_json(user_cache("optimize") / f"{key}.json")
    except (RunError, RuntimeError):  # RuntimeError: a user without a home
        return None


def remember(key: str, document: dict[str, Any]) -> None:
    """Keep something; where the cache cannot be written to, it is found again the next time."""
    try:
        write_json(user_cache("optimize") / f"{key}.json", document)
    except (RunError, RuntimeError):
        return
