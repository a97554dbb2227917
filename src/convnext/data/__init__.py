"""Labelled images: where they come from (sources), how they are augmented, and in batches."""

from convnext.data.images import DatasetImages, FileImages, ImageData, Images, MemoryImages
from convnext.data.sources import load_data

__all__ = ["DatasetImages", "FileImages", "ImageData", "Images", "MemoryImages", "load_data"]
