"""What a recipe runs on: device, precision, reading processes."""

import os
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from convnext.errors import UsageError


def choose_device(name: str, local_rank: int = 0) -> torch.device:
    """The device by name; ``auto`` is a GPU where there is one, for several processes each its own.

    Raises:
        UsageError: torch does not know it, or this machine does not have it.
    """
    if name == "auto":
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        return own_device(accelerator if accelerator is not None else torch.device("cpu"), local_rank)
    try:
        device = own_device(torch.device(name), local_rank)
        if device.type not in ("cpu", "cuda", "mps", "xpu"):
            raise RuntimeError("it computes nothing")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"device {name!r} cannot be used here ({reason}): take auto or cpu") from error
    return device


def own_device(device: torch.device, local_rank: int) -> torch.device:
    """The GPU of one process among several on a machine."""
    return torch.device("cuda", local_rank) if device.type == "cuda" and device.index is None else device


def autocast_for(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """The context of a forward pass: bf16 or fp16 autocast, or none for fp32; ``auto`` is bf16 on a GPU that has it.

    Raises:
        UsageError: bf16 was asked for and the processor or the GPU has no instructions for it.
    """
    if precision == "fp16":
        return torch.autocast(device.type, torch.float16)
    if precision == "fp32" or (precision == "auto" and device.type == "cpu"):
        return nullcontext()
    if device.type == "cpu" and not has_bf16(device):
        raise UsageError("precision bf16 needs a processor with bf16 instructions, this one has none: take fp32")
    if device.type == "cuda" and not has_bf16(device):
        if precision == "auto":
            return nullcontext()
        raise UsageError(f"precision bf16 needs a GPU that has it, {torch.cuda.get_device_name()} does not: take fp32")
    return torch.autocast(device.type, torch.bfloat16)


def has_bf16(device: torch.device) -> bool:
    """Whether a processor or a CUDA GPU computes in bf16 rather than emulating it; of others torch does not say."""
    if device.type == "cpu":
        return has_cpu_bf16()
    return device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)


def has_cpu_bf16() -> bool:
    """Whether the processor computes in bf16 rather than emulating it."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def choose_workers(workers: int, processes: int = 1) -> int:
    """Reading processes for each of the ``processes`` on this machine: -1 shares the cores out, at most 8 each."""
    return min(8, max(1, (os.cpu_count() or 1) // processes)) if workers < 0 else workers
