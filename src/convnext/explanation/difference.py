"""How the architectures of two models differ: in design choices, in counts, part by part and layer by layer."""

import dataclasses
from difflib import SequenceMatcher
from typing import Any, Literal

from rich.table import Table
from rich.text import Text

from convnext.console import table_of
from convnext.explanation.architecture import Architecture, Block, Part, totals

Mark = Literal["same", "changed", "only"]
COUNTED = {
    "convolutions and linear layers": ("convolution", "linear"),
    "norms": ("norm",),
    "activations": ("activation",),
}


def paired_parts(models: tuple[Architecture, ...]) -> list[tuple[str, list[Part | None]]]:
    """The parts that stand in the same place, by title, from the stem to the head; None where a model has none."""
    by_title = [{part.title: part for part in model.parts} for model in models]

    def place(title: str) -> float:
        numbers = [int(word) for word in title.split() if word.isdigit()]
        return sum(numbers) / len(numbers) if numbers else {"stem": 0.0}.get(title, float("inf"))

    titles = sorted({title for parts in by_title for title in parts}, key=place)
    return [(title, [parts.get(title) for parts in by_title]) for title in titles]


def differs(parts: list[Part | None]) -> bool:
    """True unless all models have the same blocks with outputs of the same size in this place."""
    facts = [part and (part.layers[-1].out, [block.signature for block in part.blocks]) for part in parts]
    return any(fact != facts[0] for fact in facts)


def marks(ours: Block, theirs: Block) -> dict[int, Mark]:
    """How the layers of ``ours``, by place, relate to the layer in the same place of ``theirs``."""
    one, other = ([layer for layer in block.layers if layer.kind != "drop"] for block in (ours, theirs))
    families = [[layer.family for layer in layers] for layers in (one, other)]
    found: dict[int, Mark] = {layer.place: "only" for layer in one}
    for match in SequenceMatcher(None, *families, autojunk=False).get_matching_blocks():
        for i in range(match.size):
            layer, counterpart = one[match.a + i], other[match.b + i]
            found[layer.place] = "same" if layer.text == counterpart.text else "changed"
    return found


def design_difference(models: tuple[Architecture, ...]) -> dict[str, list[Any]]:
    """The choices in which the designs of two models differ; empty unless both have one."""
    designs = [dataclasses.asdict(model.design) for model in models if model.design]
    if len(designs) < 2:
        return {}
    return {name: [design[name] for design in designs] for name in designs[0] if designs[0][name] != designs[1][name]}


def counts(models: tuple[Architecture, ...]) -> dict[str, list[int]]:
    """The number of blocks and of layers by kind, of each model."""
    found = {"blocks": [sum(len(part.blocks) for part in model.parts if part.kind == "stage") for model in models]}
    for name, kinds in COUNTED.items():
        found[name] = [sum(layer.kind in kinds for layer in model.layers) for model in models]
    return found


def difference_document(*models: Architecture) -> dict[str, Any]:
    """The document of ``convnext explain A B --architecture --json``."""
    costs = [totals(model.layers) for model in models]
    parts = []
    for title, both in paired_parts(models):
        facts = [(totals(part.layers), part) if part else None for part in both]
        parts.append(
            {"title": title, "differs": differs(both), "depth": [fact and len(fact[1].blocks) for fact in facts]}
            | {key: [fact and fact[0][key] for fact in facts] for key in ("out", "params", "macs")}
            | {"blocks": [fact and [block_text(part_block, n) for n, part_block in fact[1].groups()] for fact in facts]}
        )
    difference = {"design": design_difference(models), "counts": counts(models), "parts": parts}
    difference |= {key: [cost[key] for cost in costs] for key in ("params", "macs")}
    return {"models": [model.to_dict() for model in models], "difference": difference}


def block_text(block: Block, count: str = "") -> str:
    """A block in one line: its layers in order."""
    return count + " · ".join(layer.text for layer in block.layers)


def architecture_table(*models: Architecture) -> Table:
    """One model part by part, or two beside each other with the choices and the parts in which they differ."""
    table = table_of(Text(" and ".join(model.name for model in models)))
    for name in ("", *(model.name for model in models)):
        table.add_column(Text(name))
    for name, values in design_difference(models).items():
        table.add_row(name, *map(str, values))
    costs = [totals(model.layers) for model in models]
    for name, key in (("parameters", "params"), ("MACs", "macs")):
        table.add_row(name, *(f"{cost[key]:,}" for cost in costs))
    for name, values in counts(models).items():
        table.add_row(name, *map(str, values))
    table.add_section()
    same = []
    for title, parts in paired_parts(models):
        if len(models) > 1 and not differs(parts):
            same.append(title)
            continue
        lines = [
            "\n".join([", ".join(part.summary()), *(block_text(block, n) for n, block in part.groups())])
            if part
            else "-"
            for part in parts
        ]
        table.add_row(title, *map(Text, lines))
    if same:
        table.add_row("the same", Text(", ".join(same)))
    return table
