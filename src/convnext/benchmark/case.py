"""What a row of the benchmark is: one network, from one library, in one mode, precision, batch and setting."""

from dataclasses import dataclass
from typing import Literal

Mode = Literal["inference", "training"]
Precision = Literal["fp32", "bf16"]
OURS, CEILING = "convnext", "torch"  # libraries: this package, and the matrix products that are the ceiling


@dataclass(frozen=True)
class Case:
    """One row.

    Attributes:
        name: the network, as the user named it.
        library: where the network comes from; CEILING for matrix products in its place.
        mode: inference or training.
        precision: fp32 or bf16; in training the latter is autocast. Of an exported file what it is in, such as int8.
        batch: images at a time.
        setting: a name of :data:`convnext.benchmark.settings.SETTINGS`.
        image_size: pixels a side.
        in_channels: channels of the images.
        device: torch's name of it.
        file: a network that was pickled for this benchmark; None where it is built by its name.
    """

    name: str
    library: str
    mode: Mode
    precision: Precision
    batch: int
    setting: str
    image_size: int = 224
    in_channels: int = 3
    device: str = "cpu"
    file: str | None = None

    def __str__(self) -> str:
        if self.library == CEILING:
            return f"matrix products, {self.precision}"
        where = "" if self.name.startswith(f"{self.library}/") else f"{self.library} "
        return f"{where}{self.name}, {self.mode}, {self.precision}, batch {self.batch}, {self.setting}"
