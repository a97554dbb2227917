"""What learns: the network, its running average, the optimiser and the loss scaling."""

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from convnext.device import autocast_for
from convnext.errors import UsageError
from convnext.training.build import accelerate_blocks, build, checkpoint_blocks, smallest_batch, statistics_kept
from convnext.training.distributed import Processes
from convnext.training.objective import Objective
from convnext.training.optimizer import adamw
from convnext.training.recipe import Recipe
from convnext.weights import load_weights, resolve


class Learner:
    """A network in training.

    Args:
        recipe: what decides the network, the loss and the optimiser.
        num_classes: of the data.
        device: where it learns.
        processes: those that learn together; their gradients are averaged.

    Attributes:
        model: the network.
        average: its running average, which is what is evaluated and saved as best; None without.
    """

    def __init__(self, recipe: Recipe, num_classes: int, device: torch.device, processes: Processes) -> None:
        self.recipe, self.device, self.processes = recipe, device, processes
        self.autocast = autocast_for(recipe.precision, device)
        self.objective = Objective(recipe, num_classes)
        model = build(recipe, num_classes).to(device=device, memory_format=torch.channels_last)  # pyright: ignore
        self.smallest_batch = smallest_batch(model)
        if recipe.sync_batch_norm and processes.count > 1:
            if device.type != "cuda":
                raise UsageError("sync_batch_norm works on GPUs only: leave it out on processors")
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        accelerate_blocks(model, recipe, device)
        self.model = model
        self.average = running_average(model, recipe.ema_decay) if recipe.ema_decay else None
        self.optimizer = adamw(model, recipe, recipe.lr)
        self.scaler = torch.amp.GradScaler(device.type, enabled=recipe.precision == "fp16")
        if recipe.checkpoint_activations:
            checkpoint_blocks(model)
        # Dynamic sizes, which torch would try after the second size that it sees, fail in its compiler here.
        network = torch.compile(model, dynamic=False) if recipe.compile else model
        if processes.count > 1:
            network = DistributedDataParallel(network, gradient_as_bucket_view=True)  # pyright: ignore
        self.network = network

    @property
    def evaluated(self) -> nn.Module:
        """The network that is evaluated and saved as best."""
        return self.model if self.average is None else self.average.module

    def load_start(self) -> tuple[str, ...]:
        """Take the recipe's starting weights, where it names some; returns what should be said of them.

        Raises:
            UsageError: there are no such weights, or they do not fit the network.
            RunError: they cannot be downloaded, or are damaged.
        """
        if self.recipe.weights is None:
            return ()
        if not self.processes.first:
            self.processes.wait()  # until the first one has downloaded them
        found = resolve(self.recipe.weights, self.recipe.model)
        if self.processes.first:
            self.processes.wait()
        loaded = load_weights(self.model, found.path)
        if self.average is not None:
            self.average.set(self.model)
        return (f"starting from {loaded.path}: {loaded.loaded} tensors", *found.notes, *loaded.notes)

    def set_rate(self, lr: float) -> None:
        """Set the learning rate; each group of parameters takes its part of it."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group["lr_scale"]

    def add_gradients(self, images: Tensor, labels: Tensor, weight: float, last: bool) -> Tensor:
        """Add one part's gradients to the step's.

        Args:
            images: (N, 3, H, W), normalised, on the device; none or too few for BatchNorm count for nothing.
            labels: (N,), on the device.
            weight: the part's, in the gradient.
            last: whether this is the step's last part, after which the processes average theirs.

        Returns:
            The mean loss of the part, on the device.
        """
        if len(images) < self.smallest_batch:  # the other processes wait for this one's gradients
            size = self.recipe.image_size
            images, weight = torch.zeros(self.smallest_batch, 3, size, size, device=self.device), 0.0
            labels = torch.zeros(self.smallest_batch, dtype=torch.long, device=self.device)
        images, targets = self.objective.mix(images, labels)
        if isinstance(self.network, DistributedDataParallel):
            self.network.require_backward_grad_sync = last
        with self.autocast:
            logits = self.network(images)
        loss = self.objective.loss(logits, targets)
        with statistics_kept(self.model) if self.recipe.checkpoint_activations else nullcontext():
            self.scaler.scale(loss * weight).backward()
        return loss.detach()

    def update(self, skip: Tensor) -> None:
        """Move the weights, and the running average after them.

        Args:
            skip: on the device, 1 to leave the weights as they are and 0 to move them. So a loss that is not finite
                does not spoil them before it is noticed, and its cause can still be found.
        """
        if self.recipe.clip_grad:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip_grad)
        if not self.scaler.is_enabled():  # which sets it itself, from the gradients
            self.optimizer.found_inf = skip  # pyright: ignore[reportAttributeAccessIssue]
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        if self.average is not None:
            self.average.update(self.model)

    def is_finite(self) -> bool:
        """Whether every weight is a finite number."""
        return bool(torch.nn.utils.get_total_norm(self.model.parameters(), float("inf")).isfinite())

    def state_dict(self, finished: bool) -> dict[str, Any]:
        """All that it takes to go on; of a finished training only the weights, a third of it."""
        state: dict[str, Any] = {"model": self.model.state_dict()}
        if self.average is not None:
            state["average"] = self.average.module.state_dict()
        if not finished:
            state |= {"optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict()}
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from where :meth:`state_dict` was."""
        self.model.load_state_dict(state["model"])
        if self.average is not None:
            self.average.module.load_state_dict(state["average"])
        if "optimizer" in state:
            self.optimizer.load_state_dict(state["optimizer"])
            self.scaler.load_state_dict(state["scaler"])


def running_average(model: nn.Module, decay: float) -> Any:
    """timm's exponential moving average of all weights and buffers, as the paper's code takes it after each step."""
    from timm.utils.model_ema import ModelEmaV3

    return ModelEmaV3(model, decay=decay)
