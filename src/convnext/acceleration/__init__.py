"""Fast equivalents of the models: one switch, kernels for the CPU and the GPU, folding, int8 and the search.

Each kernel stands beside its plain reference. ``CONVNEXT_KERNELS=off`` in the environment turns all of them off.
"""

import os

from convnext.errors import UsageError


def enabled() -> bool:
    """True if kernels may be used.

    Raises:
        UsageError: ``CONVNEXT_KERNELS`` is neither ``on`` nor ``off``.
    """
    value = os.environ.get("CONVNEXT_KERNELS", "on")
    if value not in ("on", "off"):
        raise UsageError(f"CONVNEXT_KERNELS is {value!r}, needs on or off")
    return value == "on"
