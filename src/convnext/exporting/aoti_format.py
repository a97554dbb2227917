"""A package of AOTInductor: the network compiled to machine code; it starts without compiling."""

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import torch
import torch._inductor
from torch import Tensor

from convnext.environment import vector_instructions
from convnext.errors import RunError, UsageError, reason
from convnext.exporting.extras import hushed, needed
from convnext.exporting.graph import batches_of, graph_of, program_of
from convnext.exporting.job_types import Loaded, Order, Written
from convnext.exporting.pt2 import CARD, read_extra, write_bytes

INT8_EXTRA = "torchao"
FP32 = ("stem", "head", *(f"downsample_layers.{i}" for i in range(4)))  # little work, and costs accuracy
INSTRUCTIONS = "instructions"  # the entry that says what the machine code needs of a processor
LEVELS = ("DEFAULT", "AVX2", "AVX512")  # of x86, each of which has those before


def write(order: Order) -> Written:
    """Compile, and write the package.

    Raises:
        UsageError: there is no compiler.
    """
    dtype = torch.bfloat16 if order.card.precision == "bf16" else torch.float32
    program = program_of(graph_of(order.model, order.card, dtype), order.card)
    if order.calibration is not None:
        program = quantized(program, order)
    instructions = vector_instructions()
    # Freezing lays weights out for the processor, and gives int8 its products.
    options = {"aot_inductor.package_constants_in_so": True, "freezing": True}
    whole = io.BytesIO()  # torch, writing to a disk that is full, ends the process
    with hushed():
        try:
            torch._inductor.aoti_compile_and_package(program, package_path=whole, inductor_configs=options)
        except Exception as error:  # a compiler may fail in any way
            if "compiler" in str(error).lower():
                raise UsageError(f"format aoti needs a C++ compiler, such as g++: {reason(error)}") from error
            raise
    document = json.dumps(order.card.to_metadata() | {INSTRUCTIONS: instructions})
    with zipfile.ZipFile(whole, "a") as archive:  # where torch.export keeps what is beside a program
        root = archive.namelist()[0].partition("/")[0]
        archive.writestr(f"{root}/extra/{CARD}", document)
    write_bytes(order.path, whole)
    note = f"its machine code is for {instructions} and torch {torch.__version__}: it opens on such machines alone"
    return Written([order.path], (note,))


def quantized(program: torch.export.ExportedProgram, order: Order) -> torch.export.ExportedProgram:
    """A program in int8, by torchao's quantiser for x86; stem, downsampling layers and classifier stay fp32."""
    assert order.calibration is not None
    with hushed(), torch.no_grad():
        pt2e = needed("torchao.quantization.pt2e", INT8_EXTRA)
        steps = needed("torchao.quantization.pt2e.quantize_pt2e", INT8_EXTRA)
        x86 = needed("torchao.quantization.pt2e.quantizer.x86_inductor_quantizer", INT8_EXTRA)
        quantizer = x86.X86InductorQuantizer()
        quantizer.set_global(x86.get_default_x86_inductor_quantization_config())
        network = "inner.network" if order.card.with_preprocessing else "network"
        for name in FP32:
            quantizer.set_module_name_qconfig(f"{network}.{name}", None)
        graph: Any = program.module()
        for node in graph.graph.nodes:
            if node.target is torch.ops.aten.linear.default:  # the quantiser sees it by its module, if that is torch's
                node.meta["source_fn_stack"] = [(node.name, torch.nn.functional.linear)]
        observed = steps.prepare_pt2e(graph, quantizer)
        for batch in batches_of(order.calibration, order.card):
            observed(batch)
        converted = steps.convert_pt2e(observed)
        pt2e.move_exported_model_to_eval(converted)
    return program_of(converted, order.card)


def load(path: Path) -> Loaded:
    """Open a package that is trusted: it is machine code.

    Raises:
        RunError: it is for a processor with instructions that this one has not.
    """
    metadata = read_extra(path)
    needs, has = metadata.get(INSTRUCTIONS, LEVELS[0]), vector_instructions()
    if needs != has and not (needs in LEVELS and has in LEVELS and LEVELS.index(needs) <= LEVELS.index(has)):
        raise RunError(f"{path} is for processors with {needs}, this one has {has}: export it here")
    compiled = torch._inductor.aoti_load_package(str(path))

    def call(images: Tensor) -> Tensor:
        return compiled(images)

    return Loaded(call, metadata, ((), ""))
