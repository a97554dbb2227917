"""Circumstances in which a layer is computed by torch's operators only; small maps; the C code for other CPUs."""

from functools import partial

import pytest
from torch import Tensor, nn

from convnext.acceleration.cpu import add_branch, bias_gelu, depthwise, layer_norm, mlp, native, training_modules
from convnext.acceleration.cpu import inference_kernels as inference
from convnext.errors import RunError


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


def set_minimum(values: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the training operators for maps of so many values, at least."""
    monkeypatch.setattr(depthwise, "MIN_PRODUCTS", values)
    for module in (layer_norm, bias_gelu, add_branch, mlp, training_modules):
        monkeypatch.setattr(module, "MIN_VALUES", values)


# Options that build the C code for a processor with registers so wide, with every precision, to run on any processor.
PORTABLE = {
    "16 lanes": ("-DPORTABLE", "-DLANES=16", "-O0"),  # where registers are narrower, it takes a minute to optimise
    "8 lanes": ("-DPORTABLE", "-DLANES=8", "-O1"),
}
LIBRARIES = ("here", *PORTABLE)


def take_inference_library(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Use the library for inference made for this processor (here), or one of those for others, in this test."""
    if name != "here":
        monkeypatch.setattr(inference, "_library", partial(inference._library, PORTABLE[name]))
    try:
        inference.inference_library()
    except RunError as error:
        pytest.skip(str(error))


def take_training_library(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same for the library for training."""
    if name != "here":
        monkeypatch.setattr(native, "_library", partial(native._library, PORTABLE[name]))
    if not native.available():
        pytest.skip("no C compiler here")
