"""The architecture as data: costs add up to the model's, layers stand in the order of computation."""

import pytest
import torch

import convnext
from convnext.errors import UsageError
from convnext.explanation.architecture import Architecture, architecture


def read(name: str, image_size: int = 224) -> Architecture:
    with torch.device("meta"):
        return architecture(convnext.create_model(name), name, image_size)


def texts(shown: Architecture, stage: int, block: int) -> list[str]:
    stages = [part for part in shown.parts if part.kind == "stage"]
    return [layer.text for layer in stages[stage].blocks[block].layers]


@pytest.mark.parametrize(
    "name",
    [
        "convnext_tiny",
        "convnextv2_atto",
        "convnext_isotropic_small",
        *(f"roadmap_micro/{step.key}" for step in convnext.roadmap("micro")),
    ],
)
def test_the_document_adds_up_to_the_cost(name: str) -> None:
    document = read(name).to_dict()
    with torch.device("meta"):
        cost = convnext.cost(convnext.create_model(name))
    layers = [layer for part in document["parts"] for block in part["blocks"] for layer in block["layers"]]
    for key, whole in (("params", cost.params), ("macs", cost.macs)):
        assert sum(part[key] for part in document["parts"]) == whole == document[key]
        assert sum(layer[key] for layer in layers) == whole
    assert [layer["place"] for layer in layers] == list(range(len(layers)))
    assert all(source < layer["place"] for layer in layers for source in layer["inputs"])


def test_layers_are_those_of_the_paper() -> None:
    tiny = read("convnext_tiny")
    block = ["d7x7, 384", "LN", "1x1, 1536", "GELU", "1x1, 384", "LayerScale", "+"]
    assert texts(tiny, 2, 0) == block
    assert [part.title for part in tiny.parts][:4] == ["stem", "stage 1", "between stages 1 and 2", "stage 2"]
    assert [layer.text for layer in tiny.parts[0].layers] == ["4x4, 96, /4", "LN"]
    assert [layer.text for layer in tiny.parts[-1].layers] == ["global average pool", "LN", "linear, 1000"]
    assert texts(read("convnextv2_atto"), 0, 0) == ["d7x7, 40", "LN", "1x1, 160", "GELU", "GRN", "1x1, 40", "+"]
    resnet = read("roadmap_tiny/resnet")
    branch = ["1x1, 128", "BN", "ReLU", "3x3, 128, /2", "BN", "ReLU", "1x1, 512", "BN", "LayerScale", "drop path"]
    assert texts(resnet, 1, 0) == [*branch, "1x1, 512, /2", "BN", "+", "ReLU"]


def test_the_addition_takes_branch_and_shortcut() -> None:
    stages = [part for part in read("roadmap_tiny/resnet").parts if part.kind == "stage"]
    for block, length in ((stages[1].blocks[0], 2), (stages[1].blocks[1], 0)):
        places = {layer.place: layer for layer in block.layers}
        shortcut = [layer for layer in block.layers if layer.on_shortcut]
        (add,) = (layer for layer in block.layers if layer.kind == "add")
        entry = block.layers[0].inputs[0]
        assert len(shortcut) == length
        assert places[add.inputs[0]].text == "drop path"
        assert add.inputs[1] == (shortcut[-1].place if shortcut else entry)
        assert not shortcut or shortcut[0].inputs == (entry,)


def test_output_sizes_follow_the_image() -> None:
    assert [part.layers[-1].out for part in read("roadmap_micro/resnet", 64).parts] == [
        (16, 16, 16),
        (16, 16, 64),
        (8, 8, 128),
        (4, 4, 256),
        (2, 2, 512),
        (1000,),
    ]


def test_other_models_and_small_images_are_refused() -> None:
    with pytest.raises(UsageError, match="Linear"):
        architecture(torch.nn.Linear(2, 2), "a layer")
    with pytest.raises(UsageError, match="16"):
        read("convnext_atto", 16)
