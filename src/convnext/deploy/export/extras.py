"""The packages that a format needs, which an installation of this one need not have."""

import importlib
from typing import Any

from convnext.errors import UsageError


def needed(package: str, extra: str) -> Any:
    """A package of an extra, imported.

    Raises:
        UsageError: it is not installed, or something that it needs itself is not.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise UsageError(
            f"{error.name or package} is not installed, which this format needs: pip install 'convnext[{extra}]'"
        ) from error
