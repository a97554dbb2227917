"""The paper's recipe, step by step: the same losses and weights as a plain loop over timm's parts and torch's.

Of this package, the plain loop takes the initial weights, the order of the images and the seed of every position.
"""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from timm.data import Mixup, create_transform  # pyright: ignore[reportPrivateImportUsage]
from timm.data.random_erasing import RandomErasing
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn

import convnext
from convnext.data.sampling import TrainingOrder
from convnext.randomness import seed_everything
from convnext.training.fit import fit
from convnext.training.recipe import Recipe
from convnext.training.recipes import paper_1k

EPOCHS, STEPS, BATCH, CLASSES, SIZE, SEED = 2, 10, 8, 3, 64, 1
PEAK, MINIMUM, WARMUP, DECAY = 4e-3, 1e-6, 5, 0.05  # learning rates, steps of warm-up, weight decay
AVERAGE = 0.9  # of the weights; with the paper's 0.9999 they would hardly move in 20 steps


def write_pictures(root: Path) -> Path:
    """Photograph-like PNGs: smooth, with a hue for each class; two more in training than the steps take."""
    generator = np.random.default_rng(0)
    counts = {"train": (28, 27, 27), "val": (1, 1, 1)}
    for split, numbers in counts.items():
        for label, number in enumerate(numbers):
            (root / split / f"class{label}").mkdir(parents=True)
            for i in range(number):
                coarse = generator.integers(0, 200, (6, 8, 3))
                coarse[..., label] += 55
                picture = Image.fromarray(coarse.astype(np.uint8)).resize((96, 80), Image.Resampling.BICUBIC)
                picture.save(root / split / f"class{label}" / f"{i:02}.png")
    return root


def recipe(data: Path, model: str, layer_decay: float) -> Recipe:
    """The paper's, as small as 20 steps on a processor; the learning rate's peak is the paper's."""
    whole = paper_1k(str(data), model)
    small = replace(whole, image_size=SIZE, epochs=EPOCHS, warmup_epochs=WARMUP / STEPS, ema_decay=AVERAGE, seed=SEED)
    small = replace(small, batch_size=BATCH, lr_batch_size=BATCH, workers=0, device="cpu", precision="fp32")
    return replace(small, layer_decay=layer_decay)


def timm_name(name: str) -> str:
    """A parameter's name in timm's network."""
    part, *rest = name.split(".")
    if part == "downsample_layers":
        stage, layer, kind = rest
        return f"stem.{layer}.{kind}" if stage == "0" else f"stages.{stage}.downsample.{layer}.{kind}"
    if part == "stages":
        layer = {"dwconv": "conv_dw", "pwconv1": "mlp.fc1", "pwconv2": "mlp.fc2"}.get(rest[2], rest[2])
        return ".".join(["stages", rest[0], "blocks", rest[1], layer, *rest[3:]])
    return {"norm": "head.norm", "head": "head.fc"}[part] + f".{rest[0]}"


def timm_network(name: str, **options: Any) -> nn.Module:
    """timm's, with the linear layers that its smaller networks replace by convolutions."""
    return timm.create_model(name, num_classes=CLASSES, conv_mlp=False, **options)


def in_timms_names(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {timm_name(name): value for name, value in weights.items()}


def published_group(name: str) -> int:
    """The published groups of layers for 27 blocks in the third stage, by timm's names."""
    part, *rest = name.split(".")
    if part == "stem":
        return 0
    if part == "stages":
        stage, kind, block = int(rest[0]), rest[1], int(rest[2])
        if kind == "downsample":
            return {1: 2, 2: 3, 3: 12}[stage]
        return {0: 1, 1: 2, 2: 3 + block // 3, 3: 12}[stage]
    return 13


def adamw(model: nn.Module, layer_decay: float) -> torch.optim.AdamW:
    """A group for each parameter; ``part`` is its part of the learning rate."""
    groups: list[dict[str, Any]] = []
    for name, parameter in model.named_parameters():
        plain = parameter.ndim == 1 or name.endswith(".bias")
        part = layer_decay ** (13 - published_group(name)) if layer_decay < 1 else 1.0
        groups.append({"params": [parameter], "weight_decay": 0.0 if plain else DECAY, "part": part})
    return torch.optim.AdamW(groups, lr=PEAK, betas=(0.9, 0.999), eps=1e-8)


def published_rates() -> np.ndarray:
    """The learning rate of every step: linear to the peak, then half a cosine."""
    i = np.arange(EPOCHS * STEPS - WARMUP)
    cosine = MINIMUM + 0.5 * (PEAK - MINIMUM) * (1 + np.cos(np.pi * i / len(i)))
    return np.concatenate([np.linspace(0, PEAK, WARMUP), cosine])


def varied(data: Path) -> Iterator[tuple[int, int, Tensor, Tensor]]:
    """Every step's epoch and number, images (8, 3, 64, 64) and labels: cropped, varied by RandAugment, and erased."""
    files = [(path, label) for label in range(CLASSES) for path in sorted((data / "train" / f"class{label}").iterdir())]
    transform: Any = create_transform(
        SIZE,
        is_training=True,
        auto_augment="rand-m9-mstd0.5-inc1",
        interpolation="bicubic",
        color_jitter=0.4,  # the published value, which timm drops beside RandAugment
        re_prob=0,  # erased below, when the batch has been put together
        mean=timm.data.IMAGENET_DEFAULT_MEAN,  # pyright: ignore[reportAttributeAccessIssue]
        std=timm.data.IMAGENET_DEFAULT_STD,  # pyright: ignore[reportAttributeAccessIssue]
    )
    erase = RandomErasing(0.25, mode="pixel", device="cpu")
    order = TrainingOrder(len(files), BATCH, 1, SEED, 0, 1, 1)
    for epoch in range(EPOCHS):
        order.epoch = epoch
        for step, draws in enumerate(order):
            images = []
            for draw in draws:
                seed_everything(SEED, epoch, draw.image, 3, 0)
                with Image.open(files[draw.image][0]) as picture:
                    images.append(transform(picture.convert("RGB")))
            seed_everything(SEED, epoch, step, 1, 0)
            yield epoch, step, erase(torch.stack(images)), torch.tensor([files[draw.image][1] for draw in draws])


def plain_loop(data: Path, model: nn.Module, layer_decay: float) -> tuple[list[float], nn.Module]:
    """The losses of all steps, and the average of the weights behind them; the model is trained in place."""
    optimizer, average = adamw(model, layer_decay), ModelEmaV3(model, decay=AVERAGE)
    mixup = Mixup(0.8, 1.0, prob=1.0, switch_prob=0.5, label_smoothing=0.1, num_classes=CLASSES)
    losses = []
    for rate, (epoch, step, images, labels) in zip(published_rates(), varied(data), strict=True):
        for group in optimizer.param_groups:
            group["lr"] = rate * group["part"]
        seed_everything(SEED, epoch, step, 0, 0)
        mixed, targets = mixup(images, labels)
        loss = F.cross_entropy(model(mixed), targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        average.update(model)
        losses.append(loss.item())
    return losses, average.module


def our_losses(recipe: Recipe, folder: Path) -> list[float]:
    """Each step's loss, from the means over the steps of an epoch so far."""
    sums = [[0.0] for _ in range(EPOCHS)]
    for progress in fit(recipe, folder):
        if progress.step:
            assert progress.loss is not None
            sums[progress.epoch].append(progress.step * progress.loss)
    return [after - before for epoch in sums for before, after in pairwise(epoch)]


@pytest.mark.parametrize("model", ["convnext_atto", "convnext_tiny"])
def test_the_name_map_gives_the_same_network(model: str) -> None:
    ours = convnext.create_model(model, num_classes=CLASSES, layer_scale_init_value=1.0).eval()
    theirs = timm_network(model).eval()
    theirs.load_state_dict(in_timms_names(ours.state_dict()))
    images = torch.randn(2, 3, SIZE, SIZE)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("model", "drop_path", "layer_decay", "kernels"),
    [  # in large networks the kernels' rounding is enlarged by AdamW where gradients vanish
        pytest.param("convnext_atto", 0.1, 1.0, "on", marks=pytest.mark.slow),
        pytest.param("convnext_tiny", 0.1, 1.0, "off", marks=pytest.mark.slow),
        pytest.param("convnext_small", 0.4, 0.8, "off", marks=pytest.mark.slow),
    ],
)
def test_twenty_steps_equal_a_plain_loop(
    model: str, drop_path: float, layer_decay: float, kernels: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONVNEXT_KERNELS", kernels)
    data = write_pictures(tmp_path / "images")
    seed_everything(SEED)
    ours = convnext.create_model(model, num_classes=CLASSES)
    theirs = timm_network(model, drop_path_rate=drop_path)
    theirs.load_state_dict(in_timms_names(ours.state_dict()))
    expected, average = plain_loop(data, theirs.train(), layer_decay)
    assert max(expected) - min(expected) > 0.5  # far above the tolerance

    losses = our_losses(recipe(data, model, layer_decay), tmp_path / "run")
    assert losses == pytest.approx(expected, rel=0, abs=1e-4)
    learned = torch.load(tmp_path / "run" / "last.pt", weights_only=True)["learner"]
    for part, there in (("model", theirs), ("average", average)):
        torch.testing.assert_close(in_timms_names(learned[part]), dict(there.state_dict()), rtol=0, atol=1e-5)
    shutil.rmtree(tmp_path / "run")  # up to 600 MB, which pytest would keep
