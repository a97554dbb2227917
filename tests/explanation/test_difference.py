"""What differs between two architectures: choices, counts, parts and layers."""

import pytest
from rich.console import Console

import convnext
from convnext.explanation.difference import (
    architecture_table,
    design_difference,
    difference_document,
    differs,
    marks,
    paired_parts,
)
from tests.explanation.test_architecture import read


def test_two_steps_of_the_roadmap_differ_in_their_one_change() -> None:
    steps = convnext.roadmap("micro")
    for step in steps[1:]:
        models = read(f"roadmap_micro/{step.before}"), read(f"roadmap_micro/{step.key}")
        before = next(other for other in steps if other.key == step.before)
        found = design_difference(models)
        assert found
        for name, (ours, theirs) in found.items():
            assert (ours, theirs) == (getattr(before.design, name), getattr(step.design, name))
            assert ours != theirs
        assert any(differs(parts) for _, parts in paired_parts(models))


def test_the_document_and_the_table_say_the_same() -> None:
    models = read("roadmap_micro/gelu"), read("roadmap_micro/fewer_activations")
    found = difference_document(*models)["difference"]
    assert found["design"] == {"activations": [3, 1]}
    assert found["counts"]["activations"] == [18, 6]
    assert [part["title"] for part in found["parts"] if not part["differs"]] == ["stem", "head"]
    console = Console(width=200)
    with console.capture() as capture:
        console.print(architecture_table(*models))
    assert "stem, head" in capture.get()
    assert f"{found['macs'][0]:,}" in capture.get()


def test_layers_are_compared_in_order_by_what_they_do() -> None:
    ours, theirs = (
        next(part for part in read(name).parts if part.kind == "stage").groups()[0][1]
        for name in ("roadmap_tiny/gelu", "roadmap_tiny/fewer_activations")
    )
    found = {layer.place: layer.text for layer in ours.layers}
    only = [found[place] for place, mark in marks(ours, theirs).items() if mark == "only"]
    assert only == ["GELU", "GELU"]
    assert set(marks(theirs, ours).values()) == {"same"}
    assert set(marks(ours, ours).values()) == {"same"}


@pytest.mark.parametrize("name", ["convnext_isotropic_small", "roadmap_micro/resnet"])
def test_parts_that_one_model_has_not_are_empty(name: str) -> None:
    parts = difference_document(read(name), read("convnext_atto"))["difference"]["parts"]
    between = next(part for part in parts if part["title"] == "between stages 1 and 2")
    assert between["params"][0] is None
    assert between["params"][1] > 0
