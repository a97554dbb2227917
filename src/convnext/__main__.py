"""``python -m convnext``, and the command ``convnext``."""

import os
import sys


def main() -> int:
    """Run the command line; Ctrl-C while it is still loading ends it as quietly as later on."""
    # Threads that spin while they wait slow each other down by a factor of ten and more as soon as anything else, such
    # as the reading processes, wants a core. To be set before torch loads.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        from convnext.cli import main

        return main()
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
