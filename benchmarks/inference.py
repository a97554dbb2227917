"""How fast is ConvNeXt-T at inference here, against timm's and torchvision's, eager, as they come and in channels_last?

Networks take turns, round by round, so that a slow moment of the machine falls on all; the ratio is to the best peer.
Writes ``results/inference-DEVICE.csv``. Usage: ``python benchmarks/inference.py [--batch 8] [--rounds 15]``.
"""

import argparse
import statistics
import time

import torch
from result_files import write_rows
from torch import Tensor, nn

import convnext

NETWORKS = ("convnext_tiny", "timm/convnext_tiny", "torchvision/convnext_tiny", "torchvision/resnet50")


def seconds_of_a_pass(model: nn.Module, images: Tensor) -> float:
    """One pass, to its end."""
    start = time.perf_counter()
    model(images)
    if images.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    plain = torch.randn(options.batch, 3, 224, 224, device=device)
    images = {"contiguous": plain, "channels_last": plain.contiguous(memory_format=torch.channels_last)}
    settings = [(name, layout) for name in NETWORKS for layout in images]
    models = {}
    for name, layout in settings:
        model = convnext.create_model(name).eval().to(device)
        if layout == "channels_last":
            model = model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        models[name, layout] = model
    rates: dict[tuple[str, str], list[float]] = {setting: [] for setting in settings}
    with torch.inference_mode():
        for round_number in range(options.rounds + 2):
            for name, layout in settings:
                seconds = seconds_of_a_pass(models[name, layout], images[layout])
                if round_number >= 2:  # two rounds to warm up
                    rates[name, layout].append(options.batch / seconds)

    peers = [setting for setting in settings if setting[0] in NETWORKS[1:3]]
    best_peer = max(peers, key=lambda setting: statistics.median(rates[setting]))
    rows = []
    for name, layout in settings:
        low, median, high = statistics.quantiles(rates[name, layout], n=4)
        ratios = [ours / theirs for ours, theirs in zip(rates[name, layout], rates[best_peer], strict=True)]
        rows.append(
            {
                "network": name,
                "layout": layout,
                "precision": "fp32",
                "batch": options.batch,
                "images_per_second": f"{median:.2f}",
                "quartiles": f"{low:.2f} to {high:.2f}",
                "ratio_to_best_peer": f"{statistics.median(ratios):.3f}",
            }
        )
        print(*rows[-1].values(), sep="  ")
    print(f"best peer: {' '.join(best_peer)}")
    write_rows(f"inference-{device}", rows)


if __name__ == "__main__":
    main()
