"""Images with labels: where they come from (sources), how they are varied (transforms), and in batches."""

from convnext.data.images import FileImages, ImageData, MemoryImages
from convnext.data.sources import load_data

__all__ = ["FileImages", "ImageData", "MemoryImages", "load_data"]
