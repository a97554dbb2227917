"""Weights: read from files without running what is in them, fitted to a network, and published ones by name."""

from convnext.weights.fetch import at_hand, fetch
from convnext.weights.load import Loaded, load_weights
from convnext.weights.published import PUBLISHED, Published
from convnext.weights.resolve import Resolved, resolve

__all__ = ["PUBLISHED", "Loaded", "Published", "Resolved", "at_hand", "fetch", "load_weights", "resolve"]
