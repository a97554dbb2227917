"""When a fast form is taken."""

from collections.abc import Sequence

import torch
from torch import Tensor

from convnext.acceleration.cpu.native import available

NATIVE_DTYPES = (torch.float32, torch.bfloat16)
# Whether torch's convolutions are slow here: with AVX-512 depthwise ones and those of patches are near the speed of its
# matrix products.
SLOW_CONVOLUTIONS = torch.backends.cpu.get_cpu_capability() == "AVX2"


def is_fast(tensors: Sequence[Tensor], *, wanted: bool, work: int, least: int) -> bool:
    """Whether a layer trains faster here with its form in C than with torch's operators.

    So it is on the CPU, in fp32 and bf16, with a compiler, for all but the smallest maps; and not inside torch.func's
    transforms and torch.jit.trace, which know torch's operators alone.

    Args:
        tensors: the layer's inputs and parameters.
        wanted: whether the gradient that is to be had faster is wanted.
        work: what there is to do.
        least: of it; below, an operator written in Python takes longer than it saves.
    """
    if not (wanted and torch.is_grad_enabled() and all(tensor.device.type == "cpu" for tensor in tensors)):
        return False
    # A compiled operator costs less, and a graph for any batch size must not depend on the size of one.
    if not torch.compiler.is_compiling() and (
        torch._C._is_tracing() or torch._C._are_functorch_transforms_active() or work < least
    ):
        return False
    dtypes = {tensor.dtype for tensor in tensors}
    if torch.is_autocast_enabled("cpu"):
        dtypes.add(torch.get_autocast_dtype("cpu"))
    elif len(dtypes) > 1:
        return False  # torch says what is wrong
    return dtypes <= set(NATIVE_DTYPES) and available()


def compute_dtype(x: Tensor) -> torch.dtype:
    """The dtype in which a linear layer computes: that of its input, or autocast's."""
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
