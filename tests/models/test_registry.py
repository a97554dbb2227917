"""Models by name: the registry, the references, and what each costs."""

from typing import Any

import pytest
import torch

import convnext
from convnext.models import model_costs
from convnext.models.cost import images_per_second


def test_list_models() -> None:
    names = convnext.list_models()
    assert names == sorted(names)
    assert len(names) == 20 + 3 * 16
    assert convnext.list_models("convnextv2_*") == sorted(
        f"convnextv2_{size}" for size in ("atto", "femto", "pico", "nano", "tiny", "base", "large", "huge")
    )
    assert convnext.list_models("torchvision/resnet*")[0] == "torchvision/resnet101"
    assert convnext.list_models("nothing*") == []


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("convnext_tinny", "convnext_tiny"),
        ("torchvision/resnet51", "torchvision/resnet50"),
        ("timm/resnet51", "timm/resnet50"),
        ("resnet50", "convnext"),
    ],
)
def test_unknown_model_lists_the_nearest(name: str, nearest: str) -> None:
    with pytest.raises(convnext.UsageError, match=f"'{name}'.*{nearest}"):
        convnext.create_model(name)


# Parameters and GMACs at 224 px as their libraries or papers publish them.
REFERENCES = {
    "torchvision/resnet50": (25_557_032, 4.089),
    "torchvision/resnext50_32x4d": (25_028_904, 4.230),
    "torchvision/swin_t": (28_288_354, 4.491),
    "torchvision/vit_b_16": (86_567_656, 17.564),
    "torchvision/mobilenet_v2": (3_504_872, 0.301),
    "torchvision/googlenet": (6_624_904, 1.498),
    "timm/resnet50": (25_557_032, 4.089),
}


@pytest.mark.parametrize("name", REFERENCES)
def test_cost_of_references(name: str) -> None:
    with torch.device("meta"):
        model = convnext.create_model(name)
    cost = convnext.cost(model)
    assert (cost.params, round(cost.macs / 1e9, 3)) == REFERENCES[name]


@pytest.mark.parametrize(("name", "millions"), [("torchvision/resnet50", 11.11), ("convnext_tiny", 13.44)])
def test_activations_as_timm_publishes_them(name: str, millions: float) -> None:
    with torch.device("meta"):
        model = convnext.create_model(name)
    assert round(convnext.cost(model).activations / 1e6, 2) == millions


def test_cost_leaves_the_model_alone() -> None:
    model = convnext.create_model("roadmap_micro/resnet")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    convnext.cost(model, 64)
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_cost_counts_by_hand() -> None:
    model = torch.nn.Sequential(
        torch.nn.Conv2d(2, 5, 3, padding=1, bias=False), torch.nn.Flatten(), torch.nn.Linear(80, 7)
    )
    cost = convnext.cost(model, 4)
    assert cost == convnext.Cost(params=90 + 567, macs=5 * 16 * 2 * 9 + 560, activations=80 + 7)


@pytest.mark.parametrize("name", ["torchvision/vit_b_16", "timm/vit_tiny_patch16_224", "torchvision/swin_t"])
def test_references_take_an_image_size(name: str) -> None:
    model = convnext.create_model(name, num_classes=3, image_size=64).eval()
    assert model(torch.randn(1, 3, 64, 64)).shape == (1, 3)


def test_timm_reference_options() -> None:
    model = convnext.create_model("timm/convnext_atto", num_classes=3, in_chans=1, drop_path_rate=0.2)
    assert model(torch.randn(2, 1, 32, 32)).shape == (2, 3)
    with pytest.raises(convnext.UsageError, match=r"torchvision/resnet18 .*'in_chans'"):
        convnext.create_model("torchvision/resnet18", in_chans=1)
    with pytest.raises(convnext.UsageError, match=r"timm/vgg11 .*drop_path_rate=0\.1"):
        convnext.create_model("timm/vgg11", drop_path_rate=0.1)


@pytest.mark.parametrize(
    ("name", "options"),
    [("torchvision/vit_b_16", {"image_size": 30}), ("torchvision/resnet18", {"num_classes": 0})],
)
def test_what_a_reference_cannot_be_built_with(name: str, options: dict[str, Any]) -> None:
    with pytest.raises(convnext.UsageError, match=f"{name} .*{next(iter(options))}"):
        convnext.create_model(name, **options)


def test_images_per_second_restores_the_mode() -> None:
    model = convnext.create_model("roadmap_micro/resnet")
    assert images_per_second(model, torch.randn(2, 3, 32, 32), seconds=0.01) > 0
    assert model.training


def test_family_rows() -> None:
    (row,) = model_costs("convnext_tiny")
    assert row == {
        "name": "convnext_tiny",
        "params": 28_589_128,
        "macs": 4_455_531_264,
        "activations": row["activations"],
        "image_size": 224,
    }
    with pytest.raises(convnext.UsageError, match=r"convnext_tinny.*convnext_tiny"):
        model_costs("convnext_tinny")
