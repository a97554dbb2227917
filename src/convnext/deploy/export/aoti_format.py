"""A package of AOTInductor: the network compiled to machine code; it starts without compiling."""

import json
import warnings
import zipfile
from pathlib import Path

from torch import Tensor

from convnext.deploy.export.graph import graph_of, program_of
from convnext.deploy.export.order import Loaded, Order, Written
from convnext.deploy.export.torch_format import CARD, read_extra
from convnext.environment import vector_instructions
from convnext.errors import RunError, UsageError, reason
from convnext.files import writing

INSTRUCTIONS = "instructions"  # the entry that says what the machine code needs of a processor
LEVELS = ("DEFAULT", "AVX2", "AVX512")  # of x86, each of which has those before


def write(order: Order) -> Written:
    """Compile, and write the package.

    Raises:
        UsageError: there is no compiler.
    """
    import torch._inductor

    dtype = torch.bfloat16 if order.card.precision == "bf16" else torch.float32
    program = program_of(graph_of(order.model, order.card, dtype), order.card)
    instructions = vector_instructions()
    options = {"aot_inductor.package_constants_in_so": True}
    with writing(order.path, 0), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            torch._inductor.aoti_compile_and_package(program, package_path=str(order.path), inductor_configs=options)
        except Exception as error:  # a compiler may fail in any way
            if "compiler" in str(error).lower():
                raise UsageError(f"format aoti needs a C++ compiler, such as g++: {reason(error)}") from error
            raise
        document = json.dumps(order.card.to_metadata() | {INSTRUCTIONS: instructions})
        with zipfile.ZipFile(order.path, "a") as archive:  # where torch.export keeps what is beside a program
            root = archive.namelist()[0].partition("/")[0]
            archive.writestr(f"{root}/extra/{CARD}", document)
    note = f"its machine code is for {instructions} and torch {torch.__version__}: it opens on such machines alone"
    return Written([order.path], (note,))


def load(path: Path) -> Loaded:
    """Open a package that is trusted: it is machine code.

    Raises:
        RunError: it is for a processor with instructions that this one has not.
    """
    import torch._inductor

    metadata = read_extra(path)
    needs, has = metadata.get(INSTRUCTIONS, LEVELS[0]), vector_instructions()
    if needs != has and not (needs in LEVELS and has in LEVELS and LEVELS.index(needs) <= LEVELS.index(has)):
        raise RunError(f"{path} is for processors with {needs}, this one has {has}: export it here")
    compiled = torch._inductor.aoti_load_package(str(path))

    def call(images: Tensor) -> Tensor:
        return compiled(images)

    return Loaded(call, metadata, ((), ""))
