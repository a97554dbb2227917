"""Inference: the fastest variant of a model on this machine, found by measuring, or one that pays within a job."""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Self

import torch
from torch import Tensor, nn

from convnext.acceleration import enabled
from convnext.acceleration.candidates import (
    COMPILE_SECONDS,
    PRECISIONS,
    TOLERANCE,
    Candidate,
    Variant,
    candidates,
    kernels,
)
from convnext.acceleration.clock import alternate, quartiles, times_as_fast
from convnext.acceleration.cpu.inference_kernels import BUILD_SECONDS, can_fuse, is_built
from convnext.acceleration.int8 import agreement
from convnext.acceleration.search_report import NO_TIME, Report, Trial, key_of, recall, remember
from convnext.errors import ConvNeXtError, RunError, UsageError, reason, unknown_name

ROUNDS, MAX_SECONDS = 9, 6.0  # of measuring a variant beside the fastest so far
MIN_AGREEMENT = 0.99
MIN_IMAGES = 16  # of a job for which another variant can pay
PROBE_IMAGES = 4  # at most, on which a job's variant is measured
GAIN = 0.2  # of a job's time, a cautious guess of what a faster variant saves
PACK_SECONDS = 0.5  # about what packing the weights for the kernels takes
SEARCH_SECONDS = 2.5 * COMPILE_SECONDS  # about what a search takes


class Optimized(nn.Module):
    """A model in a faster variant, for inference only.

    Takes fp32 images (N, C, H, W) in any number, on the device of the example; gives the model's outputs in fp32.

    Attributes:
        report: the variants that were tried, with their figures; ``print(model.report)``.
    """

    def __init__(self, variant: Variant, plain: nn.Module, example: Tensor, report: Report) -> None:
        super().__init__()
        self.variant, self.report = variant, report
        self.shape, self.device = tuple(example.shape), example.device
        self.plain: Callable[[Tensor], Tensor] = plain.forward  # for shapes that the variant was not made for
        self.training = False

    def forward(self, images: Tensor) -> Tensor:
        """Outputs of images, without gradients."""
        if images.ndim != 4 or images.shape[1] != self.shape[1] or images.device != self.device:
            raise UsageError(
                f"images (N, {self.shape[1]}, H, W) on {self.device} are needed, {tuple(images.shape)} on "
                f"{images.device} arrived"
            )
        with torch.inference_mode():
            outputs = self.outputs(images.float())
        return outputs if torch.is_inference_mode_enabled() else outputs.clone()  # a tensor that may be trained on

    def outputs(self, images: Tensor) -> Tensor:
        """The same within inference mode; a variant made for one shape gets its images padded to it."""
        size, count = self.shape[0], len(images)
        if not self.variant.fixed:
            return self.variant.run(images)
        if images.shape[1:] != self.shape[1:] or not count:
            return self.plain(images)
        return torch.cat([run_padded(self.variant, some, size) for some in images.split(size)])

    def train(self, mode: bool = True) -> Self:
        """Refuse training mode.

        Raises:
            UsageError: ``mode`` is true.
        """
        if mode:
            raise UsageError("an optimised model only infers: train the model that it was made of")
        return self

    def extra_repr(self) -> str:
        return f"{self.report.choice}, {self.report.precision}"


def run_padded(variant: Variant, images: Tensor, size: int) -> Tensor:
    """The outputs of at most ``size`` images by a variant for just as many."""
    whole = torch.zeros((size, *images.shape[1:]), device=images.device)
    whole[: len(images)] = images
    return variant.run(whole)[: len(images)]


def fastest(
    model: nn.Module,
    example: Tensor,
    precision: str = "auto",
    *,
    seconds: float = 120,
    calibration: Tensor | None = None,
    force: bool = False,
    experimental: bool = False,
) -> Optimized:
    """Find the variant of a model that infers fastest on this machine.

    Variants are tried one by one, each checked against the model's own outputs and measured beside the fastest so far.
    The choice is remembered for this machine and models of this structure: the next call only makes and checks it.
    The arguments and errors are those of :func:`convnext.accelerate`; the model is put into evaluation mode.
    """
    check(example, precision)
    model = model.eval()
    try:
        with torch.inference_mode():
            expected = model(example)
    except ConvNeXtError:
        raise
    except Exception as error:
        raise UsageError(
            f"the model cannot take the example of shape {tuple(example.shape)} on {example.device}: {reason(error)}"
        ) from error
    if not isinstance(expected, Tensor) or not expected.isfinite().all():
        raise UsageError("the model's outputs of the example are not finite numbers in one tensor")
    search = Search(model, example, expected, calibration, force)
    found = candidates(model, example.device, precision, calibration, experimental)
    key = key_of(model, example, precision + " forced" * force + " experimental" * experimental)
    variant, report = search.again(found, key, seconds) or search.over(found, precision, seconds)
    if not report.remembered:
        remember(key, report)
    return Optimized(variant, model, example, report)


def check(example: Tensor, precision: str) -> None:
    """Refuse a precision that is unknown, and an example that nothing can be measured with."""
    if precision not in PRECISIONS:
        raise unknown_name("precision", precision, PRECISIONS)
    if not isinstance(example, Tensor) or example.ndim != 4 or not example.numel() or example.dtype != torch.float32:
        arrived = f"{example.dtype} {tuple(example.shape)}" if isinstance(example, Tensor) else type(example).__name__
        raise UsageError(f"the example must be images (N, C, H, W) in fp32, one or more; {arrived} arrived")


def fastest_for_job(model: nn.Module, example: Tensor, images: int, seconds: float) -> nn.Module:
    """Find a variant in fp32 that pays within a job of so many images; the model itself where none does.

    A few images are timed first. If the job takes so much longer that a faster variant pays for its making, it is made,
    checked and timed on them: this package's kernels for ConvNeXt V1, which take batches of any size; for other models
    what :func:`fastest` finds, which pays after thousands of images. On a GPU, and in other dtypes, nothing is tried.

    Args:
        model: in evaluation mode.
        example: a batch as it will come.
        images: how many there will be.
        seconds: that the making may take.
    """
    dtypes = {value.dtype for value in model.state_dict().values() if value.is_floating_point()}
    if images < MIN_IMAGES or not enabled() or example.device.type != "cpu" or dtypes != {torch.float32}:
        return model
    probe = example[: min(PROBE_IMAGES, images // MIN_IMAGES)].contiguous()
    with torch.inference_mode():
        start = time.perf_counter()
        expected = model(probe)
        saved = min(seconds, GAIN * images / len(probe) * (time.perf_counter() - start))
    if not can_fuse(model):
        return fastest(model, example.contiguous(), "fp32", seconds=SEARCH_SECONDS) if saved > SEARCH_SECONDS else model
    if saved < PACK_SECONDS or saved < PACK_SECONDS + (0 if is_built() else BUILD_SECONDS):
        return model
    search = Search(model, probe, expected)
    candidate = Candidate("kernels", "fp32", lambda model: kernels(model, torch.float32))
    variant, trial = search.made(candidate)
    if variant is None or trial.dropped:
        return model
    ours, plain = search.measured(variant, Variant(model), rounds=3, warm_up=0, seconds=PACK_SECONDS)
    if times_as_fast(ours, plain) <= 1:
        return model
    rows = (search.timed(Trial("eager", "fp32", difference=0.0), plain), search.timed(trial, ours))
    return Optimized(variant, model, example, Report("kernels", "fp32", rows, len(probe), seconds))


class Search:
    """The variants of one model, tried on an example.

    Args:
        model: the model.
        example: images.
        expected: the model's outputs of them.
        calibration: more images, for int8.
        force: take int8 however often it disagrees.
    """

    def __init__(
        self,
        model: nn.Module,
        example: Tensor,
        expected: Tensor,
        calibration: Tensor | None = None,
        force: bool = False,
    ) -> None:
        self.model, self.example, self.expected = model, example, expected
        self.calibration, self.force = calibration, force

    def again(self, found: list[Candidate], key: str, seconds: float) -> tuple[Variant, Report] | None:
        """Make an earlier call's choice; None where there is none, or it fails now.

        Nor is it made where that call's time was up before it had tried all, and this one has more.
        """
        report = recall(key)
        if report is None or (report.is_cut_short and seconds > report.seconds):
            return None
        for candidate in found:
            if (candidate.name, candidate.precision) == (report.choice, report.precision):
                variant, trial = self.made(candidate)
                if variant and not trial.dropped:
                    figures = replace(trial, images_per_second=report.chosen.images_per_second)
                    rows = tuple(figures if row == report.chosen else row for row in report.tried)
                    return variant, replace(report, tried=rows)
        return None

    def over(self, found: list[Candidate], precision: str, seconds: float) -> tuple[Variant, Report]:
        """Try all candidates and give the fastest.

        Raises:
            RunError: there is none.
        """
        start, rows = time.perf_counter(), []
        best: tuple[Variant, Trial] | None = None
        for candidate in found:
            if rows and time.perf_counter() - start + candidate.seconds > seconds:
                rows.append(Trial(candidate.name, candidate.precision, dropped=NO_TIME))
                continue
            variant, trial = self.made(candidate)
            if variant and not trial.dropped:
                times = self.measured(variant, best[0] if best else None)
                trial = self.timed(trial, times[0])
                is_wanted = candidate.precision != "fp32" or precision != "bf16"
                if is_wanted and (best is None or times_as_fast(*times) > 1):
                    best = variant, trial
            rows.append(trial)
        if best is None:
            raise RunError("no variant of the model gives its outputs: " + "; ".join(map(str, rows)))
        return best[0], Report(best[1].name, best[1].precision, tuple(rows), len(self.example), seconds)

    def made(self, candidate: Candidate) -> tuple[Variant | None, Trial]:
        """Make a variant and compare it with the model; None where it cannot be made."""
        trial, start = Trial(candidate.name, candidate.precision), time.perf_counter()
        try:
            variant = candidate.make(self.model)
            with torch.inference_mode():
                outputs = variant.run(self.example)
                difference = (outputs - self.expected).abs().max() / self.expected.abs().max().clamp(min=1e-30)
                agrees = self.agreement(variant, outputs, candidate.precision)
        except Exception as error:  # of any library, at any depth: the variant is left out, the others remain
            return None, replace(trial, seconds=time.perf_counter() - start, dropped=reason(error))
        trial = replace(trial, agreement=agrees, seconds=time.perf_counter() - start)
        if not difference.isfinite():
            return variant, replace(trial, dropped="its outputs are not finite")
        trial = replace(trial, difference=difference.item())
        if difference > TOLERANCE[candidate.precision]:
            trial = replace(trial, dropped=f"it differs by more than {TOLERANCE[candidate.precision]:g}")
        if candidate.precision == "int8" and not self.force and (agrees is None or agrees < MIN_AGREEMENT):
            trial = replace(trial, dropped=f"top-1 agrees on fewer than {100 * MIN_AGREEMENT:g} % (force takes it)")
        return variant, trial

    def agreement(self, variant: Variant, outputs: Tensor, precision: str) -> float | None:
        """The fraction of images with the model's top-1; for int8, of those that calibrated it."""
        if self.expected.ndim != 2 or not self.expected.shape[1]:
            return None
        pairs = [(self.expected, outputs)]
        if precision == "int8" and self.calibration is not None:
            some = self.calibration.split(len(self.example))
            pairs = [(self.model(images), variant.run(images)) for images in some]
        return agreement(*(torch.cat(logits) for logits in zip(*pairs, strict=True)))

    def measured(
        self,
        variant: Variant,
        best: Variant | None,
        rounds: int = ROUNDS,
        warm_up: int = 1,
        seconds: float = MAX_SECONDS,
    ) -> tuple[list[float], list[float]]:
        """Seconds of each round of a variant, and of the best one before it, interleaved."""

        def call(one: Variant) -> Callable[[], Tensor]:
            return lambda: one.run(self.example)

        calls = {"variant": call(variant)} | ({"best": call(best)} if best else {})
        with torch.inference_mode():
            times = alternate(calls, rounds, warm_up, seconds)
        return times["variant"], times.get("best", times["variant"])

    def timed(self, trial: Trial, times: list[float]) -> Trial:
        """A trial with its speed."""
        return replace(trial, images_per_second=len(self.example) / quartiles(times)[1])
