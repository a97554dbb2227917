"""How fast and how true is int8 on the processor: ours, other forms of ours, and three libraries' as they come?

Trains ConvNeXt-T on digits, quantises it by each library with the same calibration images, counts on held-out digits
at 224 px how often each form's first class is fp32's (and the right one), and times all of them in turns. Libraries
that are not installed are skipped. Writes ``results/int8-MACHINE.csv``.
Usage: ``python benchmarks/int8.py [--network FILE] [--only NAME ...]``; FILE keeps the trained network for other runs.
"""

import argparse
import logging
import os
import tempfile
import time
import warnings
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does

import torch
import torch.nn.functional as F
from result_files import processor_kind, write_rows
from sklearn.datasets import load_digits
from torch import Tensor, nn

import convnext
from convnext.acceleration.clock import alternate, quartiles, times_as_fast
from convnext.acceleration.cpu.inference_kernels import FusedNetwork
from convnext.acceleration.folding import folded
from convnext.acceleration.int8 import agreement, quantize
from convnext.device import has_cpu_bf16

Forward = Callable[[Tensor], Tensor]
BATCH, SIZE = 16, 224
PACKAGES = ("openvino", "nncf", "onnxruntime", "torchao")


def digits() -> tuple[Tensor, Tensor]:
    """All digits, normalised (1797, 1, 8, 8), in a fixed order, and their classes; see ``enlarged``."""
    pixels, classes = load_digits(return_X_y=True)
    order = torch.randperm(len(classes), generator=torch.Generator().manual_seed(0))
    return torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8)[order] / 8 - 1, torch.tensor(classes)[order]


def enlarged(images: Tensor, size: int) -> Tensor:
    """Digits of 64 px as images (N, 3, size, size), filled with copies: what was learned at 64 px is known there."""
    copies = -(-size // 64)
    digits = F.interpolate(images, size=(64, 64), mode="bicubic").repeat(1, 3, copies, copies)
    return digits[:, :, :size, :size].contiguous()


def trained(images: Tensor, classes: Tensor) -> nn.Module:
    """ConvNeXt-T, trained at 64 px, then at 224; with noise and shifts, so that not every digit is an easy one."""
    torch.manual_seed(0)
    model = convnext.create_model("convnext_tiny", num_classes=10, drop_path_rate=0.0, layer_scale_init_value=0.1)
    convnext.accelerate(model, training=True)
    for size, steps, rate, batch in ((64, 300, 8e-4, 16), (SIZE, 30, 3e-4, 8)):
        optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.05)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
        for step in range(steps):
            chosen = torch.randint(len(images), (batch,))
            shifts = tuple(torch.randint(-6, 7, (2,)).tolist())
            x = torch.roll(enlarged(images[chosen], size), shifts, (2, 3))
            x = x * (0.6 + 0.8 * torch.rand(batch, 1, 1, 1)) + 0.1 * torch.randn_like(x)
            with torch.autocast("cpu", torch.bfloat16, enabled=has_cpu_bf16()):
                loss = F.cross_entropy(model(x).float(), classes[chosen], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            if step % 20 == 0:
                print(f"training at {size} px, step {step}: loss {loss.item():.3f}", flush=True)
    return model


def fp32(model: nn.Module, calibration: Tensor) -> Forward:  # noqa: ARG001
    """The network as it is."""
    return model


def kernels_fp32(model: nn.Module, calibration: Tensor) -> Forward:  # noqa: ARG001
    """This package's kernels without int8."""
    return FusedNetwork(folded(model))


def kernels_bf16(model: nn.Module, calibration: Tensor) -> Forward:  # noqa: ARG001
    """This package's kernels in bf16."""
    return FusedNetwork(folded(model), bf16=True)


def bf16_compiled(model: nn.Module, calibration: Tensor) -> Forward:
    """Compiled with freezing, under bf16 autocast."""
    compiled = frozen(model)

    def forward(x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return compiled(x).float()

    forward(calibration[:BATCH])
    return forward


def int8(model: nn.Module, calibration: Tensor) -> Forward:
    """This package's."""
    return quantize(model, calibration)


def openvino_plain(model: nn.Module, calibration: Tensor) -> Forward:
    """NNCF's defaults."""
    return openvino(model, calibration)


def openvino_tuned(model: nn.Module, calibration: Tensor) -> Forward:
    """NNCF with the scheme and SmoothQuant of transformers, bf16 between, two streams of half a batch."""
    nncf = import_module("nncf")

    hints = {"INFERENCE_PRECISION_HINT": "bf16", "NUM_STREAMS": 2}
    return openvino(model, calibration, 2, hints, model_type=nncf.ModelType.TRANSFORMER)


def openvino(
    model: nn.Module, calibration: Tensor, streams: int = 1, hints: dict | None = None, **options: object
) -> Forward:
    """NNCF's post-training quantisation, run by OpenVINO."""
    nncf, ov = import_module("nncf"), import_module("openvino")

    nncf.set_log_level(logging.ERROR)
    converted = ov.convert_model(model, example_input=calibration[:2])
    converted.reshape([-1, 3, SIZE, SIZE])
    data = nncf.Dataset([batch.numpy() for batch in calibration.split(8)])
    quantized = nncf.quantize(converted, data, subset_size=8, **options)
    compiled = ov.Core().compile_model(
        quantized, "CPU", {"INFERENCE_NUM_THREADS": torch.get_num_threads()} | (hints or {})
    )
    requests = [compiled.create_infer_request() for _ in range(streams)]

    def forward(x: Tensor) -> Tensor:
        for request, part in zip(requests, x.chunk(streams), strict=True):
            request.start_async({0: part.numpy()}, share_inputs=True)
        for request in requests:
            request.wait()
        return torch.cat([torch.from_numpy(request.get_output_tensor(0).data.copy()) for request in requests])

    return forward


def onnxruntime(model: nn.Module, calibration: Tensor) -> Forward:
    """ONNX Runtime's static quantisation: QDQ, scales per channel."""
    ort, quantization = import_module("onnxruntime"), import_module("onnxruntime.quantization")
    preparation = import_module("onnxruntime.quantization.shape_inference")

    class Reader:
        def __init__(self) -> None:
            self.batches = iter(calibration.split(8))

        def get_next(self) -> dict | None:
            batch = next(self.batches, None)
            return None if batch is None else {"images": batch.numpy()}

    with tempfile.TemporaryDirectory() as folder:
        plain, ready, done = (str(Path(folder) / name) for name in ("plain.onnx", "ready.onnx", "done.onnx"))
        torch.onnx.export(
            model,
            (calibration[:2],),
            plain,
            input_names=["images"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            dynamo=True,
            verbose=False,
        )
        preparation.quant_pre_process(plain, ready)
        quantization.quantize_static(
            ready, done, Reader(), per_channel=True, activation_type=quantization.QuantType.QUInt8
        )
        options = ort.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        session = ort.InferenceSession(done, options, providers=["CPUExecutionProvider"])
    return lambda x: torch.from_numpy(session.run(None, {"images": x.numpy()})[0])


def torchao_dynamic(model: nn.Module, calibration: Tensor) -> Forward:
    """torchao's int8 weights and dynamic int8 activations, compiled with freezing."""
    torchao = import_module("torchao.quantization")
    torchao.quantize_(model, torchao.Int8DynamicActivationInt8WeightConfig())
    compiled = frozen(model)
    compiled(calibration[:BATCH])
    return compiled


def torchao_pt2e(model: nn.Module, calibration: Tensor) -> Forward:
    """torchao's export quantisation with the x86 inductor quantiser, compiled with freezing."""
    pt2e = import_module("torchao.quantization.pt2e")
    steps = import_module("torchao.quantization.pt2e.quantize_pt2e")
    x86 = import_module("torchao.quantization.pt2e.quantizer.x86_inductor_quantizer")
    quantizer = x86.X86InductorQuantizer()
    quantizer.set_global(x86.get_default_x86_inductor_quantization_config())
    exported = torch.export.export(model, (calibration[:BATCH],)).module()
    prepared = steps.prepare_pt2e(exported, quantizer)
    for batch in calibration.split(BATCH):
        prepared(batch)
    converted = steps.convert_pt2e(prepared)
    pt2e.move_exported_model_to_eval(converted)
    compiled = frozen(converted)
    compiled(calibration[:BATCH])
    return compiled


def frozen(model: nn.Module) -> Forward:
    """A network compiled with its weights as constants, its first pass yet to come."""
    import torch._inductor.config

    torch._inductor.config.freezing = True
    return torch.compile(model)


FORMS: dict[str, Callable[[nn.Module, Tensor], Forward]] = {
    "ours": int8,
    "ours in bf16": kernels_bf16,
    "ours in fp32": kernels_fp32,
    "fp32 eager": fp32,
    "bf16 compiled": bf16_compiled,
    "openvino": openvino_plain,
    "openvino tuned": openvino_tuned,
    "onnxruntime": onnxruntime,
    "torchao dynamic": torchao_dynamic,
    "torchao pt2e": torchao_pt2e,
}
NEEDS_BF16 = ("ours in bf16", "bf16 compiled", "openvino tuned")
AS_THEY_COME = ("openvino", "onnxruntime", "torchao dynamic", "torchao pt2e")


@torch.no_grad()
def main() -> None:
    """Train, quantise, compare, time, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", type=Path, help="weights of a former run; written where there are none")
    parser.add_argument("--only", nargs="*", choices=FORMS, default=list(FORMS), help="beside ours and fp32")
    parser.add_argument("--images", type=int, default=352, help="held-out digits to compare on")
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")  # the libraries' own deprecations
    images, classes = digits()
    weights = options.network
    if weights is not None and weights.exists():
        state = torch.load(weights, weights_only=True)
    else:
        with torch.enable_grad():
            state = trained(images[:1437], classes[:1437]).state_dict()
        if weights is not None:
            torch.save(state, weights)

    calibration = enlarged(images[:64], SIZE)
    held_out = slice(1437, 1437 + options.images // BATCH * BATCH)
    forwards, answers = {}, {}
    for name in dict.fromkeys(["ours", "fp32 eager", *options.only]):
        if name in NEEDS_BF16 and not has_cpu_bf16():
            print(f"{name}: skipped, this processor has no bf16")
            continue
        model = convnext.create_model("convnext_tiny", num_classes=10, layer_scale_init_value=0.1).eval()
        model.load_state_dict(state)
        model = model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        start = time.perf_counter()
        try:
            forwards[name] = FORMS[name](model, calibration)
        except ImportError as error:
            print(f"{name}: skipped, {error}")
            continue
        print(f"{name}: made in {time.perf_counter() - start:.0f} s", flush=True)
        parts = [forwards[name](enlarged(part, SIZE)) for part in images[held_out].split(BATCH)]
        answers[name] = torch.cat(parts)

    example = enlarged(images[1437 : 1437 + BATCH], SIZE)
    times = alternate({name: lambda f=forward: f(example) for name, forward in forwards.items()}, options.rounds)
    rows = []
    for name, taken in times.items():
        low, median, high = quartiles([BATCH / seconds for seconds in taken])
        rows.append(
            {
                "form": name,
                "batch": BATCH,
                "images_per_second": round(median, 1),
                "low_quartile": round(low, 1),
                "high_quartile": round(high, 1),
                "ours_times_as_fast": round(times_as_fast(times["ours"], taken), 2),
                "agreement": round(100 * agreement(answers["fp32 eager"], answers[name]), 2),
                "error": round((answers[name] - answers["fp32 eager"]).square().mean().sqrt().item(), 4),
                "top1": round(100 * (answers[name].argmax(1) == classes[held_out]).double().mean().item(), 2),
                "rounds": options.rounds,
            }
        )
        print(", ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
    write_rows(f"int8-{processor_kind()}", rows, PACKAGES)
    peers = [row for row in rows if row["form"] in AS_THEY_COME]
    if peers:
        best = min(peers, key=lambda row: row["ours_times_as_fast"])
        print(f"ours over the best library as it comes ({best['form']}): {best['ours_times_as_fast']}")
    own = [row for row in rows if row["form"] in ("ours in bf16", "ours in fp32")]
    if own:
        best = min(own, key=lambda row: row["ours_times_as_fast"])
        print(f"int8 over {best['form']}: {best['ours_times_as_fast']}")


if __name__ == "__main__":
    main()
