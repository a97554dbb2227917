"""The command line: one file a command; parse, call, print."""

import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import tyro

from convnext.cli.benchmark_command import benchmark
from convnext.cli.convert_command import convert
from convnext.cli.evaluate_command import evaluate
from convnext.cli.explain_command import explain
from convnext.cli.export_command import export
from convnext.cli.models_command import models
from convnext.cli.options import note, reports_usage
from convnext.cli.predict_command import predict
from convnext.cli.recipes_command import recipes
from convnext.cli.roadmap_command import roadmap
from convnext.cli.serve_command import serve
from convnext.cli.train_command import TrainArguments, parse_train, train
from convnext.errors import ConvNeXtError, UsageError

INTERRUPTED = 130
DESCRIPTION = "From a ResNet to a ConvNeXt, one measured step at a time; and from there to a trained network."


def run(words: Sequence[str]) -> None:
    """Parse the words and call the command that they name."""
    if words[:1] == ["train"]:
        train(*parse_train(words[1:]))
    else:
        commands: dict[str, Callable[..., Any]] = {
            "roadmap": roadmap,
            "train": TrainArguments,
            "recipes": recipes,
            "evaluate": evaluate,
            "predict": predict,
            "export": export,
            "explain": explain,
            "serve": serve,
            "convert": convert,
            "models": models,
            "benchmark": benchmark,
        }
        tyro.extras.subcommand_cli_from_dict(commands, prog="convnext", description=DESCRIPTION, args=words)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status.

    0 done, 1 the work failed, 2 the words were wrong, 75 stopped by a signal with all saved, 130 interrupted.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        run(words)
        sys.stdout.flush()
    except ConvNeXtError as error:
        rank = os.environ.get("RANK", "0")  # torchrun's; what is wrong with the words, one process a machine says
        if reports_usage() or not isinstance(error, UsageError):
            note(f"error: {error}" if rank == "0" else f"error in process {rank}: {error}")
        return error.exit_status
    except KeyboardInterrupt as interrupt:
        note(str(interrupt) or "Interrupted.")
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0
