"""What is read out of a network is what it computes: costs, order, blocks, layers."""

from typing import Any

import pytest
import torch
from torch import nn

import convnext
from convnext.errors import UsageError
from convnext.explanation.execution import execute
from convnext.explanation.structure import Block, Structure, structure
from convnext.models.design import DesignNetwork
from convnext.models.layers import DropPath

REFERENCES = ["torchvision/resnet50", "torchvision/swin_t", "torchvision/vit_b_16", "timm/vit_tiny_patch16_224"]


def network(name: str, **options: Any) -> nn.Module:
    with torch.device("meta"):
        return convnext.create_model(name, **options)


def texts(block: Block) -> list[str]:
    return [layer.text for layer in block.layers]


def check(name: str) -> Structure:
    """The parts' costs are the network's to the unit, and no layer is left out, twice there or out of order."""
    model = network(name)
    found, cost = structure(model), convnext.cost(model)
    assert (found.params, found.macs, found.unused) == (cost.params, cost.macs, {})
    assert [layer.place for layer in found.layers] == list(range(len(found.layers)))
    assert all(source < layer.place for layer in found.layers for source in layer.inputs)
    assert not [layer.text for layer in found.layers if layer.kind == "other"]
    return found


def check_of_package(name: str) -> None:
    """The same, and the stages are those of the design."""
    found, model = check(name), network(name)
    if isinstance(model, DesignNetwork):
        assert tuple(len(stage.blocks) for stage in found.stages) == model.design.depths
        assert tuple(stage.shape[-1] for stage in found.stages) == model.design.widths
    assert (found.parts[0].kind, found.parts[-1].kind) == ("stem", "head")


@pytest.mark.parametrize(
    "name",
    ["convnext_atto", "convnext_isotropic_small", "convnextv2_atto", *convnext.list_models("roadmap_micro/*")],
)
def test_networks_are_read_to_the_unit(name: str) -> None:
    check_of_package(name)


@pytest.mark.slow
def test_the_whole_registry_is_read_to_the_unit() -> None:
    for name in convnext.list_models():
        check_of_package(name)


@pytest.mark.parametrize("name", REFERENCES)
def test_references_are_read_to_the_unit(name: str) -> None:
    assert check(name).stages


@pytest.mark.slow
def test_every_network_of_torchvision_is_read_to_the_unit() -> None:
    for name in convnext.list_models("torchvision/*"):
        if "regnet" not in name:  # which cannot be built without values
            check(name)


def test_layers_stand_in_the_order_in_which_they_are_computed() -> None:
    model = convnext.create_model("roadmap_micro/resnet").eval()
    order: list[str] = []
    for path, module in model.named_modules():
        idle = isinstance(module, nn.Identity) or (isinstance(module, DropPath) and not module.rate)
        if not list(module.children()) and not idle:
            module.register_forward_hook(lambda *_, path=path: order.append(path))
    with torch.inference_mode():
        model(torch.zeros(2, 3, 64, 64))
    expected = list(order)
    paths = [layer.path for layer in structure(model, 64).layers]
    assert [path for path in paths if path in expected] == expected
    assert len(expected) == 62


def test_the_papers_blocks() -> None:
    """ResNet-50's and ConvNeXt-T's blocks, as the paper's figure 4 draws them."""
    resnet = structure(network("torchvision/resnet50"))
    assert texts(resnet.stages[0].blocks[1]) == (
        ["1x1, 64", "BN", "ReLU", "3x3, 64", "BN", "ReLU", "1x1, 256", "BN", "+", "ReLU"]
    )
    assert [part.title for part in resnet.parts] == ["stem", "stage 1", "stage 2", "stage 3", "stage 4", "head"]
    assert resnet.stages[1].shape == (28, 28, 512)
    tiny = structure(network("convnext_tiny"))
    assert texts(tiny.stages[0].blocks[0]) == ["d7x7, 96", "LN", "1x1, 384", "GELU", "1x1, 96", "LayerScale", "+"]
    assert [part.kind for part in tiny.parts] == ["stem", *(["stage", "downsampling"] * 4)[:-1], "head"]
    assert texts(tiny.parts[0].blocks[0]) == ["4x4, 96, /4", "LN"]
    assert texts(tiny.parts[2].blocks[0]) == ["LN", "2x2, 192, /2"]
    assert texts(tiny.parts[-1].blocks[0]) == ["global average pool", "LN", "linear, 1000"]
    depthwise, _, wide, *_ = tiny.stages[2].blocks[0].layers
    assert (depthwise.groups, depthwise.kernel, depthwise.shape) == (384, (7, 7), (14, 14, 384))
    assert (depthwise.params, depthwise.macs) == (384 * 50, 384 * 49 * 14 * 14)
    assert (wide.params, wide.macs) == (384 * 1536 + 1536, 384 * 1536 * 14 * 14)


def test_swin_has_its_windows_shifts_and_patch_merging() -> None:
    swin = structure(network("torchvision/swin_t"))
    assert [len(stage.blocks) for stage in swin.stages] == [2, 2, 6, 2]
    plain, shifted = swin.stages[0].blocks
    assert texts(plain)[:5] == ["LN", "1x1, 288", "attention, 3 heads, 7x7 windows", "1x1, 96", "+"]
    assert [text for text in texts(shifted) if "shift" in text] == ["shift by -3, -3", "shift by 3, 3"]
    assert texts(swin.parts[2].blocks[0]) == ["2x2 patches to one", "LN", "1x1, 192"]
    attention = plain.layers[2]
    assert attention.macs == 2 * 56 * 56 * 49 * 96
    assert attention.params == 13 * 13 * 3  # relative positions


def test_v2_has_grn_between_gelu_and_the_last_layer() -> None:
    block = structure(network("convnextv2_atto")).stages[0].blocks[0]
    assert texts(block) == ["d7x7, 40", "LN", "1x1, 160", "GELU", "GRN", "1x1, 40", "+"]
    assert block.layers[4].params == 2 * 160


def test_stochastic_depth_stands_where_it_acts_with_its_rate() -> None:
    found = structure(network("convnext_tiny", drop_path=0.17))
    blocks = [block for stage in found.stages for block in stage.blocks]
    rates = [layer.rate for block in blocks for layer in block.layers if layer.kind == "drop"]
    assert rates == pytest.approx([0.17 * i / 17 for i in range(1, 18)])
    assert texts(blocks[1])[-3:] == ["LayerScale", "drop path", "+"]
    assert [len(stage.distinct()) for stage in found.stages] == [1, 1, 1, 1]  # blocks differ in their rates alone


def test_a_residual_branch_leads_from_the_blocks_input_to_its_addition() -> None:
    found = structure(network("convnext_tiny"))
    first, second = found.stages[0].blocks[:2]
    assert second.layers[0].inputs == (first.layers[-1].place,)
    assert set(second.layers[-1].inputs) == {first.layers[-1].place, second.layers[-2].place}


def test_a_network_without_blocks_is_divided_by_the_size_of_its_map() -> None:
    found = structure(network("torchvision/vgg11"))
    assert [part.shape[0] for part in found.stages] == [224, 112, 56, 28, 14, 7]
    assert found.parts[-1].kind == "head"
    assert found.params == convnext.cost(network("torchvision/vgg11")).params


def test_parameters_without_a_use_are_named() -> None:
    class Extra(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.Conv2d(3, 4, 1), nn.Linear(2, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.used(x)

    found = structure(Extra(), 8)
    assert found.unused == {"unused.weight": 4, "unused.bias": 2}
    assert found.params == 16 + 6


def test_the_network_is_left_as_it_is() -> None:
    model = convnext.create_model("roadmap_micro/resnet").train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    execute(model, 64)
    assert model.training
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_an_image_that_the_network_does_not_take_is_refused() -> None:
    with pytest.raises(UsageError, match="image size 16x16 is too small"):
        structure(network("convnext_tiny"), 16)
    with pytest.raises(UsageError, match=r"takes no images of 64x64 pixels .*--image-size"):
        structure(network("torchvision/vit_b_16"), 64)
    with pytest.raises(UsageError, match="ReLU has no parameters that can be followed"):
        structure(nn.ReLU())
