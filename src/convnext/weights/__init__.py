"""Weights: read from files without running what is in them, fitted to a network, and published ones by name."""

from convnext.weights.hub import fetch
from convnext.weights.loading import Loaded, load_weights
from convnext.weights.published import PUBLISHED, Published, at_hand

__all__ = ["PUBLISHED", "Loaded", "Published", "at_hand", "fetch", "load_weights"]
