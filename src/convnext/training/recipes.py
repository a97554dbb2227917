"""Named recipes: functions that return a whole `Recipe` for some data.

A recipe's docstring is its contract: command, hardware, expected result, and whether that is the paper's or measured.
Where a recipe depends on the network (stochastic depth above all), it takes the network's name.
"""

from collections.abc import Callable
from dataclasses import replace

from convnext.training.recipe import Recipe

# Rates of stochastic depth by network: the paper's tables, and for V2 its published commands.
PAPER_1K_DROP_PATH = {
    "convnext_tiny": 0.1,
    "convnext_small": 0.4,
    "convnext_base": 0.5,
    "convnext_large": 0.5,
    "convnext_isotropic_small": 0.1,
    "convnext_isotropic_base": 0.2,
    "convnext_isotropic_large": 0.5,
}
PAPER_1K_384_DROP_PATH = {"convnext_base": 0.8, "convnext_large": 0.95}
PAPER_22K_DROP_PATH = {"convnext_base": 0.1, "convnext_large": 0.1, "convnext_xlarge": 0.2}
PAPER_22K_TO_1K_DROP_PATH = {
    "convnext_small": 0.1,
    "convnext_base": 0.2,
    "convnext_large": 0.3,
    "convnext_xlarge": 0.3,
}
V2_DROP_PATH = {"convnextv2_tiny": 0.2, "convnextv2_large": 0.2, "convnextv2_huge": 0.3}


def paper_1k(data: str, model: str = "convnext_tiny") -> Recipe:
    """ImageNet-1K from scratch, as in the paper: 300 epochs at 224 px, batch 4096, EMA.

    Command: ``convnext train imagenet:PATH --recipe paper_1k --model convnext_small``. Hardware: the paper's 32 GPUs,
    128 images each; on 8, ``--accumulate 4``. Expected: T 82.1, S 83.1, B 83.8, L 84.3 (paper; not run here).
    """
    drop_path = PAPER_1K_DROP_PATH.get(model, 0.1)
    return Recipe(data=data, model=model, batch_size=4096, drop_path=drop_path, ema_decay=0.9999)


def paper_isotropic(data: str, model: str = "convnext_isotropic_small") -> Recipe:
    """The isotropic networks on ImageNet-1K from scratch: `paper_1k` with 50 epochs of warm-up.

    LayerScale is the network's own: none in small and base, 1e-6 in large. Command: ``convnext train imagenet:PATH
    --recipe paper_isotropic``. Hardware: as `paper_1k`. Expected: S 78.7, B 82.0, L 82.6 (paper; not run here).
    """
    return replace(paper_1k(data, model), warmup_epochs=50)


def paper_22k(data: str, model: str = "convnext_base") -> Recipe:
    """Pre-training on ImageNet-22K: 90 epochs at 224 px, batch 4096, no EMA.

    Command: ``convnext train FOLDER --recipe paper_22k``, with a folder a class. Hardware: the paper's 128 GPUs, 32
    images each. Expected: see `paper_22k_to_1k`.
    """
    drop_path = PAPER_22K_DROP_PATH.get(model, 0.0)
    return replace(paper_1k(data, model), epochs=90, warmup_epochs=5, drop_path=drop_path, ema_decay=0)


def paper_22k_to_1k(data: str, model: str = "convnext_base") -> Recipe:
    """From ImageNet-22K's weights to ImageNet-1K: 30 epochs, batch 512, small rates for the layers near the input.

    Command: ``convnext train imagenet:PATH --recipe paper_22k_to_1k``, at 384 px with ``--image-size 384``. Hardware:
    the paper's 16 GPUs, 32 images each. Expected at 224/384: T 82.9/84.1, S 84.6/85.8, B 85.8/86.8, L 86.6/87.5, XL
    87.0/87.8 (paper; not run here).
    """
    return Recipe(
        data=data,
        model=model,
        weights="in22k",
        epochs=30,
        batch_size=512,
        lr=5e-5,
        lr_batch_size=512,
        warmup_epochs=0,
        weight_decay=1e-8,
        layer_decay=0.8,
        mixup=0,
        cutmix=0,
        drop_path=PAPER_22K_TO_1K_DROP_PATH.get(model, 0.0),
        head_init_scale=0.001,
    )


def paper_1k_384(data: str, model: str = "convnext_base") -> Recipe:
    """From ImageNet-1K's weights at 224 px to 384 px: 30 epochs, batch 512.

    Command: ``convnext train imagenet:PATH --recipe paper_1k_384``. Hardware: the paper's 16 GPUs, 32 images each.
    Expected: B 85.1, L 85.5 (paper; not run here).
    """
    drop_path = PAPER_1K_384_DROP_PATH.get(model, PAPER_1K_DROP_PATH.get(model, 0.1))
    at_224 = paper_22k_to_1k(data, model)
    return replace(at_224, weights="in1k", image_size=384, layer_decay=0.7, drop_path=drop_path)


def v2_finetune(data: str, model: str = "convnextv2_tiny") -> Recipe:
    """V2 from its masked pre-training (FCMAE) to ImageNet-1K, as in V2's published commands; no decay on GRN.

    Command: ``convnext train imagenet:PATH --recipe v2_finetune --model convnextv2_pico``. Hardware: 32 GPUs, 32
    images each. Expected: atto 76.7, femto 78.5, pico 80.3, nano 81.9, tiny 83.0, base 84.9, large 85.8, huge 86.3
    (paper; not run here). Published for atto, tiny and base; its neighbours take the same values.
    """
    recipe = Recipe(
        data=data,
        model=model,
        weights="fcmae",
        epochs=100,
        batch_size=1024,
        lr=6.25e-4,
        lr_batch_size=256,
        warmup_epochs=20,
        layer_decay=0.6,
        drop_path=V2_DROP_PATH.get(model, 0.1),
        ema_decay=0.9999,
    )
    if model in ("convnextv2_tiny", "convnextv2_nano"):
        return replace(recipe, epochs=300, lr=8e-4, warmup_epochs=40, layer_decay=0.9, layer_groups="block")
    if model in ("convnextv2_atto", "convnextv2_femto", "convnextv2_pico"):
        small = replace(recipe, epochs=600, lr=2e-4, warmup_epochs=0, layer_decay=0.9, layer_groups="block")
        return replace(small, weight_decay=0.3, label_smoothing=0.2, mixup=0, cutmix=0)
    return recipe


def torchvision_600(data: str, model: str = "convnext_tiny") -> Recipe:
    """torchvision's own recipe: 600 epochs at 176 px, TrivialAugment, repeated augmentation, EMA.

    Its EMA is taken every 32 steps with 0.99998, stretched by the epochs; ours is the same average taken every step.
    Command: ``convnext train imagenet:PATH --recipe torchvision_600``. Hardware: its 8 GPUs, 128 images each.
    Expected: T 82.52 (torchvision's figure; not run here).
    """
    return Recipe(
        data=data,
        model=model,
        image_size=176,
        eval_image_size=224,
        epochs=600,
        batch_size=1024,
        lr=1e-3,
        lr_batch_size=1024,
        min_lr=0,
        warmup_epochs=5,
        augment="trivial_augment",
        random_erasing=0.1,
        mixup=0.2,
        repeated_augmentation=4,
        ema_decay=1 - (1 - 0.99998) * (1024 / 600),
    )


def finetune(data: str, model: str = "convnext_tiny") -> Recipe:
    """A folder of photographs, from published weights: 30 epochs at 224 px with small rates near the input.

    Command: ``convnext train FOLDER``, where the weights are at hand; ``--recipe finetune`` fetches them. Hardware: one
    GPU; CPU cores for some hundred images. Expected: depends on the data; no figure is claimed.
    """
    return Recipe(
        data=data,
        model=model,
        weights="in22k",
        epochs=30,
        batch_size=64,
        lr=2e-4,
        lr_batch_size=64,
        warmup_epochs=3,
        layer_decay=0.8,
        layer_groups="group",
        clip_grad=5.0,
        mixup=0,
        cutmix=0,
        head_init_scale=0.001,
        pipeline="fast",
    )


def small(data: str, model: str = "convnext_atto") -> Recipe:
    """Small images or little data, from scratch: a finer stem, milder augmentation, a smaller network, 100 epochs.

    Command: ``convnext train FOLDER`` or ``convnext train cifar10``. Hardware: one GPU; for some hundred images two
    CPU cores, for which the choice by the data takes 96 px, the stem of 4 and 60 epochs. Expected: depends on the
    data; no figure is claimed.
    """
    is_cifar = data in ("cifar10", "cifar100")
    return Recipe(
        data=data,
        model=model,
        image_size=32 if is_cifar else 128,
        epochs=100,
        batch_size=128 if is_cifar else 64,
        lr=1e-3,
        lr_batch_size=128,
        warmup_epochs=5,
        stem_stride=1 if is_cifar else 2,
        augment="crop_flip",
        pipeline="fast",
        random_erasing=0,
        mixup=0,
        cutmix=0,
    )


def digits(data: str = "digits", model: str = "roadmap_micro/separate_downsampling") -> Recipe:
    """scikit-learn's handwritten digits at 32 px: the micro ConvNeXt, in seconds.

    Command: ``convnext train digits``. Hardware: two CPU cores. Expected: at least 98.5 % top-1 on the 360
    held-out digits within three minutes (measured; see ``benchmarks/results``).
    """
    return Recipe(
        data=data,
        model=model,
        image_size=32,
        epochs=30,
        batch_size=96,
        lr=6e-3,
        lr_batch_size=96,
        warmup_epochs=2,
        augment="affine",
        random_erasing=0,
        mixup=0,
        cutmix=0,
    )


RECIPES: dict[str, Callable[..., Recipe]] = {
    recipe.__name__: recipe
    for recipe in (
        paper_1k,
        paper_1k_384,
        paper_22k,
        paper_22k_to_1k,
        paper_isotropic,
        v2_finetune,
        torchvision_600,
        finetune,
        small,
        digits,
    )
}


def from_scratch(data: str) -> Recipe:
    """The recipe that trains any network on some data from random weights, by the name of the data."""
    name = "digits" if data == "digits" else "paper_1k" if data.startswith("imagenet:") else "small"
    return RECIPES[name](data)
