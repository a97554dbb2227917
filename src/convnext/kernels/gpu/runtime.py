"""Where the kernels run: on a GPU that Triton knows, or anywhere in Triton's interpreter (``TRITON_INTERPRET=1``)."""

import os
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.library import custom_op, triton_op, wrap_triton

from convnext.kernels import enabled

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
HAS_TRITON = find_spec("triton") is not None


def interpreted() -> bool:
    """Whether kernels are interpreted, on whatever device: for tests, some thousand times slower."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def has_triton() -> bool:
    """Whether Triton is installed."""
    return HAS_TRITON


def runs(*tensors: Tensor) -> bool:
    """Whether kernels take these tensors: all on one GPU, or interpreted, of a dtype that they know."""
    if not (enabled() and has_triton() and all(tensor.dtype in DTYPES for tensor in tensors)):
        return False
    return interpreted() or all(tensor.is_cuda and torch.version.hip is None for tensor in tensors)


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
