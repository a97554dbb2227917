"""Every layout: peers' own files give the peers' answers here, and go back as they were."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

import convnext
from convnext.errors import UsageError
from convnext.models import ConvNeXt
from convnext.models.convnext import VARIANTS, IsotropicConvNeXt
from convnext.weights.layouts import LAYOUTS, SPARSE, TORCHVISION, to_official
from convnext.weights.loading import reshaped
from convnext.weights.shapes import architecture_of
from convnext.weights.weights_file import open_weights
from tests.weights.peers import PEERS, STAGED, Peer, build_transformers, logits, randomize, round_trip, tiny, to_sparse

SMALL = ("convnext_atto", "convnextv2_atto")  # and torchvision's smallest, for the suite that runs often
IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(2))


def save(weights: dict[str, Tensor], path: Path) -> Path:
    safetensors.torch.save_file({name: tensor.contiguous() for name, tensor in weights.items()}, path)
    return path


@pytest.mark.parametrize(
    ("peer", "variant"),
    [
        pytest.param(
            peer,
            variant,
            id=f"{peer.layout}-{variant}",
            marks=() if variant in (*SMALL, peer.variants[0]) else pytest.mark.slow,
        )
        for peer in PEERS
        for variant in peer.variants
    ],
)
def test_peer_to_ours_to_peer(peer: Peer, variant: str, tmp_path: Path) -> None:
    result = round_trip(peer, variant, tmp_path)
    assert result.difference < 1e-5
    assert result.same_bits
    assert result.same_logits


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_rules_go_both_ways(layout: Any) -> None:
    isotropic = layout.prefix(["stem.weight", "blocks.0.dwconv.weight"]) is not None
    grn = layout not in (TORCHVISION,) and "DINOv3" not in layout.name and not isotropic
    model = (
        IsotropicConvNeXt(depth=2, dim=8, num_classes=3, layer_scale_init_value=1e-6) if isotropic else tiny(grn=grn)
    )
    weights = randomize(model).state_dict()
    if "DINOv3" in layout.name:
        weights = {name: tensor for name, tensor in weights.items() if not name.startswith("head.")}
    theirs = to_sparse(weights) if layout is SPARSE else layout.from_official(weights)
    assert len(theirs) == len(weights)
    found = to_official(theirs)
    assert found is not None
    assert (found.layout, found.unused) == (layout.name, ())
    assert found.weights.keys() == weights.keys()
    assert all(torch.equal(reshaped(tensor, weights[name]), weights[name]) for name, tensor in found.weights.items())


@pytest.mark.parametrize("variant", ["convnext_atto", "convnext_isotropic_small", "convnextv2_atto"])
@pytest.mark.parametrize("suffix", [".pth", ".pt", ".safetensors"])
def test_official_files(variant: str, suffix: str, tmp_path: Path) -> None:
    source = randomize(convnext.create_model(variant, num_classes=5))
    convnext.save_weights(source, tmp_path / f"a{suffix}")
    if suffix != ".safetensors":
        document = torch.load(tmp_path / f"a{suffix}", weights_only=True)
        assert document.keys() == {"model"}  # as the authors publish them
        assert document["model"].keys() == source.state_dict().keys()
    opened = open_weights(tmp_path / f"a{suffix}")
    assert (opened.layout, opened.architecture.variant, opened.architecture.num_classes) == ("official", variant, 5)
    torch.testing.assert_close(logits(opened.build(), IMAGES), logits(source, IMAGES), rtol=0, atol=0)


def test_every_variant_is_known_by_its_shapes() -> None:

    for variant in VARIANTS:
        with torch.device("meta"):
            weights = convnext.create_model(variant, num_classes=3, in_chans=2).state_dict()
        architecture = architecture_of(weights)
        assert (architecture.variant, architecture.num_classes, architecture.in_channels) == (variant, 3, 2)


def test_sparse_convolutions_of_masked_pre_training(tmp_path: Path) -> None:
    """The kernel of a sparse convolution lists its places along one axis, the column before the row."""
    source = tiny(grn=True, num_classes=0)
    dense = {name: tensor for name, tensor in source.state_dict().items() if not name.startswith("norm.")}
    sparse = {f"encoder.{name}": tensor for name, tensor in to_sparse(dense).items()}
    kernel = sparse["encoder.stages.0.0.dwconv.kernel"]
    assert kernel.shape == (49, 8)
    row, column = 2, 5
    assert torch.equal(kernel[column * 7 + row], dense["stages.0.0.dwconv.weight"][:, 0, row, column])
    downsampling = sparse["encoder.downsample_layers.1.1.kernel"]
    assert downsampling.shape == (4, 8, 16)
    assert torch.equal(downsampling[1 * 2 + 0], dense["downsample_layers.1.1.weight"][:, :, 0, 1].T)
    assert sparse["encoder.stages.0.0.dwconv.bias"].shape == (1, 8)
    assert sparse["encoder.stages.0.0.grn.gamma"].shape == (1, 32)
    decoder = {
        "decoder.0.dwconv.weight": torch.ones(3),
        "mask_token": torch.zeros(1, 4, 1, 1),
        "pred.bias": torch.ones(2),
    }
    torch.save({"model": sparse | decoder}, tmp_path / "fcmae.pth")
    opened = open_weights(tmp_path / "fcmae.pth")
    assert opened.layout == "official, sparse under encoder"
    assert any("3 tensors of another" in note for note in opened.notes)
    assert any("no final norm" in note for note in opened.notes)
    ours, theirs = (network.forward_intermediates(IMAGES)[1] for network in (opened.build(), source))  # pyright: ignore
    assert all(itertools.starmap(torch.equal, zip(ours, theirs, strict=True)))


@pytest.mark.parametrize("conv_mlp", [False, True])
def test_both_forms_of_timms_blocks(conv_mlp: bool, tmp_path: Path) -> None:
    import timm

    theirs = randomize(timm.create_model("convnext_tiny", depths=(1, 1, 1, 1), dims=(8, 16, 32, 64), conv_mlp=conv_mlp))
    opened = open_weights(save(theirs.state_dict(), tmp_path / "a.safetensors"))
    assert opened.layout == "timm"
    torch.testing.assert_close(logits(opened.build(), IMAGES), logits(theirs, IMAGES), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("head", ["proj", "mlp"])
def test_image_towers_of_openclip(head: str, tmp_path: Path) -> None:
    import timm

    trunk = randomize(timm.create_model("convnext_tiny", depths=(1, 1, 1, 1), dims=(8, 16, 32, 64), num_classes=0))
    weights = {f"visual.trunk.{name}": tensor for name, tensor in trunk.state_dict().items()}
    heads = {"proj": ["visual.head.proj.weight"], "mlp": ["visual.head.mlp.fc1.weight", "visual.head.mlp.fc2.weight"]}
    others = [*heads[head], "text.transformer.resblocks.0.ln_1.weight", "logit_scale", "positional_embedding"]
    for name in others:
        weights[name] = torch.ones(4)
    folder = tmp_path / "clip"
    folder.mkdir()
    save(weights, folder / "open_clip_model.safetensors")
    with pytest.warns(convnext.WeightsWarning):
        classifier = convnext.load(folder)
    torch.testing.assert_close(logits(classifier.model, IMAGES), logits(trunk, IMAGES), rtol=1e-5, atol=1e-5)
    opened = open_weights(folder)
    assert opened.layout == "timm under visual.trunk"
    assert f"{len(others)} tensors of another" in opened.notes[0]
    with pytest.raises(UsageError, match="has no classifier"):
        classifier.predict(torch.zeros(1, 3, 224, 224))
    loaded = convnext.load_weights(opened.architecture.build(), folder)
    assert set(loaded.unused) == set(others)


def test_dinov3_gives_the_features_that_it_gives_at_home(tmp_path: Path) -> None:
    import transformers

    config = transformers.DINOv3ConvNextConfig(depths=[1, 2, 1, 1], hidden_sizes=[8, 16, 32, 64])
    theirs = randomize(transformers.DINOv3ConvNextModel(config))
    theirs.save_pretrained(tmp_path / "dino")  # pyright: ignore[reportCallIssue]
    opened = open_weights(tmp_path / "dino")
    assert opened.layout.startswith("transformers, DINOv3")
    assert opened.architecture.num_classes == 0
    assert any("licence" in note for note in opened.notes)
    with torch.no_grad():
        expected: Any = theirs(IMAGES)
    torch.testing.assert_close(logits(opened.build(), IMAGES), expected.pooler_output, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("variant", ["convnext_atto", "convnextv2_atto"])
def test_plain_models_and_backbones_of_transformers(variant: str, tmp_path: Path) -> None:
    model = randomize(build_transformers(variant, "Model"))
    model.save_pretrained(tmp_path / "model")  # pyright: ignore[reportCallIssue]
    with torch.no_grad():
        expected: Any = model(IMAGES)
    opened = open_weights(tmp_path / "model")
    torch.testing.assert_close(logits(opened.build(), IMAGES), expected.pooler_output, rtol=1e-5, atol=1e-5)
    names = ["stage1", "stage2", "stage3", "stage4"]
    backbone: Any = randomize(build_transformers(variant, "Backbone", out_features=names))
    backbone.save_pretrained(tmp_path / "backbone")
    opened = open_weights(tmp_path / "backbone")
    assert any("no final norm" in note for note in opened.notes)
    with torch.no_grad():
        maps = opened.build().forward_intermediates(IMAGES)[1]  # pyright: ignore[reportCallIssue]
        normed = [backbone.hidden_states_norms[name](one) for name, one in zip(names, maps, strict=True)]
    for ours, theirs in zip(normed, backbone(IMAGES).feature_maps, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_norm_of_transformers_is_what_its_config_says(tmp_path: Path) -> None:
    theirs: Any = build_transformers("convnext_atto", layer_norm_eps=0.5)
    randomize(theirs).save_pretrained(tmp_path / "odd")  # pyright: ignore[reportCallIssue]
    torch.testing.assert_close(
        logits(open_weights(tmp_path / "odd").build(), IMAGES), logits(theirs, IMAGES), rtol=1e-5, atol=1e-5
    )


def test_networks_without_a_name(tmp_path: Path) -> None:
    options: dict[str, Any] = {"num_classes": 4, "kernel_size": 5, "stem_stride": 2, "in_chans": 2}
    source = randomize(ConvNeXt(depths=(1, 2, 1, 1), dims=(8, 12, 16, 20), **options))
    convnext.save_weights(source, tmp_path / "a.pth")
    opened = open_weights(tmp_path / "a.pth")
    architecture = opened.architecture
    assert (architecture.variant, architecture.kernel_size, architecture.stem_stride) == (None, 5, 2)
    assert "1, 2, 1, 1" in architecture.name
    assert "8, 12, 16, 20" in architecture.name
    images = torch.randn(1, 2, 32, 32)
    assert torch.equal(logits(opened.build(), images), logits(source, images))


def test_the_largest_tower_of_openclip_has_norms_of_its_own() -> None:
    import timm

    with torch.device("meta"):
        theirs = timm.create_model("convnext_xxlarge", num_classes=0)
    found = to_official(theirs.state_dict())
    assert found is not None
    architecture = architecture_of(found.weights)
    with torch.device("meta"):
        norms = {module.eps for module in architecture.build().modules() if isinstance(module, nn.LayerNorm)}
    assert norms == {theirs.stem[1].eps}  # pyright: ignore


@pytest.mark.parametrize(
    "name", ["timm/resnet18", "torchvision/resnet18", "timm/convnext_tiny_hnf", "timm/convnext_atto_ols"]
)
def test_other_networks_are_refused(name: str, tmp_path: Path) -> None:
    weights = convnext.create_model(name, num_classes=2).state_dict()
    save(weights, tmp_path / "a.safetensors")
    with pytest.raises(UsageError, match=r"a\.safetensors") as error:
        open_weights(tmp_path / "a.safetensors")
    assert any(words in str(error.value) for words in ("no ConvNeXt", "does not fit", "stem"))


def test_all_of_the_family_is_staged_or_isotropic() -> None:
    assert len(STAGED) == len(VARIANTS) - 3
