"""Circumstances in which a layer is computed by torch's operators alone."""

from torch import Tensor, nn


def brought_about(case: str, module: nn.Module, x: Tensor) -> tuple[nn.Module, Tensor]:
    """A layer and its input in one of them; those of autocast and of gradients are the caller's."""
    if case == "evaluation":
        module.eval()
    elif case == "frozen":
        module.requires_grad_(False)
    elif case == "float64":
        module, x = module.double(), x.double()
    elif case == "meta":
        module, x = module.to("meta"), x.to("meta")
    return module, x
