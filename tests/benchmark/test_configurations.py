"""The models of other libraries are the same, and each setting computes the same result."""

import pytest
import torch

import convnext
from convnext.benchmark.configurations import (
    KERNELS,
    OPTIMIZED,
    PLAIN,
    SETTINGS,
    inference,
    settings_for,
    training,
)
from convnext.benchmark.peers import PEERS, build, check_libraries, has_model
from convnext.device import has_cpu_bf16
from convnext.errors import UsageError
from convnext.models.cost import cost

PRECISIONS = ["fp32", pytest.param("bf16", marks=pytest.mark.skipif(not has_cpu_bf16(), reason="no bf16 here"))]
SIZE = 64


@pytest.mark.parametrize("name", ["convnext_atto", "convnext_tiny", "convnextv2_pico"])
@pytest.mark.parametrize("library", PEERS)
def test_a_peers_model_costs_what_ours_does(library: str, name: str) -> None:
    if not has_model(library, name):
        assert (library, name) in {("torchvision", "convnext_atto"), ("torchvision", "convnextv2_pico")}
        return
    with torch.device("meta"):
        ours, theirs = convnext.create_model(name), build(name, library, SIZE)
    assert (cost(theirs, SIZE).params, cost(theirs, SIZE).macs) == (cost(ours, SIZE).params, cost(ours, SIZE).macs)


def test_models_that_others_lack() -> None:
    assert not any(has_model(library, "convnext_isotropic_small") for library in ("torchvision", "transformers"))
    assert not any(has_model(library, "roadmap_tiny/gelu") for library in PEERS)


def test_a_library_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(UsageError, match="pip install transformers"):
        check_libraries(["transformers"])


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] * (SETTINGS[name].compiled or name in OPTIMIZED))
        for name in SETTINGS
    ],
)
def test_every_setting_computes_the_models_logits(name: str, precision: str) -> None:
    model = convnext.create_model(
        "convnext_atto", num_classes=5, layer_scale_init_value=1.0, head_init_scale=10.0
    ).eval()
    images = torch.randn(2, 3, SIZE, SIZE)
    with torch.inference_mode():
        expected = model(images)
    logits = inference(model, images, precision, SETTINGS[name])()  # pyright: ignore[reportArgumentType]
    exact = precision == "fp32" or SETTINGS[name].prepare is not None  # whose outputs are fp32 always
    assert logits.dtype == (torch.float32 if exact else torch.bfloat16)
    tolerance = 1e-4 if precision == "fp32" else 0.1
    assert (logits.float() - expected).abs().max() < tolerance * expected.abs().max()


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * SETTINGS[name].compiled) for name in (*PLAIN, *KERNELS)]
)
def test_every_setting_trains(name: str, precision: str) -> None:
    model = convnext.create_model("convnext_atto", num_classes=5, layer_scale_init_value=1.0)
    images, labels = torch.randn(4, 3, SIZE, SIZE), torch.arange(4)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    step = training(model, images, labels, precision, SETTINGS[name])  # pyright: ignore[reportArgumentType]
    for _ in range(3):
        step()
    assert all(not torch.equal(value, before[key]) for key, value in model.state_dict().items())
    with torch.inference_mode():
        losses = [
            torch.nn.functional.cross_entropy(torch.func.functional_call(model, state, (images,)), labels)
            for state in (before, model.state_dict())
        ]
    assert losses[1] < losses[0]


def test_every_peer_is_measured_in_every_setting() -> None:
    for mode in ("inference", "training"):
        assert settings_for("timm", mode, compiled=True) == ["eager", "channels_last", "compiled"]
        assert settings_for("timm", mode, compiled=False) == ["eager", "channels_last"]
    ours = settings_for("convnext", "training", compiled=True)
    assert {"eager+kernels", "channels_last+kernels", "compiled+kernels", "channels_last"} == set(ours)
    assert {"eager", "channels_last", "compiled"} <= set(settings_for("convnext", "inference", compiled=True))
