"""Weights from a file into a network that exists: everything that should fit does, or nothing changes."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from convnext.errors import UsageError
from convnext.models.convnext import IsotropicConvNeXt, StagedNetwork
from convnext.weights.adapt import adapt_channels, check_kernels
from convnext.weights.layouts import OfficialWeights, to_official
from convnext.weights.reading import read_weights, weights_file

NAMED = 3  # names of each kind that an error lists


@dataclass(frozen=True)
class Loaded:
    """What came from a file.

    Attributes:
        path: the file.
        layout: what its names and shapes are: ``official``, ``timm``, ``torchvision``, ``transformers``, ..., with what
            stood before the names; ``the library's own`` for a network of another library.
        loaded: the number of tensors that came from it.
        adapted: names of the network's tensors whose values were made from the file's, for another number of channels.
        left_out: names of the network's tensors that it had nothing for: they keep their initial values.
        unused: names of the file's tensors that the network has no use for: of another network or task.
        notes: what should be said aloud.
    """

    path: Path
    layout: str
    loaded: int
    adapted: tuple[str, ...]
    left_out: tuple[str, ...]
    unused: tuple[str, ...]
    notes: tuple[str, ...]


def load_weights(model: nn.Module, path: str | Path) -> Loaded:
    """Load a file's weights into a network, in place.

    A network of this package takes files of the official layouts and of timm, OpenCLIP (its image tower), torchvision
    and transformers, which their names tell apart. ``timm/NAME`` and ``torchvision/NAME`` take their library's own
    names. The classifier keeps its initial values where the file has one for another number of classes, or none. For
    another number of input channels, the first layer's weights are added up for one, repeated and rescaled for more.

    Args:
        model: the network, on any device but ``meta``.
        path: a weights file (``.safetensors``, ``.pth``, ``.pt``, ``.bin``), a run's folder for its best weights, or a
            folder as the hub's libraries save it.

    Raises:
        UsageError: there is no such file, or it does not fit the network; the message names what is missing,
            unexpected or of another shape.
        RunError: the file is damaged, holds code, or values that are not finite.
    """
    path = weights_file(Path(path))
    read, notes = read_weights(path)
    own = model.state_dict()
    if any(tensor.is_meta for tensor in own.values()):
        raise UsageError("the network is on the meta device, which holds no values: create it on another one")
    official = to_official(read) if isinstance(model, StagedNetwork | IsotropicConvNeXt) else None
    found = official or OfficialWeights("the library's own", read, ())
    weights = {name: reshaped(tensor, own.get(name)) for name, tensor in found.weights.items()}
    weights, adapted, channel_notes = adapt_channels(weights, own, path)
    check_kernels(weights, own, path)
    head = classifier_names(model, {*own, *weights})
    left_out, head_notes = unusable(weights, own, head, path)
    weights = {name: tensor for name, tensor in weights.items() if name not in left_out}
    check_fit(weights, {name: tensor for name, tensor in own.items() if name not in left_out}, path)
    model.load_state_dict(weights, strict=False)
    return Loaded(
        path,
        found.layout,
        loaded=len(weights),
        adapted=adapted,
        left_out=tuple(name for name in own if name in left_out),
        unused=found.unused,
        notes=notes + unused_notes(found, path) + channel_notes + head_notes,
    )


def unused_notes(found: OfficialWeights, path: Path) -> tuple[str, ...]:
    """What to say of the file's tensors that are left aside."""
    if not found.unused:
        return ()
    return (f"{path.name} holds {len(found.unused)} tensors of another part or task, not used: {first(found.unused)}",)


def reshaped(tensor: Tensor, own: Tensor | None) -> Tensor:
    """A tensor in the network's shape, where the two differ in dimensions of 1 alone.

    Such are a 1x1 convolution and a linear layer, and GRN in its dense and its sparse form.
    """
    if own is None or [size for size in tensor.shape if size != 1] != [size for size in own.shape if size != 1]:
        return tensor
    return tensor.reshape(own.shape)


def classifier_names(model: nn.Module, names: Iterable[str]) -> set[str]:
    """Those of some tensors' ``names`` that belong to the classifier.

    It is ``head`` in this package's networks, what ``get_classifier`` gives in timm's, and else the last layer.
    """
    modules = dict(model.named_modules())
    if hasattr(model, "get_classifier"):
        found = model.get_classifier()  # pyright: ignore[reportCallIssue]
        layers = found if isinstance(found, tuple) else (found,)
    elif "head" in modules and hasattr(model, "smallest_image"):
        layers = (modules["head"],)
    else:
        layers = [module for module in modules.values() if isinstance(module, nn.Linear | nn.Conv2d)][-1:]
    prefixes = tuple(f"{name}." for name, module in modules.items() if any(module is layer for layer in layers))
    return {name for name in names if name.startswith(prefixes)}


def unusable(
    weights: dict[str, Tensor], own: dict[str, Tensor], head: set[str], path: Path
) -> tuple[set[str], tuple[str, ...]]:
    """Names, of the file's and of the network's tensors, that need no counterpart; and what to say of them."""
    left_out = {name for name in own if name.endswith("num_batches_tracked")} - weights.keys()  # only counts steps
    there, here = head & weights.keys(), head & own.keys()
    if there and not here:
        return left_out | head, (f"{path.name} has a classifier and the network none: the file's is not used",)
    # Masked pre-training (FCMAE) has no norm behind the pooling either.
    final_norm = {name for name in own if name.startswith("norm.")}
    untrained = set() if there or final_norm & weights.keys() else final_norm
    if (here and not there) or untrained:
        parts = " and no ".join(["classifier"] * bool(here) + ["final norm"] * bool(untrained))
        return left_out | head | untrained, (f"{path.name} has no {parts}: the network's own stay freshly initialised",)
    other = [name for name in here & there if weights[name].shape != own[name].shape]
    if other and all(weights[name].ndim and weights[name].shape[1:] == own[name].shape[1:] for name in other):
        classes, wanted = (tensors[other[0]].shape[0] for tensors in (weights, own))
        fresh = "the network's classifier stays freshly initialised"
        return left_out | head, (f"{path.name} is for {classes} classes, the network for {wanted}: {fresh}",)
    return left_out, ()


def check_fit(weights: dict[str, Tensor], own: dict[str, Tensor], path: Path) -> None:
    """Refuse weights of which a name or a shape is not the network's."""
    other_shapes = [
        f"{name} is {shape(weights[name])} in the file and {shape(tensor)} in the network"
        for name, tensor in own.items()
        if name in weights and weights[name].shape != tensor.shape
    ]
    found = {
        "missing": [name for name in own if name not in weights],
        "unexpected": [name for name in weights if name not in own],
        "of another shape": other_shapes,
    }
    problems = [f"{kind} ({len(names)}): {first(names)}" for kind, names in found.items() if names]
    if problems:
        raise UsageError(
            f"{path} does not fit this network. {'; '.join(problems)}. Take the network that the file was made with "
            "(name, stem_stride, kernel_size, layer_scale_init_value, in_chans), or another file"
        )


def first(names: Sequence[str]) -> str:
    """The first few names."""
    return ", ".join(names[:NAMED]) + (", ..." if len(names) > NAMED else "")


def shape(tensor: Tensor) -> str:
    """A shape as 96x3x4x4."""
    return "x".join(map(str, tensor.shape)) or "a single number"
