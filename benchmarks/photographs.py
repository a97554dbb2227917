"""Photographs to read: JPEGs of 500 x 375 made of the real ones that scikit-learn and scikit-image bring along."""

from pathlib import Path

import numpy as np
import skimage.data
from PIL import Image, ImageEnhance
from sklearn.datasets import load_sample_images

SIZE = (500, 375)
NAMES = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "motorcycle_left.png")


def make_photographs(folder: Path, count: int) -> list[Path]:
    """Cut ``count`` pictures out of seven photographs, vary them, and save them as cameras do (quality 90, 4:2:0)."""
    sources = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    sources += [Image.open(Path(skimage.data.__file__).parent / name).convert("RGB") for name in NAMES]
    generator = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{number:04d}.jpg" for number in range(count)]
    for number, path in enumerate(paths):
        source = sources[number % len(sources)]
        width = min(source.width, source.height * 4 / 3) * generator.uniform(0.7, 1)
        left, top = generator.uniform(0, source.width - width), generator.uniform(0, source.height - width * 0.75)
        box = (left, top, left + width, top + width * 0.75)
        picture = source.resize(SIZE, Image.Resampling.BICUBIC, box)
        if generator.random() < 0.5:
            picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        picture = ImageEnhance.Brightness(picture).enhance(generator.uniform(0.8, 1.2))
        picture.save(path, quality=90, subsampling="4:2:0")
    return paths
