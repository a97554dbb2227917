"""`convnext benchmark`."""

from typing import TYPE_CHECKING

from convnext.cli.options import Device, Json, ModelNames, Trust, names, note, print_json, show, whole_numbers

if TYPE_CHECKING:
    from convnext.benchmark.comparison import Benchmark


def benchmark(
    models: ModelNames = ("convnext_tiny",),
    against: str = "",
    mode: str = "inference",
    batch: str = "16",
    precision: str = "auto",
    image_size: int | None = None,
    device: Device = "auto",
    threads: int | None = None,
    rounds: int = 10,
    seconds: float = 60,
    race: bool = True,
    compile: bool = True,
    trust: Trust = False,
    json: Json = False,
) -> None:
    """Measure the speed of models on this machine, in every setting, against other libraries and the machine's own
    matrix products.

    Every configuration has a process of its own; they are measured interleaved, round by round, and one that another
    setting of the same model clearly beats ends early. Images/s are medians; the ceiling is what matrix products alone
    would allow; peak memory is the process's (on a GPU what torch allocates).

    Args:
        against: libraries to compare with, separated by commas: timm,torchvision,transformers.
        mode: inference, training (forward, backward, AdamW), or inference,training.
        batch: images per call; several, separated by commas, show how speed and memory grow.
        precision: fp32, bf16, or auto for all that the device computes in.
        image_size: height and width in pixels; the model's own by default, 224 for random weights.
        threads: of each process, pinned to as many CPUs; one per core by default.
        rounds: maximum for each configuration.
        seconds: begin no further round after this time; for each mode, batch and precision.
        race: end settings of a model that another clearly beats, so that time is left for those that may be fastest.
        compile: measure with torch.compile as well, which takes up to a minute for each model, library and precision.
    """
    from convnext.benchmark.benchmark_plan import make_plan, open_model
    from convnext.benchmark.comparison import Benchmark

    plan = make_plan(
        [open_model(name, trust) for name in dict.fromkeys(models)],
        against=names(against),
        modes=names(mode),
        precisions=[] if precision == "auto" else names(precision),
        batches=whole_numbers("batch", batch),
        image_size=image_size,
        device=device,
        threads=threads,
        race=race,
        compiled=compile,
        rounds=rounds,
        seconds=seconds,
    )
    print_benchmark(Benchmark(plan), json)


def print_benchmark(benchmark: "Benchmark", json: bool) -> None:
    """Run a benchmark and print its figures, after Ctrl-C those that were measured until then."""
    from convnext.benchmark.benchmark_table import tables

    message = ""
    try:
        for line in benchmark.run():
            note(line)
    except KeyboardInterrupt:
        message = "Interrupted. What was measured until then is on stdout."
    print_json(benchmark.document()) if json else show(tables(benchmark.document()))
    if message:
        raise KeyboardInterrupt(message)
