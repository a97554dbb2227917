"""How many images a second does one core read and vary for training, against timm's and torchvision's loaders?

2,000 JPEGs of 500 x 375 are made of real photographs; the loaders take turns on 200 of them at a time, in this process
and one thread, so that a slow moment of the machine falls on all. Rates are by processor time, which leaves out what
else runs on it. A loader's name says what it gives: float32 normalised on the core, or bytes left to the device. Ratios
are to the faster form of each peer, round by round.
Writes ``results/loader-cpu.csv``. Usage: ``python benchmarks/loader.py [--images 2000] [--rounds 20]``, after
``pip install scikit-image``.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import cv2
import torch
from photographs import make_photographs
from PIL import Image
from result_files import write_rows
from torch.utils.data import DataLoader, Dataset
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms import InterpolationMode, v2

from convnext.data import FileImages
from convnext.data.augmentation import MEAN, STD, allow_posterize_to_nothing
from convnext.data.decoding import open_picture
from convnext.data.loader import Batches

ROUND, BATCH, SIZE = 200, 50, 224
TIMM = ("timm create_loader, RandAugment, float32", "timm create_loader, RandAugment, bytes")
V2 = ("torchvision v2 on tensors, TrivialAugment, float32", "torchvision v2 on tensors, TrivialAugment, bytes")
Loader = Callable[[list[Path]], Iterable[Any]]


class Files(Dataset[Any]):
    """Files through a function, each with label 0; as timm's loader wants it, the function can be set later."""

    def __init__(self, paths: list[Path], read: Callable[[Path], Any], transform: Callable[[Any], Any] | None = None):
        self.paths, self.read, self.transform = paths, read, transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        picture = self.read(self.paths[index])
        return self.transform(picture) if self.transform else picture, 0


def pillow(path: Path) -> Image.Image:
    """A picture by Pillow, as the peers' data sets read it."""
    with Image.open(path) as image:
        return image.convert("RGB")


def timm_loader(paths: list[Path], use_prefetcher: bool) -> Iterable[Any]:
    """timm's loader with the paper's augmentation; with its prefetcher, bytes before they go to the device."""
    from timm.data.loader import create_loader

    files: Any = Files(paths, pillow)
    loader: Any = create_loader(
        files,
        (3, SIZE, SIZE),
        BATCH,
        is_training=True,
        scale=(0.08, 1),
        auto_augment="rand-m9-mstd0.5-inc1",
        interpolation="bicubic",
        num_workers=0,
        persistent_workers=False,
        use_prefetcher=use_prefetcher,
        device=torch.device("cpu"),
    )
    allow_posterize_to_nothing(files.transform)  # timm stops with an error on one image in 660 with Pillow 13
    return loader.loader if use_prefetcher else loader


def torchvision_loader(paths: list[Path], read: Callable[[Path], Any], to_float: bool) -> Iterable[Any]:
    """torchvision's transforms v2 in its references' order."""
    steps: list[Any] = [
        v2.RandomResizedCrop(SIZE, interpolation=InterpolationMode.BICUBIC, antialias=True),
        v2.RandomHorizontalFlip(),
        v2.TrivialAugmentWide(interpolation=InterpolationMode.BILINEAR),
        v2.PILToTensor() if read is pillow else v2.Identity(),
    ]
    if to_float:
        steps += [v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
    return DataLoader(Files(paths, read, v2.Compose(steps)), BATCH)


def decoded(path: Path) -> torch.Tensor:
    """A picture as a tensor (3, H, W), by torchvision's own decoder."""
    return decode_image(str(path), ImageReadMode.RGB)


def ours(paths: list[Path], augment: str, pipeline: str, prepare: bool = False) -> Iterable[Any]:
    """This package's batches; with ``prepare``, normalised on the core as well."""
    images = FileImages(tuple(paths), (0,) * len(paths))
    batches = Batches(images, batch_size=BATCH, image_size=SIZE, augment=augment, pipeline=pipeline, shuffle=True)
    for batch in batches.epoch():
        yield batches.prepare(batch, torch.device("cpu")) if prepare else batch


LOADERS: dict[str, Loader] = {
    "decoding alone, Pillow": lambda paths: map(pillow, paths),
    "decoding alone, torchvision": lambda paths: map(decoded, paths),
    "decoding alone, ours (simplejpeg)": lambda paths: (open_picture(path).decode(1) for path in paths),
    TIMM[0]: lambda paths: timm_loader(paths, use_prefetcher=False),
    TIMM[1]: lambda paths: timm_loader(paths, use_prefetcher=True),
    "torchvision v2 on PIL, TrivialAugment, float32": lambda paths: torchvision_loader(paths, pillow, to_float=True),
    V2[0]: lambda paths: torchvision_loader(paths, decoded, to_float=True),
    V2[1]: lambda paths: torchvision_loader(paths, decoded, to_float=False),
    "ours, exact, RandAugment, float32": lambda paths: ours(paths, "rand_augment", "exact"),
    "ours, exact, TrivialAugment, float32": lambda paths: ours(paths, "trivial_augment", "exact"),
    "ours, fast, RandAugment, float32": lambda paths: ours(paths, "rand_augment", "fast", prepare=True),
    "ours, fast, RandAugment, bytes": lambda paths: ours(paths, "rand_augment", "fast"),
    "ours, fast, TrivialAugment, bytes": lambda paths: ours(paths, "trivial_augment", "fast"),
}


def images_per_second(loader: Loader, paths: list[Path]) -> float:
    """Images a second of processor time."""
    start = time.process_time()
    for _ in loader(paths):
        pass
    return len(paths) / (time.process_time() - start)


def main() -> None:
    """Make the files, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    rates: dict[str, list[float]] = {name: [] for name in LOADERS}
    with tempfile.TemporaryDirectory() as folder:
        paths = make_photographs(Path(folder), options.images)
        size = statistics.mean(path.stat().st_size for path in paths)
        for round_number in range(-1, options.rounds):  # one to warm up
            start = round_number * ROUND % len(paths)
            for name, loader in LOADERS.items():
                rate = images_per_second(loader, paths[start : start + ROUND])
                if round_number >= 0:
                    rates[name].append(rate)

    rows = []
    for name in LOADERS:
        low, median, high = statistics.quantiles(rates[name], n=4)
        rows.append(
            {
                "loader": name,
                "images_per_second_per_core": f"{median:.0f}",
                "quartiles": f"{low:.0f} to {high:.0f}",
                "ratio_to_timm": f"{ratio(rates, name, TIMM):.2f}",
                "ratio_to_torchvision_v2": f"{ratio(rates, name, V2):.2f}",
                "images": len(paths),
                "kilobytes_an_image": f"{size / 1000:.0f}",
                "rounds": options.rounds,
            }
        )
        print(*list(rows[-1].values())[:5], sep="  ")
    write_rows("loader-cpu", rows, ("pillow", "opencv-python-headless", "simplejpeg"))


def ratio(rates: dict[str, list[float]], name: str, peers: tuple[str, ...]) -> float:
    """The median over the rounds of a loader's rate to the faster peer's."""
    best = max(peers, key=lambda peer: statistics.median(rates[peer]))
    return statistics.median(own / theirs for own, theirs in zip(rates[name], rates[best], strict=True))


if __name__ == "__main__":
    main()
