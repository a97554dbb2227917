"""The state that training changes: model, EMA, optimizer and loss scaling; and one step of it."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from convnext.models.layers import frozen_batch_norm

Loss = Callable[[Tensor, Tensor], Tensor]  # of logits (N, classes) and targets (N,) or (N, classes): the batch's mean


@dataclass
class TrainState:
    """Everything that a step changes, and how it does."""

    model: nn.Module  # on its device
    network: nn.Module  # the same, compiled and distributed over the ranks: to call in the forward pass
    ema: Any  # timm's ModelEmaV3, which is then evaluated and saved as best; or None
    optimizer: torch.optim.Optimizer  # its groups have an ``lr_scale``, which multiplies the learning rate
    scaler: torch.amp.GradScaler  # of the loss, for fp16
    autocast: AbstractContextManager[Any]
    loss: Loss
    mixup: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None  # timm's mixup and cutmix
    clip_grad: float  # maximum norm of the gradient; 0 for no limit
    is_recomputed: bool  # blocks are recomputed in the backward pass
    min_batch: int  # 2 with BatchNorm, which has no statistics of one image
    image_size: int  # pixels a side in training

    @property
    def evaluated(self) -> nn.Module:
        """The model that is evaluated and saved as best."""
        return self.model if self.ema is None else self.ema.module

    def set_learning_rate(self, lr: float) -> None:
        """Set the learning rate of every group."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group["lr_scale"]

    def backward(self, images: Tensor, labels: Tensor, weight: float, is_last: bool) -> Tensor:
        """Add the gradients of one micro-batch to those of the step.

        Args:
            images: (N, 3, H, W), normalised, on the device; fewer than ``min_batch`` contribute nothing.
            labels: (N,), on the device.
            weight: of the micro-batch in the gradient.
            is_last: True for the last micro-batch of the step, after which the ranks average their gradients.

        Returns:
            The micro-batch's mean loss, on the device.
        """
        if len(images) < self.min_batch:  # the other ranks wait for this one's gradients
            shape, device, weight = (self.min_batch, 3, self.image_size, self.image_size), images.device, 0.0
            images, labels = torch.zeros(shape, device=device), torch.zeros(shape[0], dtype=torch.long, device=device)
        images, targets = self.mix(images, labels)
        if isinstance(self.network, DistributedDataParallel):
            self.network.require_backward_grad_sync = is_last
        with self.autocast:
            logits = self.network(images)
        loss = self.loss(logits.float(), targets)
        with frozen_batch_norm(self.model) if self.is_recomputed else nullcontext():
            self.scaler.scale(loss * weight).backward()
        return loss.detach()

    def mix(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Mixup or cutmix, (N, 3, H, W) and (N,) to (N, 3, H, W) and soft targets (N, classes); or both unchanged.

        As in the paper, each batch gets one of the two with equal probability. timm mixes pairs, so the last image of
        an odd batch is dropped.
        """
        even = len(images) - len(images) % 2
        if self.mixup is None or not even:
            return images, labels
        return self.mixup(images[:even], labels[:even])

    def step(self, skip: Tensor) -> None:
        """Update the weights with the accumulated gradients, then the EMA.

        Args:
            skip: on the device, 1 to leave the weights unchanged, else 0: a loss that is not finite must not spoil
                them before the next synchronization notices it, so that its cause can still be found.
        """
        if self.clip_grad:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_grad)
        if not self.scaler.is_enabled():  # an enabled scaler sets it from the gradients
            self.optimizer.found_inf = skip  # pyright: ignore[reportAttributeAccessIssue]
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        if self.ema is not None:
            self.ema.update(self.model)

    def is_finite(self) -> bool:
        """True if every weight is finite."""
        return bool(torch.nn.utils.get_total_norm(self.model.parameters(), float("inf")).isfinite())

    def state_dict(self, is_finished: bool) -> dict[str, Any]:
        """Everything needed to resume; of a finished training only the weights, a third of it."""
        state: dict[str, Any] = {"model": self.model.state_dict()}
        if self.ema is not None:
            state["average"] = self.ema.module.state_dict()
        if not is_finished:
            state |= {"optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict()}
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from what :meth:`state_dict` returned."""
        self.model.load_state_dict(state["model"])
        if self.ema is not None:
            self.ema.module.load_state_dict(state["average"])
        if "optimizer" in state:
            self.optimizer.load_state_dict(state["optimizer"])
            self.scaler.load_state_dict(state["scaler"])


def classification_loss(logits: Tensor, targets: Tensor, smoothing: float, is_binary: bool) -> Tensor:
    """Mean cross-entropy, or binary cross-entropy, of logits (N, classes) and targets (N,) or (N, classes).

    Label smoothing applies to hard targets only: mixup smooths its own.
    """
    is_hard = targets.ndim == 1
    if not is_binary:
        return F.cross_entropy(logits, targets, label_smoothing=smoothing if is_hard else 0)
    if is_hard:
        classes = logits.shape[1]
        targets = F.one_hot(targets, classes) * (1 - smoothing) + smoothing / classes
    return F.binary_cross_entropy_with_logits(logits, targets.to(logits.dtype))


def first_bad_module(model: nn.Module, images: Tensor, autocast: AbstractContextManager[Any]) -> str:
    """Describe what first gives a value that is not finite in the forward pass of a batch (N, 3, H, W)."""
    if not torch.isfinite(images).all():
        return "the images themselves are not finite"
    found: list[str] = []

    def watch(name: str, module: nn.Module) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            if not found and isinstance(output, Tensor) and not torch.isfinite(output).all():
                found.append(name)

        return module.register_forward_hook(hook)

    hooks = [watch(name, module) for name, module in model.named_modules() if name]
    try:
        with torch.no_grad(), autocast:
            model(images)
    finally:
        for hook in hooks:
            hook.remove()
    if not found:
        return "every module's output is finite, the loss itself is not"
    weights = model.get_submodule(found[0]).parameters()
    cause = "" if all(torch.isfinite(weight).all() for weight in weights) else ", whose weights are not finite"
    return f"the first module with an output that is not finite is {found[0]}{cause}"
