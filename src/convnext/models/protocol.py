"""timm's model protocol for every model of this package, so that code and tools written for timm run unchanged.

Feature maps are (N, C, H, W). The methods have timm's names, arguments and results.
"""

from collections.abc import Iterable, Sequence
from functools import partialmethod
from typing import Any

import torch
from torch import Tensor, nn

from convnext.errors import UsageError
from convnext.models.layers import GlobalResponseNorm, Stage, classifier_head


class FeatureInfo(list[dict[str, Any]]):
    """Descriptions of a model's feature maps: a list of dictionaries, with the accessors of timm's class of this name.

    Each has ``num_chs``, ``reduction`` (the stride in pixels of the image), ``module`` (the name of the module that
    outputs the feature map) and ``index``.

    Args:
        entries: one per feature map.
        out_indices: the feature maps that the accessors describe; None for all.
    """

    def __init__(self, entries: Iterable[dict[str, Any]], out_indices: Sequence[int] | None = None) -> None:
        super().__init__({"index": i} | entry for i, entry in enumerate(entries))
        self.out_indices = tuple(range(len(self)) if out_indices is None else out_indices)

    def get(self, key: str, idx: int | Sequence[int] | None = None) -> Any:
        """One value of the feature map ``idx``, or a list of those at several; None for ``out_indices``."""
        if isinstance(idx, int):
            return self[idx][key]
        return [self[i][key] for i in (self.out_indices if idx is None else idx)]

    def get_dicts(self, keys: Sequence[str] | None = None, idx: Sequence[int] | None = None) -> list[dict[str, Any]]:
        """The dictionaries at several indices, or some of their keys."""
        entries = [self[i] for i in (self.out_indices if idx is None else idx)]
        return entries if keys is None else [{key: entry[key] for key in keys} for entry in entries]

    channels = partialmethod(get, "num_chs")
    reduction = partialmethod(get, "reduction")
    module_name = partialmethod(get, "module")


class Network(nn.Module):
    """The base of all models: a stem and stages, then global average pooling, norm and head.

    A subclass sets ``norm`` and ``head`` and computes a stage in :meth:`forward_stage`.

    Args:
        in_chans: channels of the images.
        num_classes: 0 without a classifier.
        features: the stages' feature maps, see :class:`FeatureInfo`.
        smallest_image: height and width in pixels that the images need at least.

    Attributes:
        num_features: channels of the last feature map.
        head_hidden_size: channels that enter the classifier.
    """

    norm: nn.Module
    head: nn.Module

    def __init__(self, in_chans: int, num_classes: int, features: list[dict[str, Any]], smallest_image: int) -> None:
        super().__init__()
        self.in_chans = in_chans
        self.num_classes = num_classes
        self.feature_info = FeatureInfo(features)
        self.num_features = self.head_hidden_size = self.feature_info[-1]["num_chs"]
        self.smallest_image = smallest_image

    def forward_stage(self, index: int, x: Tensor) -> Tensor:
        """Compute a stage from the feature map before it; the first from images."""
        raise NotImplementedError

    def drop_stages(self, count: int) -> None:
        """Remove the modules of all stages but the first ``count``."""
        raise NotImplementedError

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Regular expressions that sort parameters into layers from the input on; see ``timm.models.group_parameters``.

        Args:
            coarse: sort by stage rather than by block.
        """
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, in_chans, H, W) to logits (N, num_classes), or to features (N, C) without a classifier."""
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: Tensor) -> Tensor:
        """Images (N, in_chans, H, W) to the last stage's feature map (N, C, H / 32, W / 32), for a stem of stride 4.

        Raises:
            UsageError: the input is not a batch of images, or they are smaller than the stride.
        """
        check_image_size(x, self.smallest_image)
        x = x.contiguous(memory_format=torch.channels_last)
        for index in range(len(self.feature_info)):
            x = self.forward_stage(index, x)
        return x

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """The last feature map to logits (N, num_classes), or to the classifier's input (N, C)."""
        x = self.norm(x.mean((-2, -1)))  # (N, C)
        return x if pre_logits else self.head(x)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,  # noqa: ARG002
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """Compute the last feature map and the list of those at ``indices``, in the order of the stages.

        Args:
            x: images (N, in_chans, H, W).
            indices: the last n for a number, all for None; negative ones count from the end.
            norm: has no effect, as in timm's ConvNeXt, whose last norm comes after the pooling.
            stop_early: compute nothing after the last of ``indices``.
            output_fmt: NCHW.
            intermediates_only: return the list alone.

        Raises:
            UsageError: there is no such feature map, or the format is not NCHW.
        """
        if output_fmt != "NCHW":
            raise UsageError(f"output_fmt is {output_fmt!r}, needs 'NCHW'")
        taken = feature_indices(len(self.feature_info), indices)
        check_image_size(x, self.smallest_image)
        x = x.contiguous(memory_format=torch.channels_last)
        intermediates = []
        for index in range(max(taken) + 1 if stop_early else len(self.feature_info)):
            x = self.forward_stage(index, x)
            if index in taken:
                intermediates.append(x)
        return intermediates if intermediates_only else (x, intermediates)

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] | None = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove the stages after the last of ``indices``, the norm and the classifier; returns the indices."""
        taken = feature_indices(len(self.feature_info), indices)
        is_shorter = max(taken) + 1 < len(self.feature_info)
        if is_shorter:
            self.drop_stages(max(taken) + 1)
            self.feature_info = FeatureInfo(self.feature_info[: max(taken) + 1])
            self.num_features = self.head_hidden_size = self.feature_info[-1]["num_chs"]
        if prune_norm or is_shorter:
            self.norm = nn.Identity()
        if prune_head or is_shorter:
            self.reset_classifier(0)
        return taken

    def get_classifier(self) -> nn.Module:
        """The last linear layer; the identity without a classifier."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier by a freshly initialised one; 0 classes for none.

        Raises:
            UsageError: the number is negative, or the pooling is not the average.
        """
        if num_classes < 0 or global_pool not in (None, "avg"):
            raise UsageError(
                f"num_classes is {num_classes} and global_pool {global_pool!r}: 0 classes or more are needed, and "
                "the pooling of this model is 'avg'"
            )
        like = next(self.parameters())
        head = classifier_head(self.num_features, num_classes, init_scale=1.0)
        self.head = head.to(like.device, like.dtype).train(self.training)
        self.num_classes = num_classes

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Save the input of each block alone, and recompute the block in the backward pass."""
        for module in self.modules():
            if isinstance(module, Stage):
                module.grad_checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        """Names of GRN's scales and offsets, which have several dimensions but are not weights."""
        norms = [name for name, module in self.named_modules() if isinstance(module, GlobalResponseNorm)]
        return {f"{name}.{part}" for name in norms for part in ("gamma", "beta")}


class FeatureNet(nn.Module):
    """A model as a backbone: images (N, in_chans, H, W) to the list of its feature maps at ``out_indices``.

    Args:
        model: the model; all modules after the last of the feature maps are removed from it.
        out_indices: 0 to 3, or -1 to -4 from the end; a number for the last n; None for all four.

    Attributes:
        feature_info: channels and strides of the feature maps, see :class:`FeatureInfo`.

    Raises:
        UsageError: the model has no such feature map.
    """

    def __init__(self, model: Network, out_indices: int | Sequence[int] | None = None) -> None:
        super().__init__()
        self.out_indices = tuple(sorted(set(model.prune_intermediate_layers(out_indices, prune_norm=True))))
        self.feature_info = FeatureInfo(model.feature_info, self.out_indices)
        self.model = model

    def forward(self, x: Tensor) -> list[Tensor]:
        """Images to feature maps, the largest first."""
        return self.model.forward_intermediates(x, self.out_indices, intermediates_only=True)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Save the input of each block alone, and recompute the block in the backward pass."""
        self.model.set_grad_checkpointing(enable)


def feature_indices(count: int, indices: int | Sequence[int] | None) -> list[int]:
    """Indices of feature maps, counted from the first: all of ``count`` for None, the last n for a number.

    Raises:
        UsageError: there is no such feature map.
    """
    if indices is None:
        return list(range(count))
    wanted = list(range(count - indices, count)) if isinstance(indices, int) else list(indices)
    if (
        not wanted
        or not all(-count <= index < count for index in wanted)
        or (isinstance(indices, int) and wanted[0] < 0)
    ):
        raise UsageError(f"feature maps {indices} are asked for, and the model has {count}: 0 to {count - 1}")
    return [index % count for index in wanted]


def check_image_size(x: Tensor, smallest: int) -> None:
    """Refuse anything but a batch of images (N, C, H, W), and images smaller than the stride."""
    if x.ndim != 4:
        raise UsageError(
            f"a batch of images (N, C, H, W) is needed, {tuple(x.shape)} arrived: image[None] for a single one"
        )
    height, width = x.shape[-2:]
    if min(height, width) < smallest:
        raise UsageError(
            f"image size {height}x{width} is too small for this model (needs at least {smallest}x{smallest}): "
            f"resize the images (--image-size {smallest} or more)"
        )
