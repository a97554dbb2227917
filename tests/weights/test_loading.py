"""Weights into a network: every file that is one, another number of classes, and what is refused."""

import argparse
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from convnext import create_model, load_weights
from convnext.errors import RunError, UsageError
from convnext.models import Design

Change = Callable[[dict[str, Tensor]], Any]


def small(num_classes: int = 7, **options: Any) -> nn.Module:
    """A ConvNeXt V1 of another initialisation with each call."""
    torch.manual_seed(torch.seed())
    return create_model("convnext_atto", num_classes=num_classes, **options)


def same(model: nn.Module, other: nn.Module, prefix: str = "") -> bool:
    theirs = other.state_dict()
    return all(
        torch.equal(value, theirs[name]) for name, value in model.state_dict().items() if name.startswith(prefix)
    )


@pytest.fixture(scope="module")
def source() -> nn.Module:
    return small()


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"model": state},
        lambda state: {"model_ema": state},
        lambda state: {"state_dict": {f"module.{name}": value for name, value in state.items()}, "epoch": 3},
        lambda state: {"model": {f"module._orig_mod.{name}": value for name, value in state.items()}},
        lambda state: {"model": state, "optimizer": {}, "args": argparse.Namespace(lr=4e-3)},  # the official code's own
    ],
    ids=["plain", "model", "model_ema", "state_dict", "compiled", "official training"],
)
@pytest.mark.parametrize("name", ["a.pth", "a.pt", "a.bin", "a.pth.tar"])
def test_torch_files(source: nn.Module, wrap: Change, name: str, tmp_path: Path) -> None:
    torch.save(wrap(source.state_dict()), tmp_path / name)
    model = small()
    assert not same(model, source, "head.weight")
    loaded = load_weights(model, tmp_path / name)
    assert same(model, source)
    assert (loaded.path, loaded.loaded) == (tmp_path / name, len(source.state_dict()))
    assert (loaded.left_out, loaded.notes) == ((), ())


def test_model_is_taken_before_its_average(source: nn.Module, tmp_path: Path) -> None:
    torch.save({"model_ema": small().state_dict(), "model": source.state_dict()}, tmp_path / "a.pth")
    loaded = load_weights(model := small(), tmp_path / "a.pth")
    assert same(model, source)
    assert loaded.notes == ("a.pth holds model and model_ema: took model",)


def test_what_timms_training_saves_opens_as_timm_opens_it(tmp_path: Path) -> None:
    import timm
    from timm.models import load_checkpoint

    names = ("state_dict", "state_dict_ema")
    models = {name: timm.create_model("convnext_atto", num_classes=2) for name in names}
    arguments = argparse.Namespace(model="convnext_atto")
    states = {name: model.state_dict() for name, model in models.items()}
    torch.save({"arch": "convnext_atto", "args": arguments, "epoch": 1, **states}, tmp_path / "last.pth.tar")
    load_checkpoint(theirs := timm.create_model("convnext_atto", num_classes=2), str(tmp_path / "last.pth.tar"))
    loaded = load_weights(ours := create_model("convnext_atto", num_classes=2), tmp_path / "last.pth.tar")
    assert torch.equal(ours.state_dict()["head.weight"], theirs.state_dict()["head.fc.weight"])
    assert loaded.notes == ("last.pth.tar holds state_dict_ema and state_dict: took state_dict_ema",)


@pytest.mark.parametrize("name", ["a.safetensors", "best.bin"])
def test_safetensors_whatever_the_suffix(source: nn.Module, name: str, tmp_path: Path) -> None:
    safetensors.torch.save_file(source.state_dict(), tmp_path / name)
    load_weights(model := small(), str(tmp_path / name))
    assert same(model, source)


def test_run_folder_means_its_best_weights(source: nn.Module, tmp_path: Path) -> None:
    safetensors.torch.save_file(source.state_dict(), tmp_path / "best.safetensors")
    torch.save({"model": small().state_dict()}, tmp_path / "last.pt")
    loaded = load_weights(model := small(), tmp_path)
    assert same(model, source)
    assert loaded.path == tmp_path / "best.safetensors"


@pytest.mark.parametrize("name", ["convnextv2_atto", "convnext_isotropic_small", "roadmap_micro/resnet"])
def test_every_kind_of_network(name: str, tmp_path: Path) -> None:
    source = create_model(name, num_classes=3)
    torch.save(source.state_dict(), tmp_path / "a.pth")
    load_weights(model := create_model(name, num_classes=3), tmp_path / "a.pth")
    assert same(model, source)


def test_another_number_of_classes_keeps_the_fresh_classifier(source: nn.Module, tmp_path: Path) -> None:
    torch.save({"model": source.state_dict()}, tmp_path / "a.pth")
    model = small(num_classes=10)
    head = model.state_dict()["head.weight"].clone()
    loaded = load_weights(model, tmp_path / "a.pth")
    assert same(model, source, "stages")
    assert torch.equal(model.state_dict()["head.weight"], head)
    assert loaded.left_out == ("head.weight", "head.bias")
    assert loaded.loaded == len(source.state_dict()) - 2
    assert loaded.notes == (
        "a.pth is for 7 classes, the network for 10: the network's classifier stays freshly initialised",
    )


def test_network_without_classifier(source: nn.Module, tmp_path: Path) -> None:
    torch.save(source.state_dict(), tmp_path / "a.pth")
    loaded = load_weights(model := small(num_classes=0), tmp_path / "a.pth")
    assert same(model, source)
    assert loaded.left_out == ()
    assert "the network none" in loaded.notes[0]


def test_masked_pretraining_has_neither_norm_nor_classifier(tmp_path: Path) -> None:
    source = create_model("convnextv2_atto")
    nn.init.normal_(source.stages[0][0].grn.gamma)  # pyright: ignore
    state = {name: value for name, value in source.state_dict().items() if not name.startswith(("norm.", "head."))}
    state = {name: value.flatten(0, 2) if "grn" in name else value for name, value in state.items()}  # (1, 4C)
    torch.save({"model": state}, tmp_path / "a.pt")
    loaded = load_weights(model := create_model("convnextv2_atto", num_classes=5), tmp_path / "a.pt")
    assert same(model, source, "stages")
    assert same(model, source, "downsample_layers")
    assert set(loaded.left_out) == {"norm.weight", "norm.bias", "head.weight", "head.bias"}
    assert "no classifier and no final norm" in loaded.notes[0]


def test_linear_layers_take_the_weights_of_1x1_convolutions(tmp_path: Path) -> None:
    design = {"depths": (1, 1, 1, 1), "width": 8, "bottleneck": "inverted"}
    source = create_model(Design(**design, pointwise="conv"), num_classes=3)
    torch.save(source.state_dict(), tmp_path / "a.pth")
    model = create_model(Design(**design, pointwise="linear"), num_classes=3)
    load_weights(model, tmp_path / "a.pth")
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(model.eval()(images), source.eval()(images))


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("timm/convnext_atto", "head.fc"),
        ("timm/deit_tiny_distilled_patch16_224", "head_dist"),
        ("torchvision/convnext_tiny", "classifier.2"),
        ("torchvision/squeezenet1_1", "classifier.1"),
        ("torchvision/resnet18", "fc"),
    ],
)
def test_references_by_their_librarys_own_names(name: str, head: str, tmp_path: Path) -> None:
    source = create_model(name, num_classes=4)
    state = {key: value for key, value in source.state_dict().items() if not key.endswith("num_batches_tracked")}
    torch.save(state, tmp_path / "a.pth")
    load_weights(equal := create_model(name, num_classes=4), tmp_path / "a.pth")
    assert same(equal, source)
    loaded = load_weights(create_model(name, num_classes=5), tmp_path / "a.pth")
    assert {f"{head}.weight", f"{head}.bias"} <= set(loaded.left_out)
    assert loaded.loaded == len(state) - (4 if "distilled" in name else 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("stages.2.1.norm.bias"), r"missing \(1\): stages.2.1.norm.bias\. Take"),
        (lambda state: state.update(extra=torch.ones(1)), r"unexpected \(1\): extra\. Take"),
        (
            lambda state: state.update({"downsample_layers.0.0.weight": torch.ones(40, 3, 2, 2)}),
            r"of another shape \(1\): downsample_layers.0.0.weight is 40x3x2x2 in the file and 40x3x4x4 in the network",
        ),
        (lambda state: state.update({"head.weight": torch.ones(7, 9)}), "head.weight is 7x9 in the file and 7x320 in"),
        (
            lambda state: [state.pop(name) for name in list(state) if "norm" in name],
            r"missing \(\d+\): .*, \.\.\.\. Take",
        ),
    ],
    ids=["missing", "unexpected", "shape", "head of another width", "many"],
)
def test_what_does_not_fit_is_named_and_changes_nothing(
    source: nn.Module, change: Change, message: str, tmp_path: Path
) -> None:
    state = dict(source.state_dict())
    change(state)
    torch.save(state, tmp_path / "a.pth")
    model = small()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(UsageError, match=message) as error:
        load_weights(model, tmp_path / "a.pth")
    assert "a.pth does not fit this network" in str(error.value)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_another_network(source: nn.Module, tmp_path: Path) -> None:
    torch.save(source.state_dict(), tmp_path / "a.pth")
    with pytest.raises(UsageError, match=r"missing .*grn.*unexpected .*stages.0.0.gamma"):
        load_weights(create_model("convnextv2_atto", num_classes=7), tmp_path / "a.pth")


def test_meta_device(source: nn.Module, tmp_path: Path) -> None:
    torch.save(source.state_dict(), tmp_path / "a.pth")
    with torch.device("meta"):
        model = create_model("convnext_atto", num_classes=7)
    with pytest.raises(UsageError, match="meta device"):
        load_weights(model, tmp_path / "a.pth")


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no weights at .*none.pth: give a weights file"):
        load_weights(small(), tmp_path / "none.pth")
    with pytest.raises(UsageError, match=r"no folder with weights, none of best.safetensors, model.safeten.* in it"):
        load_weights(small(), tmp_path)
    (tmp_path / "recipe.json").write_text("{}")
    with pytest.raises(UsageError, match=r"has no best.safetensors yet: let it finish an epoch"):
        load_weights(small(), tmp_path)


@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
@pytest.mark.parametrize("size", [0, 5, 5000])
def test_cut_off(source: nn.Module, name: str, size: int, tmp_path: Path) -> None:
    path = tmp_path / name
    save = safetensors.torch.save_file if path.suffix == ".safetensors" else torch.save
    save(source.state_dict(), path)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(RunError, match=f"{name} {'as weights, it is cut off' if size else 'is empty'}"):
        load_weights(small(), path)


@pytest.mark.parametrize("content", [b"<!doctype html><html>", b"hello, no weights", b"\x89PNG\r\n\x1a\n\0\0\0"])
def test_no_weights_file(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.pth").write_bytes(content)
    with pytest.raises(RunError, match="no weights file"):
        load_weights(small(), tmp_path / "a.pth")


class Code:
    """What an attacker's file does when it is read."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle"])
def test_code_is_refused(source: nn.Module, form: str, tmp_path: Path) -> None:
    path, proof = tmp_path / "a.pth", tmp_path / "it ran"
    document = {"model": source.state_dict(), "args": Code(f"touch '{proof}'")}
    if form == "pickle":
        path.write_bytes(pickle.dumps(document["args"]))
    else:
        torch.save(document, path, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(RunError, match=r"refused to read .*can run code"):
        load_weights(small(), path)
    assert not proof.exists()


def test_whole_modules_are_refused(source: nn.Module, tmp_path: Path) -> None:
    torch.save(source, tmp_path / "a.pth")
    with pytest.raises(RunError, match=r"refused to read .*a file of tensors alone"):
        load_weights(small(), tmp_path / "a.pth")


@pytest.mark.parametrize("document", [{}, {"model": {}}, {"model": {"epoch": 3}}, [torch.ones(3)], torch.ones(3)])
def test_no_tensors_by_name(document: Any, tmp_path: Path) -> None:
    torch.save(document, tmp_path / "a.pth")
    with pytest.raises(RunError, match=r"holds no weights: looked for tensors by name"):
        load_weights(small(), tmp_path / "a.pth")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite(source: nn.Module, value: float, tmp_path: Path) -> None:
    state = source.state_dict() | {"norm.bias": torch.full((320,), value)}
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(RunError, match=r"not finite .*, in norm.bias"):
        load_weights(small(), tmp_path / "a.pth")
