"""The fastest variant: what is tried and reported, remembered, refused; and what pays within a job."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import convnext
import convnext.files
from convnext.acceleration import search
from convnext.acceleration.candidates import Candidate, Variant
from convnext.acceleration.cpu.native import available
from convnext.acceleration.gpu.triton_runtime import has_triton, interpreted
from convnext.acceleration.search import Optimized
from convnext.device import has_cpu_bf16
from convnext.errors import RunError, UsageError
from convnext.models.convnext import ConvNeXt, ConvNeXtV2
from tests.conftest import use_cache

IMAGES = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty memory of choices; rounds of one."""
    use_cache(tmp_path / "cache", monkeypatch)
    monkeypatch.setattr(search.Search.measured, "__defaults__", (1, 1, 1.0))


@pytest.fixture
def model() -> ConvNeXt:
    return ConvNeXt(depths=(1, 1, 1, 1), dims=(16, 32, 64, 128), num_classes=10, layer_scale_init_value=0.5).eval()


@pytest.fixture
def variants(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let these variants be tried, each a name with a function of the model and images."""

    def use(seconds: float = 0, precision: str = "fp32", fixed: bool = False, **runs: Any) -> None:
        def made(run: Callable[[nn.Module, Tensor], Tensor]) -> Callable[[nn.Module], Variant]:
            return lambda model: Variant(lambda images: run(model, images), fixed)

        found = [Candidate("eager", "fp32", Variant)]
        found += [Candidate(name, precision, made(run), seconds) for name, run in runs.items()]
        monkeypatch.setattr(search, "candidates", lambda *_, **__: found)

    return use


def exact(model: nn.Module, images: Tensor) -> Tensor:
    return model(images)


def test_it_gives_the_network_s_outputs_with_a_report(model: ConvNeXt) -> None:
    fast = convnext.accelerate(model, IMAGES, seconds=20)
    names = {(row.name, row.precision): row for row in fast.report.tried}
    assert {("eager", "fp32"), ("channels_last", "fp32"), ("folded", "fp32"), ("kernels", "fp32")} <= set(names)
    assert (("channels_last", "bf16") in names) == has_cpu_bf16()
    assert "the time was up" in names["compiled", "fp32"].dropped
    for row in fast.report.tried:
        assert row.dropped or (row.images_per_second and row.agreement == 1 and row.difference is not None)
    assert names["folded", "fp32"].difference == pytest.approx(0, abs=1e-5)
    assert not fast.report.remembered
    assert not fast.report.chosen.dropped
    # A variant is interleaved with the best one so far: between it and the first, the machine may have become slower.
    assert fast.report.speedup > 0.5
    assert fast.report.choice in str(fast.report)
    tolerance = 5e-2 if fast.report.precision == "bf16" else 1e-5
    for count in (1, 3, 4, 9):
        images = torch.randn(count, 3, 32, 32)
        assert (fast(images) - model(images)).abs().max() <= tolerance * model(images).abs().max()
    other = torch.randn(2, 3, 48, 64)
    assert (fast(other) - model(other)).abs().max() <= tolerance * model(other).abs().max()


def test_outputs_may_be_trained_on(model: ConvNeXt) -> None:
    fast = convnext.accelerate(model, IMAGES, precision="fp32", seconds=0)
    probe = nn.Linear(10, 2)
    probe(fast(IMAGES)).sum().backward()
    assert probe.weight.grad is not None


def test_the_second_call_does_not_measure(model: ConvNeXt, monkeypatch: pytest.MonkeyPatch) -> None:
    first = convnext.accelerate(model, IMAGES, precision="fp32", seconds=20)
    monkeypatch.setattr(search, "alternate", lambda *_, **__: pytest.fail("it measured"))
    other = ConvNeXt(depths=(1, 1, 1, 1), dims=(16, 32, 64, 128), num_classes=10, layer_scale_init_value=0.5)
    again = convnext.accelerate(other, IMAGES, precision="fp32", seconds=20)
    assert again.report.remembered
    assert again.report.choice == first.report.choice
    assert len(again.report.tried) == len(first.report.tried)


def test_another_shape_thread_count_or_network_is_measured(model: ConvNeXt) -> None:
    convnext.accelerate(model, IMAGES, precision="fp32", seconds=0)
    assert convnext.accelerate(model, IMAGES, precision="fp32", seconds=0).report.remembered
    assert not convnext.accelerate(model, IMAGES[:2], precision="fp32", seconds=0).report.remembered
    wider = ConvNeXt(depths=(1, 1, 1, 1), dims=(24, 48, 96, 192), num_classes=10)
    assert not convnext.accelerate(wider, IMAGES, precision="fp32", seconds=0).report.remembered
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        assert not convnext.accelerate(model, IMAGES, precision="fp32", seconds=0).report.remembered
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize(
    "content", ["{", "[]", "{}", '{"choice": "magic", "precision": "fp32", "tried": [], "batch": 4, "seconds": 1}']
)
def test_a_damaged_memory_is_measured_anew(model: ConvNeXt, content: str) -> None:
    convnext.accelerate(model, IMAGES, precision="fp32", seconds=0)
    (file,) = convnext.files.user_cache("optimize").iterdir()
    file.write_text(content)
    assert not convnext.accelerate(model, IMAGES, precision="fp32", seconds=0).report.remembered
    assert json.loads(file.read_text())["choice"]


def test_without_a_cache_it_measures(model: ConvNeXt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert convnext.accelerate(model, IMAGES, precision="fp32", seconds=0).report.choice == "eager"


def test_what_fails_or_differs_is_dropped_with_the_reason(model: ConvNeXt, variants: Callable[..., None]) -> None:
    variants(
        breaks=lambda *_: 1 / 0,
        differs=lambda model, images: model(images) * 1.1,
        nan=lambda model, images: model(images) * torch.nan,
    )
    report = convnext.accelerate(model, IMAGES).report
    dropped = {row.name: row.dropped for row in report.tried}
    assert report.choice == "eager"
    assert dropped["breaks"] == "division by zero"
    assert dropped["differs"] == "it differs by more than 0.001"
    assert dropped["nan"] == "its outputs are not finite"


def test_a_remembered_variant_that_differs_now_is_not_taken(model: ConvNeXt, variants: Callable[..., None]) -> None:
    variants(quick=lambda model, images: model.answer if len(images) == 4 else None)
    model.answer = model(IMAGES).detach()
    assert convnext.accelerate(model, IMAGES).report.choice == "quick"
    model.answer = model.answer + 1
    assert convnext.accelerate(model, IMAGES).report.choice == "eager"


def test_nothing_begins_that_would_end_too_late(model: ConvNeXt, variants: Callable[..., None]) -> None:
    variants(seconds=50, late=exact)
    (_, late) = convnext.accelerate(model, IMAGES, seconds=49).report.tried
    assert late.dropped == "not tried, the time was up"
    assert late.images_per_second is None
    assert convnext.accelerate(model, IMAGES, seconds=49).report.remembered
    assert convnext.accelerate(model, IMAGES, seconds=1).report.remembered
    with_more_time = convnext.accelerate(model, IMAGES, seconds=60).report
    assert not with_more_time.remembered
    assert with_more_time.tried[1].images_per_second


def test_a_variant_for_one_shape_takes_any_number_and_size(model: ConvNeXt, variants: Callable[..., None]) -> None:
    shapes = []

    def run(model: Any, images: Tensor) -> Tensor:
        shapes.append(tuple(images.shape))
        return model.answer if len(shapes) < 4 else model(images)

    model.answer = model(IMAGES).detach()
    variants(fixed=True, one=run)
    fast = convnext.accelerate(model, IMAGES)
    assert fast.report.choice == "one"
    for images in (
        torch.randn(n, 3, *size) for n, size in ((1, (32, 32)), (4, (32, 32)), (11, (32, 32)), (2, (64, 32)))
    ):
        torch.testing.assert_close(fast(images), model(images))
    assert fast(IMAGES[:0]).shape == (0, 10)
    assert set(shapes) == {(4, 3, 32, 32)}


def quantized(offset: float) -> Callable[[nn.Module, Tensor], Tensor]:
    """A variant whose best class is another for the images whose first pixel is above an offset."""

    def run(model: nn.Module, images: Tensor) -> Tensor:
        outputs, wrong = model(images), images[:, 0, 0, 0] > offset
        return torch.where(wrong[:, None], -outputs, outputs)

    return run


@pytest.mark.parametrize("wrong", [0, 1])
def test_int8_is_refused_where_it_disagrees_unless_forced(
    model: ConvNeXt, variants: Callable[..., None], wrong: int
) -> None:
    calibration = torch.randn(40, 3, 32, 32)
    calibration[:, 0, 0, 0] = torch.arange(40)
    example = calibration[:4]
    variants(precision="int8", int8=quantized(39 - wrong))
    report = convnext.accelerate(model, example, precision="int8", calibration=calibration).report
    assert report.tried[1].agreement == 1 - wrong / 40
    assert bool(report.tried[1].dropped) == (wrong > 0)
    assert report.choice == "eager" or not wrong
    report = convnext.accelerate(model, example, precision="int8", calibration=calibration, force=True).report
    assert not report.tried[1].dropped


def test_int8_needs_images_to_calibrate_with(model: ConvNeXt) -> None:
    with pytest.raises(UsageError, match="calibration=IMAGES"):
        convnext.accelerate(model, IMAGES, precision="int8")


@pytest.mark.parametrize(
    ("example", "message"),
    [
        (torch.zeros(3, 32, 32), r"\(3, 32, 32\) arrived"),
        (torch.zeros(0, 3, 32, 32), r"\(0, 3, 32, 32\) arrived"),
        (torch.zeros(1, 3, 32, 32, dtype=torch.uint8), "uint8"),
        (torch.zeros(1, 4, 32, 32), "cannot take the example of shape"),
        (torch.zeros(1, 3, 16, 16), "too small"),
        (torch.full((1, 3, 32, 32), torch.nan), "not finite"),
        ("images", "str arrived"),
    ],
)
def test_what_nothing_can_be_measured_with_is_refused(model: ConvNeXt, example: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        convnext.accelerate(model, example, seconds=0)


def test_an_unknown_precision_is_refused(model: ConvNeXt) -> None:
    with pytest.raises(UsageError, match=r"bf61.*bf16"):
        convnext.accelerate(model, IMAGES, precision="bf61")


def test_a_processor_without_bf16_says_so(model: ConvNeXt, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("convnext.device.has_cpu_bf16", lambda: False)
    with pytest.raises(UsageError, match="take fp32 or auto"):
        convnext.accelerate(model, IMAGES, precision="bf16")
    assert {row.precision for row in convnext.accelerate(model, IMAGES, seconds=0).report.tried} == {"fp32"}


@pytest.mark.skipif(not has_cpu_bf16(), reason="needs a processor with bf16")
def test_bf16_is_chosen_where_it_is_asked_for(model: ConvNeXt) -> None:
    assert convnext.accelerate(model, IMAGES, precision="bf16", seconds=5).report.precision == "bf16"


def test_it_only_infers(model: ConvNeXt) -> None:
    fast = convnext.accelerate(model, IMAGES, precision="fp32", seconds=0)
    with pytest.raises(UsageError, match="only infers"):
        fast.train()
    assert not fast.eval().training
    with pytest.raises(UsageError, match=r"\(N, 3, H, W\)"):
        fast(torch.zeros(3, 32, 32))


def test_kernels_off_says_why(model: ConvNeXt, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONVNEXT_KERNELS", "off")
    report = convnext.accelerate(model, IMAGES, precision="fp32", seconds=20).report
    assert [row.dropped for row in report.tried if row.name == "kernels"] == ["CONVNEXT_KERNELS is off"]


@pytest.mark.slow
@pytest.mark.parametrize("build", [ConvNeXt, ConvNeXtV2])
@pytest.mark.filterwarnings("default")
def test_the_compiled_variant_takes_a_partial_batch(build: Any) -> None:
    model = build(depths=(1, 1, 1, 1), dims=(16, 32, 64, 128), num_classes=10).eval()
    report = convnext.accelerate(model, IMAGES, seconds=600).report
    compiled = [row for row in report.tried if row.name == "compiled"]
    assert [row.dropped for row in compiled] == [""] * len(compiled)
    assert [row.difference for row in compiled] == pytest.approx([0] * len(compiled), abs=5e-2)


def run_job(model: nn.Module, images: int, seconds: float = 120) -> nn.Module:
    faster = convnext.accelerate(model, IMAGES, images=images, seconds=seconds)
    with torch.inference_mode():
        for count in (4, 1):
            torch.testing.assert_close(faster(IMAGES[:count]), model(IMAGES[:count]), rtol=1e-4, atol=1e-5)
    return faster


@pytest.fixture
def long_job(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Let any job be long enough for the kernels, with this speedup, but not for a search."""

    def use(speedup: float) -> None:
        monkeypatch.setattr(search, "times_as_fast", lambda *_: speedup)
        monkeypatch.setattr(search, "PACK_SECONDS", 0.0)
        monkeypatch.setattr(search, "is_built", lambda: True)

    return use


@pytest.mark.skipif(not available(), reason="no C compiler here")
def test_a_long_job_is_computed_by_the_kernels(model: ConvNeXt, long_job: Callable[[float], None]) -> None:
    long_job(1.25)
    faster = run_job(model, 1000)
    assert isinstance(faster, Optimized)
    assert [(row.name, row.precision) for row in faster.report.tried] == [("eager", "fp32"), ("kernels", "fp32")]
    assert faster.report.choice == "kernels"
    assert faster.report.speedup > 0
    assert faster.report.batch == 4


def test_another_model_is_searched_for_in_a_long_job(monkeypatch: pytest.MonkeyPatch) -> None:
    model = ConvNeXtV2(depths=(1, 1, 1, 1), dims=(16, 32, 64, 128), num_classes=10).eval()
    monkeypatch.setattr(search, "SEARCH_SECONDS", 1e-9)
    assert isinstance(run_job(model, 10**6), Optimized)
    monkeypatch.setattr(search, "SEARCH_SECONDS", 100)
    assert run_job(model, 10**9, seconds=10) is model


@pytest.mark.parametrize("images", [0, 2, 15])
def test_a_short_job_is_computed_by_the_model_at_once(model: ConvNeXt, images: int) -> None:
    model.register_forward_hook(lambda *_: pytest.fail("the model was called"))
    assert convnext.accelerate(model, IMAGES, images=images) is model


@pytest.mark.parametrize("flaw", ["short", "slower", "other outputs", "fails", "off"])
def test_a_job_keeps_the_model_where_a_variant_is_no_gain(
    model: ConvNeXt, long_job: Callable[[float], None], monkeypatch: pytest.MonkeyPatch, flaw: str
) -> None:
    long_job(0.9 if flaw == "slower" else 2.0)
    if flaw == "short":
        monkeypatch.setattr(search, "PACK_SECONDS", 1e9)
    if flaw == "off":
        monkeypatch.setenv("CONVNEXT_KERNELS", "off")

    def make(*_: Any) -> Variant:
        if flaw == "fails":
            raise RunError("no")
        other = ConvNeXt(depths=(1, 1, 1, 1), dims=(16, 32, 64, 128), num_classes=10).eval()
        return Variant(other if flaw == "other outputs" else model)

    monkeypatch.setattr(search, "kernels", make)
    assert run_job(model, 1000) is model


def test_a_job_on_another_device_or_in_bf16_is_left(model: ConvNeXt) -> None:
    assert convnext.accelerate(model, IMAGES.to("meta"), images=10**6) is model
    half = model.bfloat16()
    assert convnext.accelerate(half, IMAGES, images=10**6) is half


@pytest.mark.skipif(not has_triton() or not interpreted(), reason="needs Triton's interpreter")
def test_kernels_in_triton_are_tried_where_they_are_asked_for(model: ConvNeXt) -> None:
    for experimental in (False, True):
        report = convnext.accelerate(model, IMAGES[:1], precision="fp32", seconds=30, experimental=experimental).report
        fused = [row for row in report.tried if row.name == "fused"]
        assert len(fused) == experimental
        assert all(row.difference is not None and row.difference < 1e-5 for row in fused)
