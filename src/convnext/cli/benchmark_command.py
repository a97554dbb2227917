"""`convnext benchmark`."""

from convnext.cli.options import Device, Json, ModelNames, Trust, names, note, print_json, show, whole_numbers


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
    """Measure how fast networks run on this machine, in every setting, against other libraries' and the machine's own
    matrix products.

    Every row has a process of its own; they take turns, round by round, and one that another setting of the same
    network clearly beats ends early. Images a second are medians; the ceiling is what matrix products alone would
    allow; peak memory is the process's (a GPU's: what torch allocates on it).

    Args:
        against: libraries whose same network to measure as well, separated by commas: timm,torchvision,transformers.
        mode: inference, training (forward, backward, AdamW), or inference,training.
        batch: images at a time; several, separated by commas, show how speed and memory grow.
        precision: fp32, bf16, or auto for all that the device computes in.
        image_size: pixels a side; the network's own by default, 224 for random weights.
        threads: of each process, pinned to as many processors; one for each core by default.
        rounds: turns of a row, at most.
        seconds: begin no further round later than this; for each mode, batch and precision.
        race: end settings of a network that another clearly beats, so that time is left for those that may be fastest.
        compile: try torch.compile as well, which takes up to a minute for each network, library and precision.
    """
    from convnext.benchmark.benchmark_plan import make_plan, open_network
    from convnext.benchmark.benchmark_table import tables
    from convnext.benchmark.comparison import Benchmark

    plan = make_plan(
        [open_network(name, trust) for name in dict.fromkeys(models)],
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
    run = Benchmark(plan)

    def print_figures() -> None:
        print_json(run.document()) if json else show(tables(run.document()))

    try:
        for line in run.run():
            note(line)
    except KeyboardInterrupt:
        print_figures()
        raise KeyboardInterrupt("Interrupted. What was measured until then is on stdout.") from None
    print_figures()
