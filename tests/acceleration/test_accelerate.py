"""The one switch: what is swapped for training, what is said of it, and the way back."""

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import convnext
from convnext.acceleration.cpu.native import available
from convnext.acceleration.swapping import is_swapped
from convnext.errors import UsageError
from tests.acceleration.cpu.cases import set_minimum

needs_compiler = pytest.mark.skipif(not available(), reason="no C compiler here")
MODELS = ("convnext_atto", "convnextv2_atto", "convnext_isotropic_small", "roadmap_micro/separate_downsampling")


@pytest.fixture(autouse=True)
def _any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    set_minimum(0, monkeypatch)


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    return convnext.create_model(name, num_classes=5, drop_path_rate=0.2)


def bits(model: nn.Module) -> list[Tensor]:
    """The output and every gradient of a training step."""
    torch.manual_seed(1)
    model.zero_grad()
    output = model.train()(torch.randn(4, 3, 64, 64))
    output.sin().sum().backward()
    return [output, *(parameter.grad.clone() for parameter in model.parameters())]  # pyright: ignore[reportOptionalMemberAccess]


def are_equal(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(*pair) for pair in zip(a, b, strict=True))


@needs_compiler
@pytest.mark.parametrize("name", MODELS)
def test_restored_models_give_the_same_bits(name: str) -> None:
    model = build(name)
    parameters, keys, plain = list(model.parameters()), list(model.state_dict()), bits(model)
    assert convnext.accelerate(model, training=True) is model
    assert any(is_swapped(module) for module in model.modules())
    assert list(model.state_dict()) == keys
    assert all(one is other for one, other in zip(model.parameters(), parameters, strict=True))
    assert not are_equal(bits(model), plain)  # the operators round otherwise
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        in_evaluation = model.eval()(images)
    assert convnext.restore(model) is model
    assert not any(is_swapped(module) for module in model.modules())
    assert are_equal(bits(model), plain)
    with torch.no_grad():
        assert torch.equal(in_evaluation, model.eval()(images))


@needs_compiler
def test_report_names_what_was_swapped_and_why_not() -> None:
    model = build("roadmap_micro/fewer_activations")
    assert str(convnext.acceleration_report(model)) == ""
    convnext.accelerate(model, training=True)
    report = convnext.acceleration_report(model)
    assert all(is_swapped(model.get_submodule(name)) for name in report.swapped)
    assert not any(is_swapped(model.get_submodule(name)) for name in report.left)
    assert "pwconv2" in report.left["stages.0.0"]  # which has no bias: a BatchNorm comes after it
    assert "stages.0.0.dwconv" in report.swapped
    assert "stages.0.0.dwconv" in str(report)
    convnext.restore(model)
    assert not convnext.acceleration_report(model).swapped


@needs_compiler
def test_blocks_that_are_hooked_or_changed_are_left() -> None:
    model = build("convnext_isotropic_small")
    blocks = model.get_submodule("blocks")
    blocks.get_submodule("0.act").register_forward_hook(lambda *_: None)
    blocks.get_submodule("1").set_submodule("pwconv1", nn.Sequential(blocks.get_submodule("1.pwconv1")))
    second = blocks.get_submodule("2")
    second.forward = second.forward
    convnext.accelerate(model, training=True)
    left = convnext.acceleration_report(model).left
    assert {name for name in left if name.count(".") == 1} == {"blocks.0", "blocks.1", "blocks.2"}
    assert "act" in left["blocks.0"]
    assert "Sequential" in left["blocks.1"]
    assert "forward" in left["blocks.2"]


@needs_compiler
def test_dilated_models_compute_the_same() -> None:
    model = convnext.create_model("convnext_atto", num_classes=5, output_stride=8)
    expected = bits(model)
    convnext.accelerate(model, training=True)
    left = convnext.acceleration_report(model).left
    assert {"stages.2.0.dwconv", "stages.3.0.dwconv"} <= set(left)
    for value, right in zip(bits(model), expected, strict=True):
        torch.testing.assert_close(value, right, rtol=1e-3, atol=1e-3)


@needs_compiler
def test_copies_and_files_stay_swapped() -> None:
    model = convnext.accelerate(build("convnext_atto"), training=True)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert is_swapped(other.get_submodule("stages.0.0"))
        assert are_equal(bits(other), bits(model))


@needs_compiler
def test_a_swapped_model_infers_as_a_plain_one() -> None:
    model, images = build("convnext_atto").eval(), torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = model(images)
    convnext.accelerate(model, training=True)
    fast = convnext.accelerate(model, images, precision="fp32", seconds=0)
    torch.testing.assert_close(fast(images), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", ["off", "another package's", "meta", "no compiler"])
def test_models_that_stay_plain(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "torchvision/resnet18" if case == "another package's" else "convnext_atto"
    model = convnext.create_model(name, num_classes=5)
    if case == "off":
        monkeypatch.setenv("CONVNEXT_KERNELS", "off")
    elif case == "meta":
        model = model.to("meta")
    elif case == "no compiler":
        monkeypatch.setattr("convnext.acceleration.cpu.native.library", lambda: None)
    convnext.accelerate(model, training=True)
    assert not any(is_swapped(module) for module in model.modules())
    report = convnext.acceleration_report(model)
    assert not report.swapped
    assert list(report.left) == [""]


@pytest.mark.parametrize("option", [{"example": torch.zeros(1, 3, 32, 32)}, {"images": 8}, {"precision": "int8"}])
def test_training_takes_no_option_of_inference(option: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(option))):
        convnext.accelerate(nn.Linear(2, 2), training=True, **option)


def test_inference_needs_an_example() -> None:
    with pytest.raises(UsageError, match="example"):
        convnext.accelerate(build("convnext_atto"))  # pyright: ignore[reportCallIssue]
