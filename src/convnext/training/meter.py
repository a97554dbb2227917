"""The sums of an epoch over all ranks: loss, images, time, and time spent waiting for data."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from convnext.training.distributed import Ranks

MAX_DATA_WAIT = 0.2  # fraction of the time in training; above it, the user is told
MIN_WAIT_SECONDS = 10


class Meter:
    """The sums of an epoch under way.

    The loss is summed on the device. ``loss`` and ``images`` are the same on all ranks: those of the last :meth:`sync`.
    """

    def __init__(self, device: torch.device, ranks: Ranks, state: dict[str, Any] | None = None) -> None:
        """Begin with zeros, or with the ``state_dict`` of an earlier session: all ranks' sums, and rank 0's names."""
        self.ranks, state = ranks, state or {}
        self.own = torch.zeros(2, device=device)  # this rank's summed loss and images since the last sync
        self.bad_step = torch.full((), math.inf, device=device)  # the first with a loss that is not finite
        self.loss, self.images = state.get("loss", 0.0), state.get("images", 0)
        self.own_images, self.earlier_images = 0, self.images
        self.unreadable: list[str] = list(state.get("unreadable", ())) if ranks.is_main else []
        self.waited = state.get("waited", 0.0)  # seconds
        self.start = time.perf_counter() - state.get("seconds", 0.0)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time inside the block as waiting for data."""
        start = time.perf_counter()
        yield
        self.waited += time.perf_counter() - start

    def add(self, loss: Tensor, images: int, step: int, unreadable: list[str]) -> None:
        """Add a micro-batch: its mean ``loss`` over ``images``."""
        if images:
            self.own += torch.stack((loss * images, torch.full_like(loss, images)))
            self.bad_step = torch.where(loss.isfinite(), self.bad_step, self.bad_step.clamp(max=step))
        self.own_images += images
        self.unreadable += unreadable

    @property
    def is_bad(self) -> Tensor:
        """On the device: 1 after a loss that is not finite, else 0."""
        return self.bad_step.isfinite().float()

    def sync(self, stop: bool) -> bool:
        """Sum over all ranks; returns True if any of them passed ``stop``."""
        sums = torch.cat((self.own, self.own.new_tensor([float(stop)])))
        loss, images, stops = self.ranks.sum(sums).tolist()
        self.own.zero_()
        self.loss += loss
        self.images += round(images) if math.isfinite(images) else 0
        return stops > 0

    @property
    def mean_loss(self) -> float:
        """Over the images until the last sync."""
        return self.loss / max(1, self.images)

    @property
    def elapsed(self) -> float:
        """Seconds in training, earlier sessions included."""
        return time.perf_counter() - self.start

    @property
    def images_per_second(self) -> float:
        """Over all ranks, which have about the same number each, and all sessions."""
        return (self.earlier_images + self.ranks.world_size * self.own_images) / max(self.elapsed, 1e-9)

    @property
    def data_wait(self) -> float:
        """The fraction of the time spent waiting for data."""
        return self.waited / max(self.elapsed, 1e-9)

    @property
    def is_data_bound(self) -> bool:
        """True if so much time was spent waiting for data that the user should know."""
        return self.data_wait > MAX_DATA_WAIT and self.waited > MIN_WAIT_SECONDS

    def state_dict(self) -> dict[str, Any]:
        """The sums at the last sync."""
        sums = {"loss": self.loss, "images": self.images, "unreadable": list(self.unreadable)}
        return sums | {"seconds": self.elapsed, "waited": self.waited}
