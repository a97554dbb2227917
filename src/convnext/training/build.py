"""From a recipe to everything that trains: data, model, loss, optimizer, schedule and loaders.

The only module that reads a recipe's fields.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from convnext.acceleration.accelerate import accelerate, acceleration_report
from convnext.data import DatasetImages, ImageData, load_data
from convnext.data.loader import Batches
from convnext.data.preprocessing import Preprocessing
from convnext.data.sources import NAMES, OBJECT
from convnext.device import autocast_for, choose_device, choose_workers
from convnext.errors import UsageError
from convnext.models import create_model, is_reference
from convnext.randomness import seed_everything
from convnext.training.blocks import checkpoint_blocks
from convnext.training.distributed import SINGLE_RANK, Ranks
from convnext.training.optimizer import adamw, learning_rate
from convnext.training.recipe import Recipe
from convnext.training.train_state import Loss, TrainState, classification_loss
from convnext.weights import load_weights
from convnext.weights.names import find_weights

SYNC_EVERY = 10  # steps on a GPU, where a synchronization waits for the work in flight


@dataclass(frozen=True)
class Objects:
    """Objects that the caller passes in place of a recipe's strings.

    Attributes:
        model: takes images (N, 3, H, W), returns logits (N, classes). It is trained in place, from the weights that it
            has; the recipe's weights, drop_path, layer_scale, stem_stride and head_init_scale do not apply.
        train_data: a map-style dataset of (image, label), see :class:`convnext.data.images.DatasetImages`. Its
            ``classes`` are the class names; without them, the model's outputs are numbered.
        val_data: the same, held out.
        loss: of logits (N, classes) and targets, to the batch's mean loss. Targets are class indices (N,), or
            probabilities (N, classes) where the recipe has mixup or cutmix.
    """

    model: nn.Module | None = None
    train_data: Any = None
    val_data: Any = None
    loss: Loss | None = None

    def named_in(self, recipe: Recipe) -> Recipe:
        """The recipe with the objects' names in place of its strings."""
        if (self.train_data is None) != (self.val_data is None):
            raise UsageError("train_data and val_data belong together: pass both or neither")
        objects = {"model": self.model, "data": self.train_data, "loss": self.loss}
        names = {field: object_name(value) for field, value in objects.items() if value is not None}
        return replace(recipe, **names, weights=None if self.model is not None else recipe.weights)


NO_OBJECTS = Objects()


def object_name(value: Any) -> str:
    """An object's name in a recipe: ``object:MODULE.NAME`` of its class, or of the function that it is."""
    named = value if hasattr(value, "__qualname__") else type(value)
    return f"{OBJECT}{named.__module__}.{named.__qualname__}"


@dataclass(frozen=True)
class Training:
    """Everything that trains, as :func:`build` makes it."""

    recipe: Recipe  # to be recorded
    data: ImageData
    ranks: Ranks
    device: torch.device
    state: TrainState
    train_loader: Batches  # micro-batches, ``accumulate`` per step
    val_loader: Batches
    schedule: Callable[[int], float]  # learning rate by step, counted over all epochs
    epochs: int
    steps: int  # per epoch
    accumulate: int
    rank_batch: int  # images per step of this rank
    sync_every: int  # steps between two synchronizations of the loss
    seed: int
    checkpoint_seconds: float  # between two checkpoints within an epoch


def build(recipe: Recipe, data: ImageData, ranks: Ranks = SINGLE_RANK, objects: Objects = NO_OBJECTS) -> Training:
    """Build everything that the recipe trains, seeded by it.

    Raises:
        UsageError: the recipe does not fit the data, the machine or the objects.
    """
    device = choose_device(recipe.device, ranks.local_rank)
    seed_everything(recipe.seed)
    state = build_state(recipe, len(data.classes), device, ranks, objects)
    train_loader, val_loader = build_loaders(recipe, data, device, ranks)
    rank_batch = train_loader.batch_size // ranks.world_size
    if rank_batch // recipe.accumulate < state.min_batch:
        raise UsageError(f"{recipe.model} has BatchNorm, which needs batches of 2 images or more: raise --batch-size")
    return Training(
        recipe=recipe,
        data=data,
        ranks=ranks,
        device=device,
        state=state,
        train_loader=train_loader,
        val_loader=val_loader,
        schedule=build_schedule(recipe, len(train_loader), train_loader.batch_size),
        epochs=recipe.epochs,
        steps=len(train_loader),
        accumulate=recipe.accumulate,
        rank_batch=rank_batch,
        sync_every=1 if device.type == "cpu" or recipe.accumulate > 1 else SYNC_EVERY,
        seed=recipe.seed,
        checkpoint_seconds=60 * recipe.checkpoint_minutes,
    )


def build_data(recipe: Recipe, objects: Objects = NO_OBJECTS) -> ImageData:
    """The recipe's data, or the datasets that were passed.

    Raises:
        UsageError: there is no such data, its classes are not known, or the model that was passed has other ones.
    """
    shape = (3, recipe.image_size, recipe.image_size)
    if objects.train_data is None:
        data = load_data(recipe.data, val_fraction=recipe.val_fraction)
    else:
        train, val = DatasetImages(objects.train_data), DatasetImages(objects.val_data)
        if not len(train) or not len(val):
            raise UsageError(f"train_data has {len(train)} images and val_data {len(val)}: each needs one or more")
        image, _ = train.read(0)
        notes = ()
        if isinstance(image, torch.Tensor):
            shape = tuple(image.shape)
            notes = ("train_data returns float tensors: they are used as they are, without augmentation",)
        classes = tuple(map(str, getattr(objects.train_data, "classes", ())))
        data = ImageData(recipe.data, classes, train, val, notes=notes)
    outputs = len(data.classes) if objects.model is None else count_outputs(objects.model, shape)
    if not outputs:
        raise UsageError("train_data has no attribute `classes`: set it to the list of class names")
    if data.classes and len(data.classes) != outputs:
        raise UsageError(f"model returns {outputs} logits, and the data has {len(data.classes)} classes")
    return data if data.classes else replace(data, classes=tuple(map(str, range(outputs))))


def count_outputs(model: nn.Module, shape: tuple[int, ...]) -> int:
    """The number of a model's logits for images of some shape (C, H, W)."""
    parameter = next(model.parameters(), torch.empty(0))
    with torch.no_grad():
        logits = copy.deepcopy(model).eval()(parameter.new_zeros(1, *shape))
    if not isinstance(logits, torch.Tensor) or logits.ndim != 2:
        found = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise UsageError(f"model returns {found} for images {(1, *shape)}: it needs logits (N, classes)")
    return logits.shape[1]


def build_model(recipe: Recipe, num_classes: int) -> nn.Module:
    """The recipe's model, freshly initialised.

    Raises:
        UsageError: there is no such model, it was passed as an object, or the recipe's images are too small for it.
    """
    if recipe.model.startswith(OBJECT):
        raise UsageError(
            f"the run's model is an object ({recipe.model.removeprefix(OBJECT)}), which its folder does not hold: to "
            "resume, pass convnext.train(recipe, model=...); to use it, load best.safetensors into such a model"
        )
    image_size = min(recipe.image_size, recipe.evaluation_size)
    if is_reference(recipe.model):
        return create_model(recipe.model, num_classes=num_classes, image_size=image_size)
    options = {"stem_stride": recipe.stem_stride, "layer_scale_init_value": recipe.layer_scale}
    options = {name: value for name, value in options.items() if value is not None}
    head = {"num_classes": num_classes, "head_init_scale": recipe.head_init_scale}
    model = create_model(recipe.model, drop_path_rate=recipe.drop_path, **head, **options)
    smallest = model.smallest_image
    if isinstance(smallest, int) and image_size < smallest:
        raise UsageError(
            f"image size {image_size} is too small for {recipe.model} (needs at least {smallest}): pass "
            f"--image-size {smallest} or more"
        )
    return model


def build_state(
    recipe: Recipe,
    num_classes: int,
    device: torch.device,
    ranks: Ranks = SINGLE_RANK,
    objects: Objects = NO_OBJECTS,
) -> TrainState:
    """The model on its device, with its EMA, optimizer and loss.

    Raises:
        UsageError: an option of the recipe does not fit the model, the device or the ranks.
    """
    autocast = autocast_for(recipe.precision, device)
    model = build_model(recipe, num_classes) if objects.model is None else objects.model
    model = model.to(device=device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    if recipe.sync_batch_norm and ranks.world_size > 1:
        if device.type != "cuda":
            raise UsageError("sync_batch_norm needs GPUs: leave it out on CPUs")
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    accelerate_blocks(model, recipe, device)
    ema = None
    if recipe.ema_decay:
        from timm.utils.model_ema import ModelEmaV3

        ema = ModelEmaV3(model, decay=recipe.ema_decay)
    optimizer = adamw(model, recipe, recipe.lr)
    if recipe.checkpoint_activations:
        checkpoint_blocks(model)
    # torch.compile's dynamic shapes, tried after the second image size, fail in its compiler here.
    network = torch.compile(model, dynamic=False) if recipe.compile else model
    if ranks.world_size > 1:
        network = DistributedDataParallel(network, gradient_as_bucket_view=True)  # pyright: ignore[reportArgumentType]
    has_batch_norm = any(isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) for module in model.modules())
    return TrainState(
        model=model,
        network=network,  # pyright: ignore[reportArgumentType]
        ema=ema,
        optimizer=optimizer,
        scaler=torch.amp.GradScaler(device.type, enabled=recipe.precision == "fp16"),
        autocast=autocast,
        loss=objects.loss or build_loss(recipe),
        mixup=build_mixup(recipe, num_classes),
        clip_grad=recipe.clip_grad,
        is_recomputed=recipe.checkpoint_activations,
        min_batch=2 if has_batch_norm else 1,
        image_size=recipe.image_size,
    )


def accelerate_blocks(model: nn.Module, recipe: Recipe, device: torch.device) -> None:
    """Swap in the training kernels where there are some; ``fuse`` takes those that no GPU has measured yet.

    Raises:
        UsageError: ``fuse`` is set, and the device has no such kernels, or the model has nothing that they compute.
    """
    if recipe.fuse:
        from convnext.acceleration.gpu.triton_runtime import runs_on

        if not runs_on(device):
            raise UsageError(f"fuse needs an NVIDIA GPU and Triton, and the device is {device.type}: leave --fuse out")
    accelerate(model, training=True, experimental=recipe.fuse)
    report = acceleration_report(model)
    if recipe.fuse and not report.swapped:
        raise UsageError(f"there is nothing to fuse in this model ({report}): leave --fuse out")


def build_loss(recipe: Recipe) -> Loss:
    """The recipe's loss.

    Raises:
        UsageError: it was passed as an object.
    """
    if recipe.loss.startswith(OBJECT):
        raise UsageError(f"the run's loss is an object ({recipe.loss.removeprefix(OBJECT)}): pass it with loss=")
    return partial(classification_loss, smoothing=recipe.label_smoothing, is_binary=recipe.loss == "bce")


def build_mixup(recipe: Recipe, num_classes: int) -> Any:
    """timm's mixup and cutmix with the recipe's values; None for neither."""
    if not recipe.mixup and not recipe.cutmix:
        return None
    from timm.data.mixup import Mixup

    return Mixup(recipe.mixup, recipe.cutmix, label_smoothing=recipe.label_smoothing, num_classes=num_classes)


def build_schedule(recipe: Recipe, steps: int, batch_size: int) -> Callable[[int], float]:
    """The learning rate by step, for epochs of ``steps`` steps of ``batch_size`` images."""
    total = recipe.epochs * steps
    warmup_steps = min(round(recipe.warmup_epochs * steps), total // 2)
    peak = recipe.peak_lr(batch_size)
    return partial(learning_rate, steps=total, warmup_steps=warmup_steps, peak=peak, minimum=recipe.min_lr)


def build_loaders(
    recipe: Recipe, data: ImageData, device: torch.device, ranks: Ranks = SINGLE_RANK
) -> tuple[Batches, Batches]:
    """The loaders for training and for evaluation."""
    common: dict[str, Any] = {
        "rank": ranks.rank,
        "world_size": ranks.world_size,
        "pipeline": recipe.pipeline,
        "workers": choose_workers(recipe.workers, ranks.local_world_size),
        "pin_memory": device.type == "cuda",
    }
    train = Batches(
        data.train,
        batch_size=recipe.batch_size,
        image_size=recipe.image_size,
        augment=recipe.augment,
        random_erasing=recipe.random_erasing,
        shuffle=True,
        repeats=recipe.repeated_augmentation,
        seed=recipe.seed,
        accumulate=recipe.accumulate,
        **common,
    )
    micro_batch = max(1, recipe.batch_size // ranks.world_size // recipe.accumulate)
    return train, Batches(data.val, batch_size=micro_batch, image_size=recipe.evaluation_size, **common)


def load_start(training: Training) -> tuple[str, ...]:
    """Load the weights that the recipe starts from, if it names any; returns notes on what was loaded.

    Raises:
        UsageError: there are no such weights, or they do not fit the model.
        RunError: they cannot be downloaded, or are damaged.
    """
    recipe, state, ranks = training.recipe, training.state, training.ranks
    if recipe.weights is None:
        return ()
    if not ranks.is_main:
        ranks.barrier()  # until rank 0 has downloaded them
    path, notes = find_weights(recipe.weights, recipe.model)
    if ranks.is_main:
        ranks.barrier()
    loaded = load_weights(state.model, path)
    if state.ema is not None:
        state.ema.set(state.model)
    return (f"starting from {loaded.path}: {loaded.loaded} tensors", *notes, *loaded.notes)


def preprocessing_of(recipe: Recipe) -> Preprocessing:
    """The preprocessing of the recipe's model in evaluation: images held in memory are not cropped."""
    prepare = Preprocessing.whole if recipe.data in NAMES else Preprocessing.published
    return prepare(recipe.evaluation_size)
