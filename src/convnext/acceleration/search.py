"""`optimize`: a network in, its fastest equivalent for inference on this machine out, found by measuring."""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Self

import torch
from torch import Tensor, nn

from convnext.acceleration.candidates import PRECISIONS, TOLERANCE, Candidate, Form, candidates
from convnext.acceleration.choice_cache import key_of, remember, remembered
from convnext.acceleration.clock import alternate, quartiles, times_as_fast
from convnext.acceleration.int8 import agreement
from convnext.acceleration.search_report import TOO_LATE, Report, Tried, report_from
from convnext.errors import ConvNeXtError, RunError, UsageError, reason, unknown_name

ROUNDS = 9
SECONDS_OF_ROUNDS = 6  # of one form beside the fastest so far
LEAST_AGREEMENT = 0.99


class Optimized(nn.Module):
    """A network in the form that is fastest here, for inference alone.

    Takes fp32 images (N, C, H, W) in any number, on the device of the example; gives the network's outputs in fp32.

    Attributes:
        report: what was tried, with its figures; ``print(network.report)``.
    """

    def __init__(self, form: Form, plain: nn.Module, example: Tensor, report: Report) -> None:
        super().__init__()
        self.form, self.report = form, report
        self.shape, self.device = tuple(example.shape), example.device
        self.plain: Callable[[Tensor], Tensor] = plain.forward  # for shapes that the form was not made for
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
        """The same within inference mode; a form made for one shape gets its images padded to it."""
        size, count = self.shape[0], len(images)
        if not self.form.fixed:
            return self.form.run(images)
        if images.shape[1:] != self.shape[1:] or not count:
            return self.plain(images)
        return torch.cat([run_padded(self.form, some, size) for some in images.split(size)])

    def train(self, mode: bool = True) -> Self:
        """Refused, but for evaluation mode.

        Raises:
            UsageError: ``mode`` is true.
        """
        if mode:
            raise UsageError("an optimised network only infers: train the network that it was made of")
        return self

    def extra_repr(self) -> str:
        return f"{self.report.choice}, {self.report.precision}"


def run_padded(form: Form, images: Tensor, size: int) -> Tensor:
    """The outputs of at most ``size`` images by a form for just as many."""
    whole = torch.zeros((size, *images.shape[1:]), device=images.device)
    whole[: len(images)] = images
    return form.run(whole)[: len(images)]


def optimize(
    model: nn.Module,
    example: Tensor,
    precision: str = "auto",
    *,
    seconds: float = 120,
    calibration: Tensor | None = None,
    force: bool = False,
) -> Optimized:
    """Find the form of a network that infers fastest on this machine, and give the network in it.

    Forms are tried in turn, each checked against the network's own outputs and measured beside the fastest so far.
    What was found is remembered for this machine and networks of this structure: the next call only makes that form
    and checks it.

    Args:
        model: from images (N, C, H, W) to outputs; left as it is but for being put into evaluation mode.
        example: images as they will come, in fp32, on the network's device: speed is that of their shape.
        precision: fp32; bf16; auto, which is either, where the device has bf16; or int8, which is any of them.
        seconds: try nothing that would take longer than this in all; what is measured already is chosen from.
        calibration: images that int8 is calibrated with and its agreement counted on.
        force: take int8 even where its top-1 agrees with the network's on fewer than 99 % of the images.

    Raises:
        UsageError: a precision that is unknown or that the device does not have, an example that the network cannot
            take, or int8 without images to calibrate with.
        RunError: no form gives the network's outputs.
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
            f"the network cannot take the example of shape {tuple(example.shape)} on {example.device}: {reason(error)}"
        ) from error
    if not isinstance(expected, Tensor) or not expected.isfinite().all():
        raise UsageError("the network's outputs of the example are not finite numbers in one tensor")
    search = Search(model, example, expected, calibration, force)
    found = candidates(model, example.device, precision, calibration)
    key = key_of(model, example, precision + (" forced" if force else ""))
    form, report = search.again(found, key, seconds) or search.over(found, precision, seconds)
    if not report.remembered:
        remember(key, report.to_dict())
    return Optimized(form, model, example, report)


def check(example: Tensor, precision: str) -> None:
    """Refuse words and images that nothing can be measured with."""
    if precision not in PRECISIONS:
        raise unknown_name("precision", precision, PRECISIONS)
    if not isinstance(example, Tensor) or example.ndim != 4 or not example.numel() or example.dtype != torch.float32:
        arrived = f"{example.dtype} {tuple(example.shape)}" if isinstance(example, Tensor) else type(example).__name__
        raise UsageError(f"the example must be images (N, C, H, W) in fp32, one or more; {arrived} arrived")


class Search:
    """The forms of one network, tried on an example.

    Args:
        model: the network.
        example: images.
        expected: the network's outputs of them.
        calibration: more images, for int8.
        force: take int8 however often it disagrees.
    """

    def __init__(
        self, model: nn.Module, example: Tensor, expected: Tensor, calibration: Tensor | None, force: bool
    ) -> None:
        self.model, self.example, self.expected = model, example, expected
        self.calibration, self.force = calibration, force

    def again(self, found: list[Candidate], key: str, seconds: float) -> tuple[Form, Report] | None:
        """What an earlier call chose, made of this network; None where there is none, or it fails now.

        Nor is it taken where that call's time was up before it had tried all, and this one has more.
        """
        document = remembered(key)
        try:
            report = report_from(document, remembered=True) if document else None
        except (TypeError, ValueError, KeyError):
            report = None
        if report and report.cut_short and seconds > report.seconds:
            return None
        for candidate in found:
            if report and (candidate.name, candidate.precision) == (report.choice, report.precision):
                form, tried = self.made(candidate)
                if form and not tried.dropped:
                    figures = replace(tried, images_per_second=report.chosen.images_per_second)
                    rows = tuple(figures if row == report.chosen else row for row in report.tried)
                    return form, replace(report, tried=rows)
        return None

    def over(self, found: list[Candidate], precision: str, seconds: float) -> tuple[Form, Report]:
        """The fastest of all.

        Raises:
            RunError: there is none.
        """
        start, rows = time.perf_counter(), []
        best: tuple[Form, Tried] | None = None
        for candidate in found:
            if rows and time.perf_counter() - start + candidate.seconds > seconds:
                rows.append(Tried(candidate.name, candidate.precision, dropped=TOO_LATE))
                continue
            form, tried = self.made(candidate)
            if form and not tried.dropped:
                times = self.measured(form, best[0] if best else None)
                tried = replace(tried, images_per_second=len(self.example) / quartiles(times[0])[1])
                wanted = candidate.precision != "fp32" or precision != "bf16"
                if wanted and (best is None or times_as_fast(*times) > 1):
                    best = form, tried
            rows.append(tried)
        if best is None:
            raise RunError("no form of the network gives its outputs: " + "; ".join(map(str, rows)))
        return best[0], Report(best[1].name, best[1].precision, tuple(rows), len(self.example), seconds)

    def made(self, candidate: Candidate) -> tuple[Form | None, Tried]:
        """A form with its differences from the network; None where it cannot be made."""
        tried, start = Tried(candidate.name, candidate.precision), time.perf_counter()
        try:
            form = candidate.make(self.model)
            with torch.inference_mode():
                outputs = form.run(self.example)
                difference = (outputs - self.expected).abs().max() / self.expected.abs().max().clamp(min=1e-30)
                agrees = self.agreement(form, outputs, candidate.precision)
        except Exception as error:  # of any library, at any depth: the form is left out, the others remain
            return None, replace(tried, seconds=time.perf_counter() - start, dropped=reason(error))
        tried = replace(tried, agreement=agrees, seconds=time.perf_counter() - start)
        if not difference.isfinite():
            return form, replace(tried, dropped="its outputs are not finite")
        tried = replace(tried, difference=difference.item())
        if difference > TOLERANCE[candidate.precision]:
            tried = replace(tried, dropped=f"it differs by more than {TOLERANCE[candidate.precision]:g}")
        if candidate.precision == "int8" and not self.force and (agrees is None or agrees < LEAST_AGREEMENT):
            tried = replace(tried, dropped=f"top-1 agrees on fewer than {100 * LEAST_AGREEMENT:g} % (force takes it)")
        return form, tried

    def agreement(self, form: Form, outputs: Tensor, precision: str) -> float | None:
        """For which part of the images top-1 is the network's; for int8, of those that calibrated it."""
        if self.expected.ndim != 2 or not self.expected.shape[1]:
            return None
        pairs = [(self.expected, outputs)]
        if precision == "int8" and self.calibration is not None:
            some = self.calibration.split(len(self.example))
            pairs = [(self.model(images), form.run(images)) for images in some]
        return agreement(*(torch.cat(logits) for logits in zip(*pairs, strict=True)))

    def measured(self, form: Form, best: Form | None) -> tuple[list[float], list[float]]:
        """Seconds of a form's rounds and of those of the best before it, in turns."""

        def call(form: Form) -> Callable[[], Tensor]:
            return lambda: form.run(self.example)

        calls = {"form": call(form)} | ({"best": call(best)} if best else {})
        with torch.inference_mode():
            times = alternate(calls, ROUNDS, warm_up=1, seconds=SECONDS_OF_ROUNDS)
        return times["form"], times.get("best", times["form"])
