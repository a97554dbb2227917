"""timm's model protocol: timm's own functions and models are the reference."""

import copy
import pickle
from collections.abc import Iterator
from itertools import chain
from typing import Any

import pytest
import timm
import timm.models
import torch
from timm.models._features import FeatureGetterNet, FeatureHookNet
from timm.optim._optim_factory import create_optimizer_v2
from timm.optim._param_groups import param_groups_layer_decay
from torch import Tensor, nn

import convnext
from convnext.acceleration.folding import folded
from convnext.models import FeatureNet
from convnext.models.convnext import Block
from convnext.models.design import DesignBlock
from convnext.models.protocol import Network
from tests.models.conversion import from_timm, randomize

STEPS = [f"roadmap_micro/{step.key}" for step in convnext.roadmap("micro")]
NAMES = ["convnext_atto", "convnextv2_atto", "convnext_isotropic_small", *STEPS]
SIZES: dict[str, Any] = {"depths": (1, 2, 3, 1), "dims": (8, 16, 32, 64)}
IMAGES = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))


def size_of(name: str) -> dict[str, Any]:
    """Options that make a model of the registry small."""
    if "isotropic" in name:
        return {"depth": 5, "dim": 16}
    return SIZES if name in ("convnext_atto", "convnextv2_atto") else {"depths": (1, 2, 3, 1), "width": 8}


def small(name: str, **options: Any) -> Any:
    torch.manual_seed(0)
    arguments: dict[str, Any] = size_of(name) | {"num_classes": 7} | options
    model = convnext.create_model(name, **arguments)
    randomize(model)
    return model


def pair(name: str, **options: Any) -> tuple[Any, Any]:
    """A small model of ours and timm's with the same weights, in evaluation mode."""
    theirs = timm.create_model(name, **SIZES, num_classes=7, **options).eval()
    randomize(theirs)
    ours = small(name, **options).eval()
    (getattr(ours, "model", ours)).load_state_dict(from_timm(theirs.state_dict()))
    return ours, theirs


@pytest.mark.parametrize("name", NAMES)
def test_code_written_for_timm(name: str) -> None:
    model = small(name).eval()
    with torch.no_grad():
        features = model.forward_features(IMAGES)
        pooled = model.forward_head(features, pre_logits=True)
        assert features.shape[:2] == pooled.shape == (2, model.num_features) == (2, model.head_hidden_size)
        assert torch.equal(model.get_classifier()(pooled), model(IMAGES))
        assert torch.equal(model.forward_head(features), model(IMAGES))
        model.reset_classifier(5)
        assert model(IMAGES).shape == (2, 5)
        assert (model.num_classes, model.get_classifier().out_features) == (5, 5)
        assert not model.get_classifier().training
        model.reset_classifier(0)
        assert torch.equal(model(IMAGES), pooled)


@pytest.mark.parametrize("name", NAMES)
def test_feature_info_describes_the_feature_maps(name: str) -> None:
    model = small(name).eval()
    with torch.no_grad():
        last, maps = model.forward_intermediates(IMAGES)
        assert torch.equal(last, model.forward_features(IMAGES))
        assert torch.equal(last, maps[-1])
        for read in (FeatureHookNet, FeatureGetterNet):  # timm's own ways to a backbone
            found = read(copy.deepcopy(model), out_indices=(0, 2))(IMAGES)
            assert all(torch.equal(one, maps[i]) for one, i in zip(found, (0, 2), strict=True))
    info = model.feature_info
    assert info.channels() == [one.shape[1] for one in maps]
    assert info.reduction() == [64 // one.shape[2] for one in maps] == [96 // one.shape[3] for one in maps]
    assert info.reduction(1) == info[1]["reduction"]
    assert all(isinstance(model.get_submodule(module), nn.Module) for module in info.module_name())
    assert info.get_dicts(["num_chs"], [-1]) == [{"num_chs": model.num_features}]
    assert list(pickle.loads(pickle.dumps(info))) == list(copy.deepcopy(info)) == list(info)


@pytest.mark.parametrize("name", ["convnext_atto", "convnextv2_atto"])
def test_intermediates_equal_timm(name: str) -> None:
    ours, theirs = pair(name)
    calls: list[dict[str, Any]] = [
        {},
        {"indices": 2},
        {"indices": [0, -1], "norm": True},
        {"indices": (1,), "stop_early": True},
        {"indices": [2, 0], "intermediates_only": True, "stop_early": True},
    ]
    for options in calls:
        with torch.no_grad():
            found, expected = (model.forward_intermediates(IMAGES, **options) for model in (ours, theirs))
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    for wrong in ({"output_fmt": "NHWC"}, {"indices": 5}, {"indices": []}, {"indices": [4]}, {"indices": 0}):
        with pytest.raises(convnext.UsageError):
            ours.forward_intermediates(IMAGES, **wrong)


@pytest.mark.parametrize("output_stride", [32, 16, 8])
@pytest.mark.parametrize("name", ["convnext_atto", "convnextv2_atto"])
def test_backbones_equal_timm(name: str, output_stride: int) -> None:
    ours, theirs = pair(name, output_stride=output_stride)
    with torch.no_grad():
        torch.testing.assert_close(ours(IMAGES), theirs(IMAGES), rtol=1e-5, atol=1e-5)
        weights = ours.state_dict()
        for indices in ((0, 1, 2, 3), (1, 2)):
            options: dict[str, Any] = {"features_only": True, "out_indices": indices, "output_stride": output_stride}
            backbone = small(name, **options).eval()
            assert isinstance(backbone, FeatureNet)
            backbone.model.load_state_dict({key: weights[key] for key in backbone.model.state_dict()})
            reference: Any = timm.create_model(name, **SIZES, **options).eval()
            flat = {key.replace("_", ".", 1): key for key in reference.state_dict()}
            reference.load_state_dict({flat[key]: value for key, value in theirs.state_dict().items() if key in flat})
            torch.testing.assert_close(backbone(IMAGES), reference(IMAGES), rtol=1e-5, atol=1e-5)
            for read in ("channels", "reduction"):
                assert getattr(backbone.feature_info, read)() == getattr(reference.feature_info, read)()


@pytest.mark.parametrize("name", NAMES)
def test_backbones(name: str) -> None:
    stride = 16 if "isotropic" in name else 8
    backbone = small(name, features_only=True, out_indices=(3, 1), output_stride=stride)
    maps = backbone(IMAGES)
    assert backbone.feature_info.channels() == [one.shape[1] for one in maps]
    assert backbone.feature_info.reduction() == [64 // one.shape[2] for one in maps] == [stride] * 2
    torch.stack([one.square().mean() for one in maps]).sum().backward()
    assert all(parameter.grad is not None for parameter in backbone.parameters())  # nothing is left over, as DDP wants
    whole = small(name).eval()
    shallow = FeatureNet(copy.deepcopy(whole), (0,))
    (first,) = shallow(IMAGES)
    assert torch.equal(first, whole.forward_intermediates(IMAGES, [0], intermediates_only=True)[0])
    assert len(list(shallow.parameters())) < len(list(whole.parameters()))


@pytest.mark.parametrize(
    ("name", "options", "named"),
    [
        ("convnext_atto", {"out_indices": (0, 4)}, "4"),
        ("convnext_atto", {"output_stride": 4}, "output_stride"),
        ("convnext_isotropic_small", {"output_stride": 8}, "output_stride"),
        ("torchvision/resnet18", {}, "features_only"),
        ("timm/vit_tiny_patch16_224", {"output_stride": 8}, "output_stride"),
    ],
)
def test_backbones_that_there_are_not(name: str, options: dict[str, Any], named: str) -> None:
    with pytest.raises(convnext.UsageError, match=named):
        convnext.create_model(name, features_only=True, **options)


def test_a_backbone_of_timm() -> None:
    backbone: Any = convnext.create_model("timm/resnet18", features_only=True, out_indices=(2, 4), output_stride=16)
    assert backbone.feature_info.reduction() == [8, 16]
    assert [one.shape[1:] for one in backbone(IMAGES)] == [(128, 8, 12), (512, 4, 6)]


def kernels_for(model: nn.Module) -> Iterator[nn.Module]:
    yield model
    yield convnext.accelerate(copy.deepcopy(model), training=True)


@pytest.mark.parametrize("name", ["convnext_atto", "convnextv2_atto", "roadmap_micro/depthwise", STEPS[-1]])
def test_kernels_leave_dilated_convolutions_alone(name: str) -> None:
    model = small(name, output_stride=8, drop_path_rate=0.0)
    plain, fast = kernels_for(model)
    torch.testing.assert_close(fast(IMAGES), plain(IMAGES), rtol=1e-4, atol=1e-4)
    model.eval()
    torch.testing.assert_close(folded(model)(IMAGES), model(IMAGES), rtol=1e-5, atol=1e-5)
    found = convnext.accelerate(model, IMAGES, precision="fp32", seconds=0)
    torch.testing.assert_close(found(IMAGES), model(IMAGES), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_checkpointing_computes_the_same_step(name: str) -> None:
    plain = small(name, drop_path_rate=0.4)
    model = copy.deepcopy(plain)
    model.set_grad_checkpointing()
    calls: list[nn.Module] = []
    blocks = [module for module in model.modules() if isinstance(module, Block | DesignBlock)]
    for block in blocks:
        block.register_forward_pre_hook(lambda module, _: calls.append(module))
    losses = []
    for one in (plain, model):
        torch.manual_seed(5)
        losses.append(one(IMAGES).square().mean())
        losses[-1].backward()
    assert torch.equal(*losses)
    assert len(calls) == 2 * len(blocks)
    for (key, expected), parameter in zip(plain.named_parameters(), model.parameters(), strict=True):
        assert torch.equal(parameter.grad, expected.grad), key
    for (key, expected), buffer in zip(plain.named_buffers(), model.buffers(), strict=True):
        assert torch.equal(buffer, expected), key  # BatchNorm's running statistics move once
    model.set_grad_checkpointing(False)
    calls.clear()
    model(IMAGES).sum().backward()
    assert len(calls) == len(blocks)


@pytest.mark.parametrize("name", NAMES)
def test_groups_of_parameters(name: str) -> None:
    model = small(name)
    parameters = {key for key, _ in model.named_parameters()}
    blocks = sum(isinstance(module, Block | DesignBlock) for module in model.modules())
    for coarse, count in ((False, blocks), (True, blocks if "isotropic" in name else 4)):
        matcher = model.group_matcher(coarse=coarse)
        groups: Any = timm.models.group_parameters(model, matcher)
        assert list(groups) == list(range(count + 2))  # stem and head
        assert {key for keys in groups.values() for key in keys} == parameters
        assert all(key.startswith(("stem.", "downsample_layers.0.")) for key in groups[0])
        assert all(key.startswith(("norm.", "head.")) for key in groups[count + 1])
        modules: Any = timm.models.group_modules(model, matcher)
        inside = ((key, model.get_submodule(key)._parameters) for key in chain(*modules.values()))
        assert {f"{key}.{part}" for key, own in inside for part in own if own[part] is not None} == parameters


@pytest.mark.parametrize("name", ["convnext_atto", "convnextv2_atto"])
def test_layer_decay_equals_timm(name: str) -> None:
    ours, theirs = pair(name)
    names = dict(zip(from_timm(dict(theirs.named_parameters())), dict(theirs.named_parameters()), strict=True))
    found = []
    for model in (ours, theirs):
        by_id = {id(parameter): key for key, parameter in model.named_parameters()}
        excluded = model.no_weight_decay() if model is ours else ()
        groups = param_groups_layer_decay(model, 0.05, excluded, layer_decay=0.7)
        found.append({by_id[id(p)]: (g["lr_scale"], g["weight_decay"]) for g in groups for p in g["params"]})
    assert {names[key]: value for key, value in found[0].items()} == found[1]
    optimizer = create_optimizer_v2(ours, "adamw", lr=1e-3, weight_decay=0.05, layer_decay=0.7)
    decayed = {id(p) for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]}
    assert decayed == {id(p) for key, p in ours.named_parameters() if p.ndim > 1 and ".grn." not in key}


@pytest.mark.parametrize("name", convnext.list_models())
def test_built_on_the_meta_device_without_a_word(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    with torch.device("meta"):
        model = convnext.create_model(name)
    assert isinstance(model, Network)
    model.reset_classifier(3)
    assert all(tensor.is_meta for tensor in model.state_dict().values())
    assert capfd.readouterr() == ("", "")


def test_reset_classifier_refuses_what_it_cannot_do() -> None:
    model = small("convnext_atto")
    for options in ({"num_classes": -1}, {"num_classes": 3, "global_pool": "max"}):
        with pytest.raises(convnext.UsageError, match=next(reversed(options))):
            model.reset_classifier(**options)


def test_a_new_classifier_takes_dtype_and_device() -> None:
    model = small("convnext_atto").to(torch.bfloat16)
    model.reset_classifier(3)
    assert model(IMAGES.bfloat16()).dtype == torch.bfloat16
    assert isinstance(model.get_classifier(), nn.Linear)


def test_features_have_the_same_bits_in_any_call() -> None:
    model = small("convnext_isotropic_small").eval()
    with torch.no_grad():
        maps: list[Tensor] = model.forward_intermediates(IMAGES, intermediates_only=True)
        assert [one.shape[1:] for one in maps] == [(16, 4, 6)] * 4
        assert torch.equal(model.forward_head(maps[-1]), model(IMAGES))
        assert not torch.equal(maps[0], maps[1])
