"""Where the kernels run: on a GPU that Triton knows, or anywhere in Triton's interpreter (``TRITON_INTERPRET=1``)."""

import os
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.library import custom_op, triton_op, wrap_triton

from convnext.acceleration import enabled

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
HAS_TRITON = find_spec("triton") is not None


def interpreted() -> bool:
    """Whether kernels are interpreted, on whatever device: for tests, some thousand times slower."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def has_triton() -> bool:
    """Whether Triton is installed."""
    return HAS_TRITON


def runs_on(device: torch.device) -> bool:
    """Whether a device has kernels."""
    return has_triton() and (interpreted() or (device.type == "cuda" and torch.version.hip is None))


def runs(*tensors: Tensor) -> bool:
    """Whether kernels take these tensors: all on one GPU, or interpreted, of a dtype that they know."""
    return enabled() and all(tensor.dtype in DTYPES and runs_on(tensor.device) for tensor in tensors)


def sum_dtype(x: Tensor) -> torch.dtype:
    """The dtype of sums and statistics: fp32, or float64 for float64."""
    return torch.promote_types(x.dtype, torch.float32)


def operator(name: str) -> Callable[[Callable[..., Any]], Any]:
    """Register a function that launches kernels as an operator of torch, under a name such as ``convnext::mlp``.

    On a GPU ``torch.compile`` and ``torch.export`` see the kernels inside it; in the interpreter it is opaque to them,
    and needs its ``register_fake``.
    """
    register = custom_op if interpreted() or not has_triton() else triton_op
    return register(name, mutates_args=())


def launch(kernel: Any) -> Any:
    """A kernel to be launched as ``launch(kernel)[grid](...)`` inside an operator."""
    return kernel if interpreted() else wrap_triton(kernel)
