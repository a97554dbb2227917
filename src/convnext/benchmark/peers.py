"""The same models in other libraries, built by their own builders with random weights."""

import importlib.util
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from convnext.benchmark.configurations import OURS
from convnext.errors import UsageError, unknown_name
from convnext.models import create_model, is_reference
from convnext.models.convnext import VARIANTS, ConvNeXt
from convnext.models.references import list_references

PEERS = ("timm", "torchvision", "transformers")


class LogitsOf(nn.Module):
    """A model of transformers that returns its logits alone."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, C, H, W) to logits (N, classes)."""
        return self.model(x).logits


def check_libraries(libraries: Iterable[str]) -> None:
    """Refuse libraries that are unknown or not installed.

    Raises:
        UsageError: with the nearest names, or with what to install.
    """
    for library in libraries:
        if library not in PEERS:
            raise unknown_name("library", library, PEERS)
        if importlib.util.find_spec(library) is None:
            raise UsageError(f"{library} is not installed: pip install {library}, or leave it out of --against")


def library_of(name: str) -> str:
    """The library of a model by its name."""
    return name.partition("/")[0] if is_reference(name) else OURS


def has_model(library: str, name: str) -> bool:
    """True if a library has the model that this package calls ``name``, of the same size and with the same result."""
    if library == "transformers":
        builder = VARIANTS.get(name)
        return builder is not None and builder.func is ConvNeXt
    return name in VARIANTS and f"{library}/{name}" in list_references(library)


def build(name: str, library: str, image_size: int) -> nn.Module:
    """Build a library's model for 1000 classes.

    Args:
        name: this package's name of it, or such as ``torchvision/resnet50``.
        library: one of :data:`PEERS`, or this package.
        image_size: height and width in pixels, for models that are built for one size.
    """
    if library == "transformers":
        return build_transformers(name)
    if is_reference(name):
        return create_model(name, image_size=image_size)
    return create_model(name if library == OURS else f"{library}/{name}")


def build_transformers(name: str) -> nn.Module:
    """Build the model of transformers with a variant's depths and widths."""
    import transformers

    kind = "ConvNextV2" if name.startswith("convnextv2") else "ConvNext"
    size = VARIANTS[name].keywords
    sizes: dict[str, Any] = {"depths": list(size["depths"]), "hidden_sizes": list(size["dims"])}
    config = getattr(transformers, f"{kind}Config")(**sizes, num_labels=1000)
    return LogitsOf(getattr(transformers, f"{kind}ForImageClassification")(config))
