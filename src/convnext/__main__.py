"""``python -m convnext``, and the command ``convnext``."""

import sys


def main() -> int:
    """Run the command line; Ctrl-C while it is still loading ends it as quietly as later on."""
    try:
        from convnext.cli import main

        return main()
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
