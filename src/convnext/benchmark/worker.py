"""Program of one configuration's process: builds its model, warms it up, and measures one round per request.

It reads lines of JSON from stdin and answers each with one on stdout, until stdin ends.
"""

import importlib
import json
import os
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import torch

from convnext.acceleration.clock import seconds_of
from convnext.acceleration.cpu.heap import give_back
from convnext.benchmark.configurations import CEILING, OURS, SETTINGS, Call, Configuration, inference, training
from convnext.benchmark.machine import PeakMemory, matrix_products
from convnext.benchmark.peers import build
from convnext.errors import ConvNeXtError, KernelsWarning, reason

WARM_UP = 3  # calls before the first round, which begins with one more that does not count
LONG_SECONDS = 2  # a call of this length, compilation included, is the last of the warm-up
MIN_ROUND_SECONDS = 0.2  # so that messages between processes cost nothing by comparison


def call_of(configuration: Configuration, device: torch.device) -> tuple[Call, float]:
    """The call to measure, and its work: images, or FLOP for the ceiling."""
    batch, size, precision = configuration.batch, configuration.image_size, configuration.precision
    if configuration.library == CEILING:
        return matrix_products(precision, device)
    if configuration.file:  # pickled by the process that started this one
        model = torch.load(configuration.file, weights_only=False)
    else:
        model = build(configuration.name, configuration.library, size)
    model, setting = model.to(device), SETTINGS[configuration.setting]
    images = torch.randn(batch, configuration.in_channels, size, size, device=device)  # (N, C, H, W)
    if configuration.mode == "inference":
        return inference(model, images, precision, setting), batch
    with torch.inference_mode():
        classes = model.eval()(images[:1]).shape[1]
    labels = torch.randint(classes, (batch,), device=device)
    return training(model, images, labels, precision, setting), batch


def responses_of(configuration: Configuration) -> Iterator[dict[str, Any]]:
    """The response to each request: first the work per call, once the model is warm; then the seconds of a round."""
    torch.manual_seed(0)
    device = torch.device(configuration.device)
    if configuration.library not in (CEILING, OURS):
        importlib.import_module(configuration.library)  # before memory counts
    memory = PeakMemory(device)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call, work = call_of(configuration, device)
        warm_up(call)
    give_back()
    memory.reset()
    notes = [str(warning.message) for warning in caught if issubclass(warning.category, KernelsWarning)]
    yield {"work": work, "notes": notes}
    while True:
        seconds_of(call)  # does not count: other processes have used caches and memory meanwhile
        seconds = seconds_per_call(call)
        give_back()  # to the processes that run next
        yield {"seconds": seconds, "peak_memory": memory.bytes()}


def warm_up(call: Call) -> None:
    """Run until compilers, allocators and caches are warm, or once where a call takes long."""
    for _ in range(WARM_UP):
        if seconds_of(call) > LONG_SECONDS:
            break


def seconds_per_call(call: Call) -> float:
    """Mean seconds of as many calls as fill a round."""
    seconds, calls = 0.0, 0
    while seconds < MIN_ROUND_SECONDS:
        seconds += seconds_of(call)
        calls += 1
    return seconds / calls


def next_or_error(responses: Iterator[dict[str, Any]], batch: int) -> dict[str, Any]:
    """The next response, or the error that it raised."""
    try:
        return next(responses)
    except ConvNeXtError as error:
        return {"error": str(error)}
    except Exception as error:  # a library or its compiler may fail in any way, which is a result too
        text = str(error)
        if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or ("alloc" in text and "memory" in text):
            return {"error": f"out of memory at batch {batch}: take a smaller --batch"}
        return {"error": f"{type(error).__name__}: {reason(error)}"}


def main() -> None:
    """Answer requests until stdin ends."""
    stdout = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries print is no response
    request = json.loads(sys.stdin.readline())
    torch.set_num_threads(request["threads"])
    configuration = Configuration(**request["configuration"])
    responses = responses_of(configuration)
    while True:
        print(json.dumps(next_or_error(responses, configuration.batch)), file=stdout)
        if not sys.stdin.readline():
            break


if __name__ == "__main__":
    main()
