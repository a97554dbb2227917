"""The process of one row: builds its network, prepares it, and runs it whenever it is told to.

It reads lines of JSON on stdin and answers each with one on stdout, until stdin ends.
"""

import importlib
import json
import os
import sys
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from convnext.acceleration.clock import seconds_of
from convnext.acceleration.cpu.heap import give_back
from convnext.benchmark.case import CEILING, OURS, Case
from convnext.benchmark.ceiling import matrix_products
from convnext.benchmark.peak_memory import PeakMemory
from convnext.benchmark.peers import build
from convnext.benchmark.settings import SETTINGS, Call, inference, training
from convnext.errors import ConvNeXtError, KernelsWarning, reason

WARM_UP = 3  # calls before the first turn, which begins with one more that does not count
LONG = 2  # seconds of a call that is the last of them, compiling and all
TURN_SECONDS = 0.2  # that a turn lasts at least, so that the way between processes is nothing beside it


def network_of(case: Case) -> nn.Module:
    """The network of a row."""
    if case.file:
        return torch.load(case.file, weights_only=False)  # written for this row alone, by the process that started it
    return build(case.name, case.library, case.image_size)


def call_of(case: Case, device: torch.device) -> tuple[Call, float]:
    """What a row runs, and how much it is: images, or FLOP for the ceiling."""
    if case.library == CEILING:
        return matrix_products(case.precision, device)
    setting = SETTINGS[case.setting]
    model = network_of(case).to(device)
    images = torch.randn(case.batch, case.in_channels, case.image_size, case.image_size, device=device)
    if case.mode == "inference":
        return inference(model, images, case.precision, setting), case.batch
    with torch.inference_mode():
        classes = model.eval()(images[:1]).shape[1]
    labels = torch.randint(classes, (case.batch,), device=device)
    return training(model, images, labels, case.precision, setting), case.batch


def prepared(case: Case) -> tuple[Callable[[], float], dict[str, Any], PeakMemory]:
    """A row's turn, what is to be known of it, and the meter of its memory."""
    torch.manual_seed(0)
    device = torch.device(case.device)
    if case.library not in (CEILING, OURS):
        importlib.import_module(case.library)  # before memory counts
    memory = PeakMemory(device)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call, work = call_of(case, device)
        warm_up(call)
    give_back()
    memory.begin()

    def turn() -> float:
        seconds_of(call)  # finds caches and memory as another process left them, so it does not count
        seconds = seconds_of_calls(call)
        give_back()  # to the processes whose turn it is
        return seconds

    notes = [str(warning.message) for warning in caught if issubclass(warning.category, KernelsWarning)]
    return turn, {"work": work, "notes": notes}, memory


def warm_up(call: Call) -> None:
    """Run until compilers, allocators and caches have done their work, or once where a call takes long."""
    for _ in range(WARM_UP):
        if seconds_of(call) > LONG:
            break


def seconds_of_calls(call: Call) -> float:
    """Seconds of a call, on average over as many as fill a turn."""
    seconds, calls = 0.0, 0
    while seconds < TURN_SECONDS:
        seconds += seconds_of(call)
        calls += 1
    return seconds / calls


def answer(make: Callable[[], dict[str, Any]], batch: int) -> dict[str, Any]:
    """What a request comes to; of one that fails, why."""
    try:
        return make()
    except ConvNeXtError as error:
        return {"error": str(error)}
    except (MemoryError, torch.OutOfMemoryError):
        return {"error": out_of_memory(batch)}
    except Exception as error:  # a library or its compiler may fail in any way: that is this row's result
        text = str(error)
        if "alloc" in text and "memory" in text:
            return {"error": out_of_memory(batch)}
        return {"error": f"{type(error).__name__}: {reason(error)}"}


def out_of_memory(batch: int) -> str:
    """Words for a row that does not fit."""
    return f"out of memory at batch {batch}: take a smaller --batch"


def main() -> None:
    """Answer until stdin ends."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries print is no answer
    asked = json.loads(sys.stdin.readline())
    torch.set_num_threads(asked["threads"])
    case = Case(**asked["case"])
    turn, memory = None, None

    def begin() -> dict[str, Any]:
        nonlocal turn, memory
        turn, facts, memory = prepared(case)
        return facts

    def go_on() -> dict[str, Any]:
        assert turn is not None
        assert memory is not None
        return {"seconds": turn(), "peak_memory": memory.bytes()}

    print(json.dumps(answer(begin, case.batch)), file=answers)
    for _ in sys.stdin:
        print(json.dumps(answer(go_on, case.batch)), file=answers)


if __name__ == "__main__":
    main()
