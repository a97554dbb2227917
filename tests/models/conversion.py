"""Weights for comparisons with other libraries' models."""

import torch
from torch import Tensor, nn


def from_timm(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """timm's keys in the official layout."""
    names = {}
    for name, tensor in weights.items():
        key = name.replace("head.norm.", "norm.").replace("head.fc.", "head.")
        key = key.replace(".blocks.", ".").replace(".conv_dw.", ".dwconv.").replace(".mlp.fc", ".pwconv")
        key = key.replace(".mlp.grn.weight", ".grn.gamma").replace(".mlp.grn.bias", ".grn.beta")
        if key.startswith("stem."):
            key = f"downsample_layers.0.{key.removeprefix('stem.')}"
        elif ".downsample." in key:
            _, stage, _, rest = key.split(".", 3)
            key = f"downsample_layers.{stage}.{rest}"
        if ".grn." in key:
            names[key] = tensor.view(1, 1, 1, -1)
        else:
            names[key] = tensor.flatten(1) if ".pwconv" in key and tensor.ndim == 4 else tensor
    return names


def randomize(model: nn.Module) -> None:
    """Weights at which every layer matters: LayerScale of about 1, GRN and biases other than 0."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(1 if name.endswith("gamma") and parameter.ndim == 1 else 0, 0.05)
