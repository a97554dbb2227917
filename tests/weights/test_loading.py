"""Weights into a model: every file that fits, other classes and channels, and what is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from convnext import create_model, load_weights, save_weights
from convnext.errors import UsageError
from convnext.models import Design
from convnext.weights.loading import adapt_input_conv
from tests.weights.peers import logits, randomize, same, tiny

Change = Callable[[dict[str, Tensor]], Any]


@pytest.fixture(scope="module")
def source() -> nn.Module:
    return tiny(seed=7)


@pytest.mark.parametrize("name", ["a.pth", "a.pt", "a.bin", "a.pth.tar", "a.safetensors", "safetensors.bin"])
def test_files_of_every_suffix(source: nn.Module, name: str, tmp_path: Path) -> None:
    if "safetensors" in name:
        safetensors.torch.save_file(source.state_dict(), tmp_path / name)
    else:
        torch.save({"model": source.state_dict()}, tmp_path / name)
    model = tiny()
    loaded = load_weights(model, str(tmp_path / name))
    assert same(model, source)
    assert (loaded.path, loaded.loaded, loaded.layout) == (tmp_path / name, len(source.state_dict()), "official")
    assert (loaded.left_out, loaded.unused, loaded.notes) == ((), (), ())


def test_run_folder_means_its_best_weights(source: nn.Module, tmp_path: Path) -> None:
    safetensors.torch.save_file(source.state_dict(), tmp_path / "best.safetensors")
    torch.save({"model": tiny().state_dict()}, tmp_path / "last.pt")
    loaded = load_weights(model := tiny(), tmp_path)
    assert same(model, source)
    assert loaded.path == tmp_path / "best.safetensors"


@pytest.mark.parametrize("name", ["convnextv2_atto", "convnext_isotropic_small", "roadmap_micro/resnet"])
def test_every_kind_of_network(name: str, tmp_path: Path) -> None:
    source = create_model(name, num_classes=3)
    torch.save(source.state_dict(), tmp_path / "a.pth")
    load_weights(model := create_model(name, num_classes=3), tmp_path / "a.pth")
    assert same(model, source)


def test_what_timms_training_saves_opens_as_timm_opens_it(tmp_path: Path) -> None:
    import argparse

    import timm
    from timm.models import load_checkpoint  # pyright: ignore[reportPrivateImportUsage]

    options: Any = {"depths": (1, 2, 1, 1), "dims": (8, 16, 32, 64), "num_classes": 3}
    models = {name: timm.create_model("convnext_tiny", **options) for name in ("state_dict", "state_dict_ema")}
    states = {name: randomize(model, len(name)).state_dict() for name, model in models.items()}
    torch.save({"arch": "a", "args": argparse.Namespace(lr=0.1), "epoch": 1, **states}, tmp_path / "last.pth.tar")
    load_checkpoint(theirs := timm.create_model("convnext_tiny", **options), str(tmp_path / "last.pth.tar"))
    loaded = load_weights(ours := tiny(), tmp_path / "last.pth.tar")
    assert loaded.layout == "timm"
    assert torch.equal(ours.state_dict()["head.weight"], theirs.state_dict()["head.fc.weight"])


def test_another_number_of_classes_keeps_the_initial_classifier(source: nn.Module, tmp_path: Path) -> None:
    torch.save({"model": source.state_dict()}, tmp_path / "a.pth")
    model = tiny(num_classes=10)
    head = model.state_dict()["head.weight"].clone()
    loaded = load_weights(model, tmp_path / "a.pth")
    assert same(model, source, "stages")
    assert torch.equal(model.state_dict()["head.weight"], head)
    assert loaded.left_out == ("head.weight", "head.bias")
    assert loaded.loaded == len(source.state_dict()) - 2
    assert "3 classes" in loaded.notes[0]
    assert "10" in loaded.notes[0]
    loaded = load_weights(model := tiny(num_classes=0), tmp_path / "a.pth")
    assert same(model, source)
    assert (loaded.left_out, len(loaded.notes)) == ((), 1)


def test_masked_pretraining_has_neither_norm_nor_classifier(tmp_path: Path) -> None:
    source = tiny(seed=7, grn=True)
    state = {name: value for name, value in source.state_dict().items() if not name.startswith(("norm.", "head."))}
    state = {name: value.flatten(0, 2) if "grn" in name else value for name, value in state.items()}  # (1, 4C)
    torch.save({"model": state}, tmp_path / "a.pt")
    loaded = load_weights(model := tiny(grn=True, num_classes=5), tmp_path / "a.pt")
    assert same(model, source, "stages")
    assert same(model, source, "downsample_layers")
    assert set(loaded.left_out) == {"norm.weight", "norm.bias", "head.weight", "head.bias"}
    assert "final norm" in loaded.notes[0]


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
    ("change", "named"),
    [
        (lambda state: state.pop("stages.2.0.norm.bias"), r"missing \(1\): stages\.2\.0\.norm\.bias"),
        (lambda state: state.update(extra=torch.ones(1)), r"unexpected \(1\): extra"),
        (
            lambda state: state.update({"downsample_layers.0.0.weight": torch.ones(8, 3, 2, 2)}),
            r"downsample_layers\.0\.0\.weight.*8x3x2x2.*8x3x4x4",
        ),
        (lambda state: state.update({"head.weight": torch.ones(3, 9)}), "head.weight.*3x9.*3x64"),
        (lambda state: [state.pop(name) for name in list(state) if "norm" in name], r"missing \(\d+\): .*, \.\.\."),
        (
            lambda state: state.update({"stages.0.0.dwconv.weight": torch.ones(8, 1, 5, 5)}),
            r"dwconv\.weight is 8x1x5x5",
        ),
    ],
    ids=["missing", "unexpected", "shape", "head of another width", "many", "kernel size"],
)
def test_what_does_not_fit_is_named_and_changes_nothing(
    source: nn.Module, change: Change, named: str, tmp_path: Path
) -> None:
    state = dict(source.state_dict())
    change(state)
    torch.save(state, tmp_path / "a.pth")
    model = tiny()
    with pytest.raises(UsageError, match=named) as error:
        load_weights(model, tmp_path / "a.pth")
    assert str(tmp_path / "a.pth") in str(error.value)
    assert same(model, tiny())


def test_another_model_is_refused(source: nn.Module, tmp_path: Path) -> None:
    torch.save(source.state_dict(), tmp_path / "a.pth")
    with pytest.raises(UsageError, match=r"missing .*grn.*unexpected .*stages\.0\.0\.gamma"):
        load_weights(tiny(grn=True), tmp_path / "a.pth")
    with torch.device("meta"):
        model = create_model("convnext_atto", num_classes=7)
    with pytest.raises(UsageError, match="meta device"):
        load_weights(model, tmp_path / "a.pth")


@pytest.mark.parametrize("channels", [1, 2, 4, 5, 6, 7])
def test_input_channels_are_adapted_as_in_timm(channels: int) -> None:
    from timm.models import adapt_input_conv as timms

    weight = torch.randn(8, 3, 4, 4)
    torch.testing.assert_close(adapt_input_conv(weight, channels), timms(channels, weight))


@pytest.mark.parametrize(("given", "channels"), [(1, 3), (4, 3), (4, 1), (2, 5), (2, 6)])
def test_input_channels_of_other_weights(given: int, channels: int) -> None:
    weight = torch.randn(8, given, 4, 4)
    adapted = adapt_input_conv(weight, channels)
    assert adapted.shape == (8, channels, 4, 4)
    if channels % given == 0 or channels == 1:  # an image of equal channels keeps its output, for more channels scaled
        torch.testing.assert_close(adapted.sum(1), weight.sum(1))


@pytest.mark.parametrize("variant", ["tiny", "convnext_isotropic_small"])
@pytest.mark.parametrize("channels", [1, 4])
def test_other_channels_are_adapted_with_a_note(variant: str, channels: int, tmp_path: Path) -> None:
    def build(**options: Any) -> nn.Module:
        return tiny(**options) if variant == "tiny" else create_model(variant, num_classes=3, **options).eval()

    source = randomize(build())
    save_weights(source, tmp_path / "a.safetensors")
    model = build(in_chans=channels)
    loaded = load_weights(model, tmp_path / "a.safetensors")
    assert loaded.adapted == ("stem.weight" if "isotropic" in variant else "downsample_layers.0.0.weight",)
    assert len(loaded.notes) == 1
    assert loaded.loaded == len(source.state_dict())
    if channels == 1:
        grey = torch.randn(2, 1, 64, 64)
        expected = logits(source, grey.expand(-1, 3, -1, -1))
        torch.testing.assert_close(logits(model, grey), expected, rtol=1e-4, atol=1e-4)


def test_other_channels_and_classes_out_of_another_layout(tmp_path: Path) -> None:
    save_weights(tiny(), tmp_path / "a.pth", "timm")
    loaded = load_weights(tiny(num_classes=5, in_chans=1), tmp_path / "a.pth")
    assert (loaded.layout, loaded.adapted) == ("timm", ("downsample_layers.0.0.weight",))
    assert loaded.left_out == ("head.weight", "head.bias")
    assert len(loaded.notes) == 2
