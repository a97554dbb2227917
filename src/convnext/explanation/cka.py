"""Linear CKA: how alike two sets of features of the same images are, from batches.

Sources: Kornblith et al. 2019 (arXiv 1905.00414) for CKA; Nguyen et al. 2021 (arXiv 2010.15327) for its minibatch form,
whose estimator of HSIC (Song et al. 2012) is unbiased, so that batches add up.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from convnext.errors import RunError, UsageError

LEAST_BATCH = 4  # images; the unbiased estimator divides by N - 3
BATCH_SIZE = 32


class MinibatchCKA:
    """Linear CKA between two lists of features, from batches: the same images in both lists.

    What a batch leaves behind is a number for each pair, so that memory depends on the batch alone.
    """

    def __init__(self) -> None:
        self.cross = self.first = self.second = torch.zeros((), dtype=torch.float64)
        self.images = 0

    def add(self, first: Sequence[Tensor], second: Sequence[Tensor]) -> None:
        """Add a batch by the :func:`centred_gram` matrices (N, N) of each list's features."""
        ours, theirs = (torch.stack(list(grams)).flatten(1) for grams in (first, second))  # (features, N * N)
        count = math.isqrt(ours.shape[1])
        weight = count / (count * (count - 3))  # the estimator's, by the batch's share of all images
        self.cross = self.cross + weight * (ours @ theirs.T)
        self.first = self.first + weight * ours.square().sum(1)
        self.second = self.second + weight * theirs.square().sum(1)
        self.images += count

    def values(self) -> Tensor:
        """CKA between each of the first list and each of the second, float64; NaN where features do not vary."""
        scale = (self.first[:, None] * self.second).sqrt()
        return torch.where(scale > 0, self.cross / scale, torch.nan)


def centred_gram(features: Tensor) -> Tensor:
    """The Gram matrix (N, N) of features (N, ...), float64, centred so that products of two estimate HSIC unbiasedly.

    The diagonal is 0, and every row and column adds up to 0. The mean over the images is taken off beforehand: the
    result does not depend on it, but rounding does.
    """
    count = len(features)
    if count < LEAST_BATCH:
        raise UsageError(f"{count} images are too few to compare features by, needs {LEAST_BATCH} or more at a time")
    flat = features.detach().flatten(1).float() if features.dtype != torch.float64 else features.detach().flatten(1)
    flat = flat - flat.mean(0)
    if not math.isfinite(flat.abs().max()):
        raise RunError("features are not finite: the network's weights are damaged")
    gram = (flat @ flat.T).double().cpu().fill_diagonal_(0)
    rows = gram.sum(1) / (count - 2)
    centred = gram - rows[:, None] - rows + gram.sum() / ((count - 1) * (count - 2))
    return centred.fill_diagonal_(0)


def evenly(count: int, most: int = BATCH_SIZE) -> list[int]:
    """The sizes of batches of nearly equal size, of at most ``most``: a small last one would be a noisy estimate."""
    number = max(1, math.ceil(count / most))
    return [count // number + (i < count % number) for i in range(number)]
