"""Maps of what in an image speaks for a class: Grad-CAM, and one that needs no gradients."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convnext.errors import RunError, UsageError
from convnext.explanation.feature_maps import as_map, map_layer, watching

WINDOWS = 8  # steps of the hiding square along a side; it is two of them long
BATCH = 32  # images that are computed at a time while squares are hidden

Labels = Tensor | Sequence[int] | None


def grad_cam(model: nn.Module, images: Tensor, labels: Labels = None) -> Tensor:
    """Grad-CAM (arXiv 1610.02391): where the last map of a network speaks for a class.

    The channels of the map are added up, each weighted by how much the class's logit grows with it on average; what
    speaks against the class is cut off. Of images so small that the last map has less than 4 x 4 positions, the last
    one that has as many is taken.

    It costs a forward pass, of which only what follows the map is recorded, and the backward pass from there; the first
    call for a network and a size costs one more. The model is left as it is, and threads may share it. Both are why
    this is no captum: its LayerGradCam records the whole forward pass, and mixes up what threads compute. Give the
    network itself, not a compiled one, which would be compiled anew.

    Args:
        model: in evaluation mode, from images to logits (N, classes).
        images: prepared, (N, C, H, W).
        labels: classes (N,) to explain; by default the most probable one of each image.

    Returns:
        (N, H, W), float32, from 0 to 1: each image's map is divided by its largest value. All zeros where nothing
        speaks for the class.

    Raises:
        UsageError: the model is in training mode, without gradients or without maps; or a label is out of range.
        RunError: its outputs are not finite.
    """
    if model.training:
        raise UsageError("the network is in training mode: call model.eval() first")
    leaf: Tensor | None = None

    def see(_: str, output: Tensor) -> Tensor:
        nonlocal leaf
        leaf = output.detach().requires_grad_()
        torch.set_grad_enabled(True)  # from here to the logits
        return leaf.clone()  # what follows may work in place

    with torch.inference_mode(False), torch.no_grad():
        check_images(images)
        name = map_layer(model, images)
        with watching({name: model.get_submodule(name)}, see):
            logits = model(images)
        assert leaf is not None, f"{name} was not called"
        classes = classes_of(logits.detach(), labels)
        (gradient,) = torch.autograd.grad(logits.gather(1, classes[:, None]).sum(), leaf)
        torch.set_grad_enabled(False)
        size = (images.shape[2], images.shape[3])
        values, slopes = as_map(leaf.detach(), size), as_map(gradient, size)
        assert values is not None
        assert slopes is not None
        weights = slopes.float().mean((2, 3), keepdim=True)
        maps = (weights * values.float()).sum(1, keepdim=True).relu()  # (N, 1, h, w)
        maps = F.interpolate(maps, size, mode="bilinear", align_corners=False)[:, 0]
        largest = maps.amax((1, 2), keepdim=True)
        return maps / largest.where(largest > 0, 1)


def occlusion(model: Callable[[Tensor], Tensor], images: Tensor, labels: Labels = None) -> Tensor:
    """Occlusion (arXiv 1311.2901): by how much a class's probability falls where a part of an image is hidden.

    A square of a quarter of the image's side moves over it in steps of an eighth and hides what is below it in the mean
    colour; each position has the mean of the squares over it. By captum. Of the maps without gradients it is the one
    that needs no seed, whose scale means something by itself (percentage points), and that looks into nothing: RISE
    needs thousands of random masks where this takes 49, Score-CAM needs the maps inside.

    Args:
        model: anything from images to logits (N, classes): a network, an exported or quantised one.
        images: prepared, (N, C, H, W).
        labels: classes (N,) to explain; by default the most probable one of each image.

    Returns:
        (N, H, W), float32, from -1 to 1; below 0 where hiding makes the class more probable.

    Raises:
        UsageError: captum is not installed, or a label is out of range.
        RunError: the outputs are not finite.
    """
    try:
        from captum.attr import Occlusion
    except ImportError as error:
        raise UsageError("the map by occlusion needs captum: pip install 'convnext[explain]'") from error

    def probabilities(hidden: Tensor) -> Tensor:
        return model(hidden).float().softmax(1)

    with torch.inference_mode():
        check_images(images)
        classes = classes_of(model(images), labels)
        channels, *sides = images.shape[1:]
        steps = [-(-side // WINDOWS) for side in sides]
        method: Any = Occlusion(probabilities)
        falls = method.attribute(
            images,
            sliding_window_shapes=(channels, *(min(2 * step, side) for step, side in zip(steps, sides, strict=True))),
            strides=(channels, *steps),
            baselines=0,  # the mean colour, in images that are normalised
            target=classes,
            perturbations_per_eval=max(1, BATCH // len(images)),
        )
    return falls.float().mean(1).clone()


def check_images(images: Tensor) -> None:
    """Refuse what is no batch of images."""
    if images.ndim != 4 or not len(images):
        raise UsageError(
            f"a batch of prepared images (N, C, H, W) is needed, {tuple(images.shape)} arrived: image[None] for one"
        )


def classes_of(logits: Tensor, labels: Labels) -> Tensor:
    """The classes (N,) to explain: those that are asked for, or the most probable ones."""
    if logits.ndim != 2:
        raise UsageError(f"logits (N, classes) are needed, the network gives {tuple(logits.shape)}")
    if not logits.isfinite().all():
        raise RunError("the outputs of the network are not finite: its weights are damaged")
    if labels is None:
        return logits.argmax(1)
    classes = torch.as_tensor(labels, device=logits.device)
    number = logits.shape[1]
    if classes.shape != logits.shape[:1] or classes.is_floating_point():
        raise UsageError(f"labels are {labels!r:.60}, needs a whole number for each of the {len(logits)} images")
    if not bool(((classes >= 0) & (classes < number)).all()):
        raise UsageError(f"labels are {classes.tolist()!r:.60}, needs numbers from 0 to {number - 1}")
    return classes.long()
