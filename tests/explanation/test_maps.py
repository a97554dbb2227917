"""Maps over images: equal to their definitions and to captum's, at the right place, and the model left as it was."""

import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import convnext
from convnext.errors import RunError, UsageError
from convnext.explanation.feature_maps import map_layer
from convnext.explanation.saliency import grad_cam, occlusion


class Spotter(nn.Module):
    """Knows where an image is red (class 0) or green (class 1), 8 px a position; class 2 is neither."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.AvgPool2d(8), nn.Conv2d(3, 3, 1, bias=False), nn.ReLU(inplace=True))
        self.features[1].weight.data = torch.tensor([[2.0, -1, -1], [-1, 2.0, -1], [0, 0, 0]])[..., None, None]  # pyright: ignore
        self.head = nn.Linear(3, 3, bias=False)
        self.head.weight.data = 20 * torch.eye(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).mean((2, 3)))


def picture(*squares: tuple[int, int, int]) -> Tensor:
    """An image (3, 64, 64), zero but for squares of 16 px: (channel, top, left)."""
    image = torch.zeros(3, 64, 64)
    for channel, top, left in squares:
        image[channel, top : top + 16, left : left + 16] = 1
    return image


def centre_of(weights: Tensor) -> tuple[float, float]:
    """Where the mass of a map (H, W) is."""
    weights = weights.clamp(min=0) / weights.clamp(min=0).sum()
    rows, columns = weights.sum(1), weights.sum(0)
    return float((rows * (torch.arange(64) + 0.5)).sum()), float((columns * (torch.arange(64) + 0.5)).sum())


METHODS = [grad_cam, occlusion]


@pytest.mark.parametrize("method", METHODS)
def test_it_points_at_what_the_network_goes_by(method: Callable[..., Tensor]) -> None:
    images = torch.stack([picture((0, 8, 32), (1, 40, 16)), picture((1, 0, 48), (0, 48, 0))])
    model = Spotter().eval()
    for label, places in ((0, [(16, 40), (56, 8)]), (1, [(48, 24), (8, 56)])):
        maps = method(model, images, [label, label])
        assert maps.shape == (2, 64, 64)
        assert maps.dtype == torch.float32
        for found, place in zip(maps, places, strict=True):
            assert centre_of(found) == pytest.approx(place, abs=2)
    assert torch.equal(method(model, images), method(model, images, model(images).argmax(1)))


def test_occlusion_is_the_fall_of_the_probability() -> None:
    image = picture((0, 16, 32), (1, 40, 8))[None]
    model = Spotter().eval()
    falls, squares = torch.zeros(64, 64), torch.zeros(64, 64)
    for top in range(0, 56, 8):
        for left in range(0, 56, 8):
            below, hidden = (slice(top, top + 16), slice(left, left + 16)), image.clone()
            hidden[0, :, *below] = 0
            falls[below] += (model(image).softmax(1) - model(hidden).softmax(1))[0, 0].item()
            squares[below] += 1
    fall = occlusion(model, image, [0])
    assert torch.allclose(fall[0], falls / squares, atol=1e-6)
    against = occlusion(model, picture((0, 8, 32), (1, 40, 16))[None], torch.tensor([0]))
    assert against[0, 48, 24] < -0.1  # what speaks for the other class
    plain = occlusion(model.forward, image, [0])
    assert torch.equal(plain, fall)


def by_definition(model: Any, images: Tensor, stage: int) -> Tensor:
    """Grad-CAM of one of our networks as the paper writes it, from its maps."""
    last, maps = model.forward_intermediates(images)
    logits = model.forward_head(last)
    (gradient,) = torch.autograd.grad(logits.amax(1).sum(), maps[stage])
    found = (gradient.mean((2, 3), keepdim=True) * maps[stage]).sum(1, keepdim=True).relu()
    found = F.interpolate(found, images.shape[2:], mode="bilinear")[:, 0].detach()
    return found / found.amax((1, 2), keepdim=True).clamp(min=1e-30)


STEPS = [f"roadmap_micro/{step.key}" for step in convnext.roadmap("micro")]


@pytest.mark.parametrize(
    ("name", "size", "stage"),
    [
        *((name, *case) for name in ("convnext_atto", "convnextv2_atto", STEPS[0]) for case in ((128, 3), (64, 2))),
        *((name, 64, 2) for name in STEPS[1:]),
        ("convnext_isotropic_small", 64, 3),
    ],
)
def test_it_is_the_papers_for_every_network_of_ours(name: str, size: int, stage: int) -> None:
    """Behind the last stage; of 64 px, where that has 2 x 2 positions, behind the third."""
    model = convnext.create_model(name, num_classes=10, layer_scale_init_value=0.5 if "v2" not in name else None).eval()
    images = torch.randn(2, 3, size, size)
    found = grad_cam(model, images)
    assert torch.allclose(found, by_definition(model, images, stage), atol=1e-4)
    assert found.min() >= 0
    assert found.amax((1, 2)).tolist() == [1, 1]


def test_it_is_captums() -> None:
    from captum.attr import LayerGradCam

    model = convnext.create_model("torchvision/resnet18", num_classes=10).eval()
    images, labels = torch.randn(2, 3, 160, 128), torch.tensor([3, 7])
    theirs = LayerGradCam(model, model.layer4).attribute(images, target=labels, relu_attributions=True)  # pyright: ignore
    theirs = F.interpolate(theirs, images.shape[2:], mode="bilinear")[:, 0].detach()  # pyright: ignore
    ours = grad_cam(model, images, labels)
    assert torch.allclose(ours, theirs / theirs.amax((1, 2), keepdim=True), atol=1e-5)


REFERENCES = {
    "torchvision/swin_t": "permute",
    "torchvision/vit_b_32": "encoder.layers.encoder_layer_10",
    "torchvision/mobilenet_v2": "features",
    "torchvision/densenet121": "features",
    "timm/convnext_atto": "stages",
    "timm/swin_tiny_patch4_window7_224": "norm",
    "timm/vit_tiny_patch16_224": "blocks.10",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", REFERENCES)
def test_references(name: str) -> None:
    """Of a vision transformer, whose last block's patches move nothing, the block before it."""
    model = convnext.create_model(name).eval()
    head: Any = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    nn.init.normal_(head.weight, std=0.1)  # some begin with zeros, and nothing would move the classes
    images = torch.randn(1, 3, 224, 224)
    found = grad_cam(model, images)
    assert map_layer(model, images) == REFERENCES[name]
    assert found.shape == (1, 224, 224)
    assert found.max() == 1
    assert 0 <= found.min() < 0.9


def test_the_model_is_left_as_it_was() -> None:
    model = convnext.create_model("convnext_atto", num_classes=10).eval()
    model.head.requires_grad_(False)  # pyright: ignore
    wanted = [parameter.requires_grad for parameter in model.parameters()]
    images = torch.randn(2, 3, 64, 64)
    before = model(images)
    with torch.inference_mode():
        within = grad_cam(model, images)
        assert torch.is_inference_mode_enabled()
    assert torch.equal(grad_cam(model, images), within)
    assert torch.is_grad_enabled()
    with pytest.raises(UsageError):
        grad_cam(model, images, [1, 10])
    assert torch.is_grad_enabled()
    assert [parameter.requires_grad for parameter in model.parameters()] == wanted
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())
    assert torch.equal(model(images), before)
    assert not images.requires_grad


def test_only_what_follows_the_map_is_recorded() -> None:
    recorded = []
    model = convnext.create_model("convnext_atto", num_classes=10).eval()
    images = torch.randn(1, 3, 128, 128)
    grad_cam(model, images)  # which finds the layer
    with torch.autograd.graph.saved_tensors_hooks(lambda x: recorded.append(x.numel()) or x, lambda x: x):
        grad_cam(model, images)
    whole = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: whole.append(x.numel()) or x, lambda x: x):
        model(images)
    assert 0 < sum(recorded) < sum(whole) / 100


def test_threads_may_share_a_model() -> None:
    model = convnext.create_model("roadmap_micro/kernel_7", num_classes=10, layer_scale_init_value=0.5).eval()
    jobs = [(torch.randn(1, 3, 64, 64), [i % 10]) for i in range(12)]
    expected = [grad_cam(model, *job) for job in jobs]
    with torch.no_grad():
        logits = [model(images) for images, _ in jobs]

    def answer(i: int) -> bool:
        with torch.no_grad():
            same = torch.allclose(model(jobs[i][0]), logits[i], atol=1e-6) and not model(jobs[i][0]).requires_grad
        return same and torch.allclose(grad_cam(model, *jobs[i]), expected[i], atol=1e-5)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(answer, [*range(12)] * 2))
    assert not any(module._forward_hooks for module in model.modules())


def test_nothing_speaks_for_the_class() -> None:
    image = picture((0, 8, 32))[None]
    assert grad_cam(Spotter().eval(), image, [2]).abs().max() == 0


class Exported(nn.Module):
    """A network without parameters or gradients, as an exported file is one."""

    def forward(self, x: Tensor) -> Tensor:
        return x.detach().mean((2, 3))


class Cut(Spotter):
    """A network whose outputs are computed by something that torch cannot differentiate."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).detach()


@pytest.mark.parametrize(
    ("model", "images", "labels", "error", "message"),
    [
        (Spotter(), torch.zeros(1, 3, 64, 64), None, UsageError, "in training mode: call model.eval"),
        (Spotter().eval(), torch.zeros(3, 64, 64), None, UsageError, r"\(3, 64, 64\) arrived: image\[None\] for one"),
        (Spotter().eval(), torch.ones(1, 3, 64, 64), [3], UsageError, "needs numbers from 0 to 2"),
        (Spotter().eval(), torch.ones(1, 3, 64, 64), [-1], UsageError, "needs numbers from 0 to 2"),
        (Spotter().eval(), torch.ones(1, 3, 64, 64), [0, 1], UsageError, "a whole number for each of the 1 images"),
        (Spotter().eval(), torch.ones(1, 3, 64, 64), [0.5], UsageError, "a whole number for each"),
        (Spotter().eval(), torch.full((1, 3, 64, 64), float("nan")), None, RunError, "not finite"),
        (Spotter().eval(), torch.ones(1, 3, 8, 8), None, UsageError, "no layer whose positions move its classes"),
        (Exported().eval(), torch.zeros(1, 3, 64, 64), None, UsageError, "no layer whose positions move its classes"),
        (Cut().eval(), torch.zeros(1, 3, 64, 64), None, UsageError, "Cut gives no gradients"),
    ],
)
def test_refusals(model: nn.Module, images: Tensor, labels: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        grad_cam(model, images, labels)


def test_occlusion_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    with pytest.raises(UsageError, match=r"pip install 'convnext\[explain\]'"):
        occlusion(Spotter().eval(), torch.zeros(1, 3, 64, 64))
