"""Fast forms of the few operations that matter, each beside its plain reference.

``CONVNEXT_KERNELS=off`` turns all of them off.
"""

import os

from convnext.errors import UsageError


def enabled() -> bool:
    """Whether fast forms may be used.

    Raises:
        UsageError: ``CONVNEXT_KERNELS`` is neither ``on`` nor ``off``.
    """
    word = os.environ.get("CONVNEXT_KERNELS", "on")
    if word not in ("on", "off"):
        raise UsageError(f"CONVNEXT_KERNELS is {word!r}, needs on or off")
    return word == "on"
