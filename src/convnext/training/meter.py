"""What an epoch adds up to, over all processes: loss, images, time, and time spent waiting for data."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from convnext.training.distributed import Processes

MUCH_WAITING = 0.2  # of the time


class Meter:
    """The sums of an epoch under way.

    The loss is summed on the device; numbers that every process knows alike are those of the last :meth:`look`.
    """

    def __init__(self, device: torch.device, processes: Processes) -> None:
        self.processes = processes
        self.own = torch.zeros(2, device=device)  # this process's summed loss and images since the last look
        self.bad_step = torch.full((), math.inf, device=device)  # the first with a loss that is not finite
        self.loss, self.images, self.own_images, self.earlier_images = 0.0, 0, 0, 0
        self.unreadable: list[str] = []
        self.seconds, self.waited = 0.0, 0.0  # of earlier sessions, until the epoch ends
        self.start = time.perf_counter()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time inside as waiting for data."""
        start = time.perf_counter()
        yield
        self.waited += time.perf_counter() - start

    def add(self, loss: Tensor, images: int, step: int, unreadable: list[str]) -> None:
        """Add one part of a step: its mean ``loss`` over ``images``."""
        if images:
            self.own += torch.stack((loss * images, torch.full_like(loss, images)))
            self.bad_step = torch.where(loss.isfinite(), self.bad_step, self.bad_step.clamp(max=step))
        self.own_images += images
        self.unreadable += unreadable

    @property
    def is_bad(self) -> Tensor:
        """On the device: 1 after a loss that is not finite, else 0."""
        return self.bad_step.isfinite().float()

    def look(self, stop: bool) -> bool:
        """Add up over all processes; returns whether any of them was asked to stop."""
        sums = torch.cat((self.own, self.own.new_tensor([float(stop)])))
        loss, images, stops = self.processes.add(sums).tolist()
        self.own.zero_()
        self.loss += loss
        self.images += round(images) if math.isfinite(images) else 0
        return stops > 0

    @property
    def mean_loss(self) -> float:
        """Over the images until the last look."""
        return self.loss / max(1, self.images)

    @property
    def elapsed(self) -> float:
        """Seconds in training, earlier sessions included."""
        return self.seconds + time.perf_counter() - self.start

    @property
    def images_per_second(self) -> float:
        """Over all processes, which have about the same number each, and all sessions."""
        return (self.earlier_images + self.processes.count * self.own_images) / max(self.elapsed, 1e-9)

    @property
    def data_wait(self) -> float:
        """The part of the time that went into waiting for data."""
        return self.waited / max(self.elapsed, 1e-9)

    @property
    def waits_for_data(self) -> bool:
        """Whether that part is so large, and the time so long, that the user should know."""
        return self.data_wait > MUCH_WAITING and self.waited > 10

    def state_dict(self) -> dict[str, Any]:
        """The sums at the last look."""
        return {
            "loss": self.loss,
            "images": self.images,
            "unreadable": list(self.unreadable),
            "seconds": self.elapsed,
            "waited": self.waited,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with the sums of an earlier session; they are those of all processes, the names the first one's."""
        self.loss, self.images = state["loss"], state["images"]
        self.unreadable = list(state["unreadable"]) if self.processes.first else []
        self.seconds, self.waited, self.earlier_images = state["seconds"], state["waited"], state["images"]
