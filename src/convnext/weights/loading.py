"""Load weights from a file into an existing model: either the whole file fits, or nothing changes."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from convnext.errors import UsageError
from convnext.models.protocol import Network
from convnext.weights.layouts import OfficialWeights, to_official
from convnext.weights.reading import MAX_LISTED, read_weights, weights_file

FIRST_LAYERS = ("downsample_layers.0.0.weight", "stem.weight")


@dataclass(frozen=True)
class Loaded:
    """The result of :func:`load_weights`.

    Attributes:
        path: the file.
        layout: the layout of its names and shapes, with their prefix: ``official``, ``timm``, ``torchvision``,
            ``transformers``, ...; ``the library's own`` for a model of another library.
        loaded: the number of tensors that came from it.
        adapted: names of the model's tensors that were converted to another number of channels.
        left_out: names of the model's tensors that the file has nothing for: they keep their initial values.
        unused: names of the file's tensors that belong to another model or task.
        notes: warnings for the user.
    """

    path: Path
    layout: str
    loaded: int
    adapted: tuple[str, ...]
    left_out: tuple[str, ...]
    unused: tuple[str, ...]
    notes: tuple[str, ...]


def load_weights(model: nn.Module, path: str | Path) -> Loaded:
    """Load a file's weights into a model, in place.

    A model of this package takes files of the official layouts and of timm, OpenCLIP (its image tower), torchvision
    and transformers, which their names tell apart. ``timm/NAME`` and ``torchvision/NAME`` take their library's own
    names. The classifier keeps its initial values where the file has one for another number of classes, or none. For
    another number of input channels, the first layer's weights are summed (1) or repeated and rescaled (more).

    Args:
        model: on any device but ``meta``.
        path: a weights file (``.safetensors``, ``.pth``, ``.pt``, ``.bin``), a run folder for its best weights, or a
            folder of timm or transformers.

    Raises:
        UsageError: there is no such file, or it does not fit the model; the message names tensors that are missing,
            unexpected or of another shape.
        RunError: the file is damaged, or it holds Python objects or values that are not finite.
    """
    path = weights_file(Path(path))
    read, notes = read_weights(path)
    own = model.state_dict()
    if any(tensor.is_meta for tensor in own.values()):
        raise UsageError("the model is on the meta device, which holds no values: create it on another device")
    official = to_official(read) if isinstance(model, Network) else None
    found = official or OfficialWeights("the library's own", read, ())
    weights = {name: reshaped(tensor, own.get(name)) for name, tensor in found.weights.items()}
    adapted, channel_notes = adapt_channels(weights, own, path)
    head = classifier_names(model, {*own, *weights})
    left_out, head_notes = optional_names(weights, own, head, path)
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
    """Return a note on the tensors of a file that are not used."""
    if not found.unused:
        return ()
    return (f"{path.name} holds {len(found.unused)} tensors of another model or task, not used: {first(found.unused)}",)


def reshaped(tensor: Tensor, own: Tensor | None) -> Tensor:
    """Reshape a tensor as the model's, if the shapes differ in dimensions of 1 alone.

    So do a 1x1 convolution and a linear layer, and GRN in its dense and its sparse implementation.
    """
    if own is None or [size for size in tensor.shape if size != 1] != [size for size in own.shape if size != 1]:
        return tensor
    return tensor.reshape(own.shape)


def adapt_channels(
    weights: dict[str, Tensor], own: dict[str, Tensor], path: Path
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Convert the first layer in ``weights`` to the model's number of input channels; return its name and a note."""
    for name in FIRST_LAYERS:
        if name in weights and name in own and weights[name].ndim == own[name].ndim == 4:
            there, here = weights[name].shape[1], own[name].shape[1]
            if there != here and there > 0:
                weights[name] = adapt_input_conv(weights[name], here)
                how = "summed" if here == 1 else "repeated and rescaled"
                note = f"{path.name} is for images of {there} channels, the model for {here}: {name} is {how}"
                return (name,), (note,)
    return (), ()


def adapt_input_conv(weight: Tensor, channels: int) -> Tensor:
    """Convert a convolution's weight (O, I, K, K) to (O, channels, K, K), as timm does for published weights.

    For one channel, the sum over channels: a grey image gives the output of the image with three equal channels. For
    more, the channels repeated, rescaled to the same magnitude of the output.
    """
    given = weight.shape[1]
    if channels == 1:
        return weight.sum(1, keepdim=True)
    repeats = -(-channels // given)
    return torch.cat([weight] * repeats, 1)[:, :channels] * (given / channels)


def classifier_names(model: nn.Module, names: Iterable[str]) -> set[str]:
    """Select the names of the classifier: ``get_classifier``'s, else those of the last layer."""
    modules = dict(model.named_modules())
    if hasattr(model, "get_classifier"):
        found = model.get_classifier()  # pyright: ignore[reportCallIssue]
        layers = found if isinstance(found, tuple) else (found,)
    else:
        layers = [module for module in modules.values() if isinstance(module, nn.Linear | nn.Conv2d)][-1:]
    prefixes = tuple(f"{name}." for name, module in modules.items() if any(module is layer for layer in layers))
    return {name for name in names if name.startswith(prefixes)}


def optional_names(
    weights: dict[str, Tensor], own: dict[str, Tensor], head: set[str], path: Path
) -> tuple[set[str], tuple[str, ...]]:
    """Names, of the file's and of the model's tensors, that need no counterpart; and notes on them."""
    left_out = {name for name in own if name.endswith("num_batches_tracked")} - weights.keys()  # only counts steps
    there, here = head & weights.keys(), head & own.keys()
    if there and not here:
        return left_out | head, (f"{path.name} has a classifier and the model none: the file's is not used",)
    # Masked pre-training (FCMAE) has no final norm either.
    final_norm = {name for name in own if name.startswith("norm.")}
    untrained = set() if there or final_norm & weights.keys() else final_norm
    if (here and not there) or untrained:
        parts = " and no ".join(["classifier"] * bool(here) + ["final norm"] * bool(untrained))
        return left_out | head | untrained, (f"{path.name} has no {parts}: the model's keep their initial values",)
    other = [name for name in here & there if weights[name].shape != own[name].shape]
    if other and all(weights[name].ndim and weights[name].shape[1:] == own[name].shape[1:] for name in other):
        classes, wanted = (tensors[other[0]].shape[0] for tensors in (weights, own))
        fresh = "the model's classifier keeps its initial values"
        return left_out | head, (f"{path.name} is for {classes} classes, the model for {wanted}: {fresh}",)
    return left_out, ()


def check_fit(weights: dict[str, Tensor], own: dict[str, Tensor], path: Path) -> None:
    """Refuse weights with a name or a shape that is not the model's.

    Raises:
        UsageError: the message names them.
    """
    other_shapes = [
        f"{name} is {shape(weights[name])} in the file and {shape(tensor)} in the model"
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
            f"{path} does not fit this model. {'; '.join(problems)}. Create the model that the file was made with "
            "(name, stem_stride, kernel_size, layer_scale_init_value, in_chans), or pass another file"
        )


def first(names: Sequence[str]) -> str:
    """List the first few names."""
    return ", ".join(names[:MAX_LISTED]) + (", ..." if len(names) > MAX_LISTED else "")


def shape(tensor: Tensor) -> str:
    """Format a shape as 96x3x4x4."""
    return "x".join(map(str, tensor.shape)) or "a scalar"
