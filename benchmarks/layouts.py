"""Do weights keep their answers on the way from another library to this package and back?

For every variant that a peer has: its network with random weights, saved as the peer saves it, is opened here and
answers; converted back, it is opened by the peer. ``difference`` is the largest of our logits from the peer's, in parts
of the peer's largest logit; ``same_bits`` says whether every tensor came back as it was.
Writes ``results/layouts.csv``.
Usage: ``python -m benchmarks.layouts [--variants convnext_tiny,convnextv2_tiny]``.
"""

import argparse
import tempfile
from pathlib import Path

from benchmarks.result_files import write_rows
from tests.weights.peers import PEERS, STAGED, round_trip


def main() -> None:
    """Measure, print and write every pair of peer and variant."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--variants", default=",".join(STAGED), help="names, separated by commas")
    variants = parser.parse_args().variants.split(",")
    rows = []
    for variant in variants:
        for peer in PEERS:
            if variant not in peer.variants:
                continue
            with tempfile.TemporaryDirectory() as folder:
                result = round_trip(peer, variant, Path(folder))
            rows.append(
                {
                    "variant": variant,
                    "peer": peer.layout,
                    "difference": f"{result.difference:.1e}",
                    "same_bits": result.same_bits,
                    "same_logits": result.same_logits,
                }
            )
            print(*rows[-1].values(), flush=True)
    write_rows("layouts", rows, packages=("transformers",))


if __name__ == "__main__":
    main()
