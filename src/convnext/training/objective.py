"""What training minimises: mixed images and soft targets, and the loss over them."""

import torch.nn.functional as F
from torch import Tensor

from convnext.training.recipe import Recipe


class Objective:
    """The recipe's loss, and the mixing of images that goes with it."""

    def __init__(self, recipe: Recipe, num_classes: int) -> None:
        self.binary = recipe.loss == "bce"
        self.smoothing = recipe.label_smoothing
        self.num_classes = num_classes
        self.mixup = None
        if recipe.mixup or recipe.cutmix:
            from timm.data.mixup import Mixup

            self.mixup = Mixup(
                recipe.mixup, recipe.cutmix, label_smoothing=recipe.label_smoothing, num_classes=num_classes
            )

    def mix(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Mixup or cutmix, (N, 3, H, W) and (N,) to (N, 3, H, W) and soft targets (N, classes); or both as they are.

        timm's, as the paper uses it: one of the two for each batch, with equal chances. It pairs the images of a batch,
        so an odd batch loses its last one.
        """
        even = len(images) - len(images) % 2
        if self.mixup is None or not even:
            return images, labels
        return self.mixup(images[:even], labels[:even])

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The mean over a batch: logits (N, classes) in any precision, targets (N,) or (N, classes)."""
        logits = logits.float()
        hard = targets.ndim == 1  # mixing has smoothed its own
        if not self.binary:
            return F.cross_entropy(logits, targets, label_smoothing=self.smoothing if hard else 0)
        if hard:
            targets = F.one_hot(targets, self.num_classes) * (1 - self.smoothing) + self.smoothing / self.num_classes
        return F.binary_cross_entropy_with_logits(logits, targets.to(logits.dtype))
