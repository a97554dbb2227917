"""A network with published weights, from the server to the outputs, and what is said of weights and licences."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import convnext
from convnext import LicenceWarning, WeightsWarning, create_model
from convnext.errors import RunError, UsageError
from convnext.weights import PUBLISHED
from convnext.weights.pretrained import OTHER_NAMES, checkpoint, warn_once
from tests.weights.conftest import Server

ATTO = "/convnext/convnextv2/im1k/convnextv2_atto_1k_224_ema.pt"
FCMAE = "/convnext/convnextv2/pt_only/convnextv2_atto_1k_224_fcmae.pt"


@pytest.fixture(autouse=True)
def _nothing_said_yet() -> None:
    warn_once.cache_clear()


def publish(server: Server, path: str, tensors: dict[str, torch.Tensor], folder: Path) -> None:
    """Let the server have a file in the authors' layout."""
    torch.save({"model": tensors}, folder / "made.pt")
    server.files[path] = (folder / "made.pt").read_bytes()


def random_network(**options: Any) -> nn.Module:
    """A network whose every weight is drawn, so that one that is left out shows."""
    model = create_model("convnextv2_atto", **options)
    with torch.no_grad():
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.1)
    return model.eval()


def test_from_the_server_to_the_outputs(published_here: Server, tmp_path: Path) -> None:
    theirs = random_network()
    publish(published_here, ATTO, theirs.state_dict(), tmp_path)
    with pytest.warns(LicenceWarning, match="CC-BY-NC-4.0") as said:
        model = create_model("convnextv2_atto", pretrained="in1k", drop_path_rate=0.1)
    assert said[0].filename == __file__
    assert model.training
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(model.eval()(images), theirs(images))
    asked = len(published_here.requests)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the licence is said once
        again = create_model("convnextv2_atto", pretrained=True)
    assert len(published_here.requests) == asked
    assert torch.equal(again.get_parameter("head.weight"), theirs.get_parameter("head.weight"))
    backbone = create_model("convnextv2_atto", pretrained=True, features_only=True, out_indices=(1, 3)).eval()
    with torch.inference_mode():
        expected = theirs.forward_intermediates(images, (1, 3), intermediates_only=True)  # pyright: ignore[reportCallIssue]
        assert all(torch.equal(one, other) for one, other in zip(backbone(images), expected, strict=True))


@pytest.mark.filterwarnings("ignore::convnext.LicenceWarning")
def test_other_classes_get_a_new_classifier_and_that_is_said(published_here: Server, tmp_path: Path) -> None:
    theirs = random_network()
    publish(published_here, ATTO, theirs.state_dict(), tmp_path)
    with pytest.warns(WeightsWarning, match=r"1000 classes.*\b10\b"):
        model = create_model("convnextv2_atto", pretrained="in1k", num_classes=10)
    assert model.get_parameter("head.weight").shape == (10, 320)
    assert torch.equal(model.get_parameter("norm.weight"), theirs.get_parameter("norm.weight"))
    with pytest.warns(WeightsWarning, match="classifier"):
        create_model("convnextv2_atto", pretrained="in1k", num_classes=0)
    with pytest.raises(UsageError, match=r"dwconv\.weight"):
        create_model("convnextv2_atto", pretrained="in1k", kernel_size=5)


@pytest.mark.filterwarnings("ignore::convnext.LicenceWarning")
def test_masked_pre_training_has_neither_classifier_nor_final_norm(published_here: Server, tmp_path: Path) -> None:
    theirs = random_network(num_classes=0)
    tensors = {name: tensor for name, tensor in theirs.state_dict().items() if not name.startswith("norm.")}
    publish(published_here, FCMAE, tensors, tmp_path)
    with pytest.warns(WeightsWarning, match="no final norm"):
        features = create_model("convnextv2_atto", pretrained="fcmae")
    assert features(torch.randn(1, 3, 32, 32)).shape == (1, 320)
    with pytest.warns(WeightsWarning, match="final norm"):
        classifier = create_model("convnextv2_atto", pretrained="fcmae", num_classes=7)
    assert classifier(torch.randn(1, 3, 32, 32)).shape == (1, 7)


def test_without_pretrained_nothing_is_asked_for(published_here: Server) -> None:
    for absent in (None, False):
        assert isinstance(create_model("convnextv2_atto", pretrained=absent, num_classes=3), nn.Module)
    assert not published_here.requests


def test_the_meta_device_holds_no_weights(published_here: Server) -> None:
    with torch.device("meta"), pytest.raises(UsageError, match="meta device"):
        create_model("convnextv2_atto", pretrained="in1k")
    assert not published_here.requests


def test_not_to_be_had(published_here: Server) -> None:
    with pytest.raises(RunError, match="404"):
        create_model("convnextv2_atto", pretrained="in1k")
    assert published_here.requests


@pytest.mark.parametrize(
    ("name", "tag"),
    [
        ("convnext_tiny", "in22k_in1k"),
        ("convnext_xlarge", "in22k_in1k"),
        ("convnext_isotropic_base", "in1k"),
        ("convnextv2_atto", "in1k"),
        ("convnextv2_large", "in22k_in1k"),
        ("convnextv2_huge", "in1k"),
    ],
)
def test_true_is_the_best_classifier_at_224(name: str, tag: str) -> None:
    assert checkpoint(name, True) == PUBLISHED[name, tag]


@pytest.mark.parametrize(
    ("name", "pretrained", "named"),
    [
        ("convnext_tiny", "in21k", r"in21k.*in22k"),
        ("convnext_tiny", "", "in1k"),
        ("convnext_atto", "in1k", r"convnext_atto.*convnext_base"),
        ("convnext_atto", True, "convnext_atto"),
        ("convnext_tinny", True, r"convnext_tinny.*convnext_tiny"),
        ("roadmap_micro/resnet", "in1k", "roadmap_micro/resnet"),
        ("roadmap_tiny/separate_downsampling", "in1k", "create convnext_tiny"),
        ("timm/convnext_tiny", True, r"timm.create_model\('convnext_tiny', pretrained=True\)"),
        ("torchvision/swin_t", True, r"torchvision.models.get_model\('swin_t', weights='DEFAULT'\)"),
        (convnext.Design(), True, "Design"),
    ],
    ids=str,
)
def test_weights_that_are_not_published(name: Any, pretrained: Any, named: str) -> None:
    with pytest.raises(UsageError, match=named):
        create_model(name, pretrained=pretrained)


@pytest.mark.parametrize(("name", "same"), OTHER_NAMES.items())
def test_the_other_name_is_of_the_same_network(name: str, same: str) -> None:
    with torch.device("meta"):
        shapes = [{key: value.shape for key, value in create_model(n).state_dict().items()} for n in (name, same)]
    assert shapes[0] == shapes[1]
