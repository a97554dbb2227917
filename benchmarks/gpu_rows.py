"""The networks of ``benchmarks/gpu.py``: which rows there are, in which order, and what they say of the targets."""

import importlib.util
from dataclasses import dataclass
from typing import Any

BATCHES, TOY_BATCHES = (1, 64, 256), (1, 2)
NETWORKS = ("convnext_tiny", "convnext_base", "convnextv2_tiny")
SIMPLE = ("fused", "plain", "channels_last", "eager")  # settings that a toy is measured in
# On one H200: times the best peer, share of the best peer's memory, share of the rate of matrix products.
TARGETS = {"training": 1.8, "inference": 2.0, "latency": 1.5}
MEMORY_TARGET, SHARE_TARGET = 0.65, 0.35


@dataclass(frozen=True)
class Row:
    """A network of a library in a mode, batch and setting."""

    name: str
    mode: str
    batch: int
    library: str
    setting: str

    @property
    def cell(self) -> str:
        """What its peers have in common with it."""
        return f"{self.name}/{self.mode}/{self.batch}"

    @property
    def seconds(self) -> float:
        """What it takes about, mostly to compile."""
        deep = 1.7 if "base" in self.name else 1.0
        passes = 2.0 if self.mode == "training" else 1.0
        kernels = 15 * passes if self.library == "convnext" and self.name != NETWORKS[0] else 0  # to be tuned first
        setting = self.setting.removeprefix("fused, ")
        return kernels + deep * {"compiled": 20 * passes + 5, "max-autotune": 45 * passes}.get(setting, 6.0)

    @property
    def lateness(self) -> float:
        """Rows are measured in this order."""
        network = {"convnext_tiny": 0, "convnext_base": 2, "convnextv2_tiny": 2.5}[self.name]
        batch = 4 if self.batch == 64 or (self.batch, self.mode) == (1, "training") else 0
        setting = {"compiled": 0.6, "max-autotune": 1.4, "eager": 1.6}.get(self.setting, 0.0)
        if self.library == "convnext":
            setting = {"fused, compiled": 0.8, "plain": 1.8}.get(self.setting, 0.0)
        elif self.library == "torchvision":
            setting += 1.2 if self.setting == "channels_last" else 2.4
        return network + batch + setting + (0.1 if self.mode == "inference" else 0)


def all_rows(toy: bool) -> list[Row]:
    """Every row, the most important first; of a toy, those that neither compile nor record."""
    rows = []
    for name in NETWORKS[:1] if toy else NETWORKS:
        for mode in ("training", "inference"):
            for batch in TOY_BATCHES if toy else BATCHES:
                graph = mode == "inference" and batch == 1
                ours = ["fused", *(["fused, CUDA graph"] if graph else []), "fused, compiled", "plain"]
                theirs = ["channels_last", "compiled", "max-autotune", "eager", *(["CUDA graph"] if graph else [])]
                rows += [Row(name, mode, batch, "convnext", setting) for setting in ours]
                for library in ("timm", "torchvision"):
                    known = importlib.util.find_spec(library) and not (library == "torchvision" and "v2" in name)
                    rows += [Row(name, mode, batch, library, setting) for setting in theirs if known]
    if toy:
        rows = [row for row in rows if row.library != "torchvision" and row.setting in SIMPLE]
        rows = [row for row in rows if (row.mode, row.batch) != ("training", 1)]
    return sorted(rows, key=lambda row: row.lateness)


def verdicts(rows: list[dict[str, Any]], rate: float, macs: dict[str, int]) -> list[str]:
    """Each target beside what was reached, cell by cell."""
    said = []
    measured = [row for row in rows if row["images_per_second"]]
    largest = max((row["batch"] for row in measured), default=0)
    for cell in dict.fromkeys((row["network"], row["mode"], row["batch"]) for row in measured):
        name, mode, batch = cell
        group = [row for row in measured if (row["network"], row["mode"], row["batch"]) == cell]
        ours = fastest(row for row in group if row["library"] == "convnext" and row["setting"] != "plain")
        peer = fastest(row for row in group if row["library"] != "convnext")
        if ours is None or peer is None:
            continue
        where = f"{name}, {mode}, batch {batch}"
        latency = mode == "inference" and batch == 1
        target = TARGETS["latency" if latency else mode]
        if mode == "training" or latency or batch == largest:
            ratio = speed(ours) / speed(peer)
            against = f"{ours['setting']} against {peer['library']} {peer['setting']}"
            said.append(verdict(f"{where}: {ratio:.2f} times the best peer ({against})", target, ratio >= target))
        if mode == "training" and ours["peak_mib"] and float(peer["peak_mib"] or 0):
            share = float(ours["peak_mib"]) / float(peer["peak_mib"])
            said.append(verdict(f"{where}: {share:.2f} of its memory", MEMORY_TARGET, share <= MEMORY_TARGET))
        if mode == "inference" and batch == largest and name in macs:
            share = 2.0 * macs[name] * speed(ours) / rate
            said.append(verdict(f"{where}: {share:.1%} of the matrix products", SHARE_TARGET, share >= SHARE_TARGET))
    return said


def verdict(words: str, target: float, reached: bool) -> str:
    """A target and what was reached."""
    return f"{words}; target {target:g}: {'reached' if reached else 'missed'}"


def fastest(rows: Any) -> dict[str, Any] | None:
    """The row with the most images a second."""
    return max(rows, key=speed, default=None)


def speed(row: dict[str, Any]) -> float:
    """Images a second."""
    return float(row["images_per_second"])
