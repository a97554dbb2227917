"""``python -m convnext``."""

import sys

from convnext.cli import main

sys.exit(main())
