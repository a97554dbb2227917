"""The recipe that suits some data: by the size of the images, how many there are, and the weights at hand."""

import dataclasses
import statistics
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from convnext.data import FileImages, load_data
from convnext.device import choose_device
from convnext.errors import unknown_name
from convnext.training.recipe import Recipe
from convnext.training.recipes import RECIPES, finetune, paper_1k, small
from convnext.weights import PUBLISHED, at_hand

LOOKED_AT = 25  # images whose size is read
PHOTOGRAPH = 96  # pixels of the shorter side; smaller images get the recipe for small ones
MANY = 100_000  # images that the paper's recipe from scratch asks for
START_TAGS = ("in22k", "in22k_in1k", "in1k", "fcmae")  # weights to fine-tune, the best first


@dataclass(frozen=True)
class Choice:
    """A recipe, its name, and in words why it was chosen."""

    recipe: Recipe
    name: str
    why: str

    def __str__(self) -> str:
        return f"Recipe {self.name}: {self.why}"


def recipe_for(data: str, name: str | None = None, model: str | None = None) -> Recipe:
    """The recipe ``name`` for some data and model; without a name, the one that suits them.

    Raises:
        UsageError: there is no such recipe, or no such data.
    """
    return choose_recipe(data, name, model).recipe


def choose_recipe(data: str, name: str | None = None, model: str | None = None) -> Choice:
    """The same as :func:`recipe_for`, with the recipe's name and the reason for it."""
    chosen = {"model": model} if model else {}
    if name is not None:
        if name not in RECIPES:
            raise unknown_name("recipe", name, RECIPES)
        return Choice(RECIPES[name](data, **chosen), name, "as asked for")
    if data == "digits":
        return Choice(RECIPES["digits"](data, **chosen), "digits", "made for them")
    if data.startswith("imagenet:"):
        return Choice(paper_1k(data, **chosen), "paper_1k", "the paper's for ImageNet")
    if data in ("cifar10", "cifar100"):
        return Choice(small(data, **chosen), "small", "images of 32 px")
    return choose_for_folder(data, model)


def choose_for_folder(data: str, model: str | None) -> Choice:
    """The recipe for a folder of images."""
    images = load_data(data)
    assert isinstance(images.train, FileImages)
    chosen = {"model": model} if model else {}
    side = typical_side(images.train.paths)
    count = len(images.train) + len(images.val)
    there = f"{count:,} images in {len(images.classes)} classes, about {side} px"
    if side < PHOTOGRAPH:
        size = 32 if side <= 40 else 64
        recipe = dataclasses.replace(small(data, **chosen), image_size=size, stem_stride=1 if size == 32 else 2)
        return Choice(recipe, "small", f"{there}, which the paper's stem would reduce to next to nothing")
    if count >= MANY:
        return Choice(paper_1k(data, **chosen), "paper_1k", f"{there}: enough for the paper's recipe from scratch")
    if found := weights_at_hand(model):
        variant, tag = found
        recipe = dataclasses.replace(finetune(data, variant), weights=tag)
        return Choice(recipe, "finetune", f"{there}, and published weights of {variant} ({tag}) are at hand")
    why = f"{there}, too few for the paper's recipe, and no published weights at hand (--recipe finetune fetches some)"
    recipe = small(data, **chosen)
    if choose_device("auto").type == "cpu":
        recipe = dataclasses.replace(recipe, image_size=96, stem_stride=4, epochs=60)
        why += "; without a GPU at 96 px, a quarter of the work"
    return Choice(recipe, "small", why)


def typical_side(paths: tuple[Path, ...]) -> int:
    """The median of the shorter sides in pixels, of some images spread over all; 0 if none of them can be read."""
    sides = []
    for path in paths[:: max(1, len(paths) // LOOKED_AT)]:
        try:
            with Image.open(path) as image:
                sides.append(min(image.size))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            continue
    return round(statistics.median(sides)) if sides else 0


def weights_at_hand(model: str | None) -> tuple[str, str] | None:
    """Network and tag of the published weights to start from that lie on this machine, ConvNeXt-T's before others."""
    variants = [model] if model else ["convnext_tiny", *dict.fromkeys(variant for variant, _ in PUBLISHED)]
    for variant in variants:
        for tag in START_TAGS:
            if (variant, tag) in PUBLISHED and at_hand(variant, tag):
                return variant, tag
    return None
