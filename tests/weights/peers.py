"""Peers' own networks with random weights, saved and opened as their library does, and the way there and back."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from convnext.models.convnext import VARIANTS, ConvNeXt
from convnext.weights.layouts import SPARSE
from convnext.weights.saving import LayoutName, convert
from convnext.weights.weights_file import open_weights

STAGED = [name for name, builder in VARIANTS.items() if builder.func is ConvNeXt]
TORCHVISION = ["convnext_tiny", "convnext_small", "convnext_base", "convnext_large"]
CLASSES = 11


@dataclass(frozen=True)
class Peer:
    """A library that has ConvNeXts.

    Attributes:
        layout: the name of its layout.
        variants: this package's names of those that it has.
        build: a network by name.
        save: a network into a folder, as the library saves it; returns the path to open.
        target: what a conversion to its layout is called, in a folder.
        open: what a conversion wrote, by the library's own means, for a network like the one that it was made of.
    """

    layout: LayoutName
    variants: list[str]
    build: Callable[[str], nn.Module]
    save: Callable[[nn.Module, Path], Path]
    target: str
    open: Callable[[str, Path], nn.Module]


@dataclass(frozen=True)
class RoundTrip:
    """What came of peer -> ours -> peer.

    Attributes:
        difference: the largest difference of our logits from the peer's, in parts of its largest logit.
        same_bits: whether every tensor came back as it was.
        same_logits: whether the peer's logits did.
    """

    difference: float
    same_bits: bool
    same_logits: bool


def randomize(model: nn.Module, seed: int = 0) -> nn.Module:
    """Random values for every tensor, so that none of them can be mistaken for another, scaled so that answers last."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in model.state_dict().items():
        noise = torch.randn(tensor.shape, generator=generator)
        fan_in = max(1, tensor[0].numel()) if tensor.ndim > 1 else 1
        scale = 0.3 if tensor.ndim == 1 or "scale" in name or "grn" in name else fan_in**-0.5
        tensor.copy_(noise * scale + (1 if tensor.ndim == 1 and name.endswith("weight") else 0))
    return model.eval()


def tiny(seed: int = 0, **options: Any) -> nn.Module:
    """A ConvNeXt of random weights in a file of 300 kB, in evaluation mode."""
    layer_scale = None if options.get("grn") else 1e-6
    default: dict[str, Any] = {"num_classes": 3, "layer_scale_init_value": layer_scale}
    return randomize(ConvNeXt(depths=(1, 2, 1, 1), dims=(8, 16, 32, 64), **(default | options)), seed)


def same(model: nn.Module, other: nn.Module, prefix: str = "") -> bool:
    """True if two models have the same tensors under a prefix."""
    theirs = other.state_dict()
    found = {name: value for name, value in model.state_dict().items() if name.startswith(prefix)}
    return bool(found) and all(torch.equal(value, theirs[name]) for name, value in found.items())


@torch.no_grad()
def logits(model: nn.Module, images: Tensor) -> Tensor:
    """A network's logits, whatever it wraps them in."""
    output: Any = model(images)
    return output if isinstance(output, Tensor) else output.logits


def round_trip(peer: Peer, variant: str, folder: Path, image_size: int = 64) -> RoundTrip:
    """A variant of a peer's to this package and back."""
    images = torch.randn(2, 3, image_size, image_size, generator=torch.Generator().manual_seed(1))
    theirs = randomize(peer.build(variant))
    expected = logits(theirs, images)
    opened = open_weights(peer.save(theirs, folder / "theirs"))
    assert (opened.architecture.variant, opened.architecture.num_classes) == (variant, CLASSES)
    difference = (logits(opened.build(), images) - expected).abs().max() / expected.abs().max()
    target = folder / "back" / peer.target
    convert(opened, target, peer.layout)
    before = theirs.state_dict()
    back = peer.open(variant, target)
    after = back.state_dict()
    same_bits = before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    return RoundTrip(float(difference), same_bits, torch.equal(logits(back.eval(), images), expected))


def build_timm(variant: str) -> nn.Module:
    import timm

    return timm.create_model(variant, num_classes=CLASSES)


def save_timm(model: nn.Module, folder: Path) -> Path:
    from timm.models import save_for_hf

    save_for_hf(model, str(folder))
    return folder


def open_timm(_: str, path: Path) -> nn.Module:
    import timm

    return timm.create_model(f"local-dir:{path}", pretrained=True)


def build_torchvision(variant: str) -> nn.Module:
    from torchvision import models

    return models.get_model(variant, num_classes=CLASSES)


def save_torchvision(model: nn.Module, folder: Path) -> Path:
    folder.mkdir()
    torch.save(model.state_dict(), folder / "model.pth")
    return folder / "model.pth"


def open_torchvision(variant: str, path: Path) -> nn.Module:
    model = build_torchvision(variant)
    model.load_state_dict(torch.load(path, weights_only=True))
    return model


def build_transformers(variant: str, use: str = "ForImageClassification", **options: Any) -> nn.Module:
    import transformers

    kind = "ConvNextV2" if variant.startswith("convnextv2") else "ConvNext"
    size = VARIANTS[variant].keywords
    sizes: dict[str, Any] = {"depths": list(size["depths"]), "hidden_sizes": list(size["dims"])}
    config = getattr(transformers, f"{kind}Config")(**sizes, num_labels=CLASSES, **options)
    return getattr(transformers, kind + use)(config)


def save_transformers(model: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    return folder


def open_transformers(_: str, path: Path) -> nn.Module:
    import transformers

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return transformers.AutoModelForImageClassification.from_pretrained(path)


PEERS = (
    Peer("timm", STAGED, build_timm, save_timm, "folder", open_timm),
    Peer("torchvision", TORCHVISION, build_torchvision, save_torchvision, "model.pth", open_torchvision),
    Peer("transformers", STAGED, build_transformers, save_transformers, "folder", open_transformers),
)


def to_sparse(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The layout of sparse masked pre-training, whose kernels list their positions along one axis, the column first."""
    sparse = SPARSE.from_official(weights)
    for name, tensor in sparse.items():
        if name.endswith(".kernel"):
            positions = tensor.squeeze(1).permute(1, 2, 0) if tensor.shape[1] == 1 else tensor.permute(2, 3, 1, 0)
            sparse[name] = positions.transpose(0, 1).flatten(0, 1).contiguous()
        elif "grn" in name or name.endswith(("dwconv.bias", ".1.bias")):
            sparse[name] = tensor.reshape(1, -1)
    return sparse
