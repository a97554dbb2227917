"""Weights for another number of input channels, by the rule of the published networks; other kernels are refused."""

from pathlib import Path

import pytest
import torch

import convnext
from convnext.errors import UsageError
from convnext.weights.adapt import for_channels
from tests.weights.peers import logits, randomize


@pytest.mark.parametrize("channels", [1, 2, 4, 5, 6, 7])
def test_rule_is_that_of_the_published_weights(channels: int) -> None:
    from timm.models import adapt_input_conv

    weight = torch.randn(8, 3, 4, 4)
    torch.testing.assert_close(for_channels(weight, channels), adapt_input_conv(channels, weight))


@pytest.mark.parametrize(("given", "channels"), [(1, 3), (4, 3), (4, 1), (2, 5)])
def test_rule_for_weights_of_other_channels(given: int, channels: int) -> None:
    weight = torch.randn(8, given, 4, 4)
    adapted = for_channels(weight, channels)
    assert adapted.shape == (8, channels, 4, 4)
    if channels % given == 0 or channels == 1:  # an image of equal channels keeps its answer
        times = 1 if channels == 1 else given / channels
        torch.testing.assert_close(adapted.sum(1), weight.sum(1) * (times if channels == 1 else 1))


@pytest.mark.parametrize("variant", ["convnext_atto", "convnext_isotropic_small"])
@pytest.mark.parametrize(("channels", "how"), [(1, "added up"), (4, "repeated and rescaled")])
def test_adapted_and_said(variant: str, channels: int, how: str, tmp_path: Path) -> None:
    source = randomize(convnext.create_model(variant, num_classes=3))
    convnext.save_weights(source, tmp_path / "a.safetensors")
    model = convnext.create_model(variant, num_classes=3, in_chans=channels).eval()
    loaded = convnext.load_weights(model, tmp_path / "a.safetensors")
    first = "stem.weight" if "isotropic" in variant else "downsample_layers.0.0.weight"
    assert loaded.adapted == (first,)
    assert loaded.notes == (f"a.safetensors is for images of 3 channels, the network for {channels}: {first} is {how}",)
    assert loaded.loaded == len(source.state_dict())
    if channels == 1:
        grey = torch.randn(2, 1, 64, 64)
        expected = logits(source, grey.expand(-1, 3, -1, -1))
        torch.testing.assert_close(logits(model, grey), expected, rtol=1e-4, atol=1e-4)


def test_adapts_what_comes_in_another_layout(tmp_path: Path) -> None:
    import timm

    theirs = randomize(timm.create_model("convnext_atto", num_classes=3))
    torch.save(theirs.state_dict(), tmp_path / "a.pth")
    model = convnext.create_model("convnext_atto", num_classes=5, in_chans=1)
    loaded = convnext.load_weights(model, tmp_path / "a.pth")
    assert (loaded.layout, loaded.adapted) == ("timm", ("downsample_layers.0.0.weight",))
    assert loaded.left_out == ("head.weight", "head.bias")
    assert len(loaded.notes) == 2


def test_another_kernel_size_names_both(tmp_path: Path) -> None:
    convnext.save_weights(convnext.create_model("convnext_atto", num_classes=3), tmp_path / "a.pth")
    model = convnext.create_model("convnext_atto", num_classes=3, kernel_size=5)
    with pytest.raises(
        UsageError, match=r"a.pth is for kernel size 7, the network has 5: create it with kernel_size=7"
    ):
        convnext.load_weights(model, tmp_path / "a.pth")
