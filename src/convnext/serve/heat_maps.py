"""Grad-CAM heat maps of uploaded images, in a thread beside the predictions."""

import base64
import io
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from convnext.errors import ConvNeXtError, reason
from convnext.explanation.saliency import grad_cam
from convnext.inference.classifier import Classifier
from convnext.serve.batcher import Batcher, BatchReport
from convnext.serve.prometheus import Metrics
from convnext.serve.uploads import DecodedImage

MAX_BATCH = 4
MAX_SIDE = 64  # of a heat map's PNG: it is smooth, and smaller than this inside the model


class HeatMaps:
    """Heat maps of one model, in its unaccelerated form, which has gradients."""

    def __init__(self, classifier: Classifier, metrics: Metrics) -> None:
        self.classifier, self.metrics = classifier, metrics
        self.unavailable = self.find_obstacle()
        self.batcher = Batcher(self.render, MAX_BATCH, report=self.count)

    def find_obstacle(self) -> str | None:
        """Return why this model has no heat maps; None if it has."""
        size, channels = self.classifier.preprocessing.image_size, self.classifier.preprocessing.channels
        try:
            grad_cam(self.classifier.model, torch.zeros(1, channels, size, size, device=self.classifier.device))
        except (ConvNeXtError, RuntimeError, NotImplementedError) as error:
            return f"no map of this network: {reason(error)}"
        return None

    def render(self, images: list[Tensor]) -> list[bytes]:
        """Return each image's heat map as a grayscale PNG."""
        batch = torch.stack([self.classifier.on_device(image) for image in images])
        return [to_png(one) for one in grad_cam(self.classifier.model, batch).mul(255).round().byte().cpu()]

    def count(self, batch: BatchReport) -> None:
        """Record the time of a batch."""
        for _ in range(batch.size):
            self.metrics.seconds["map"].observe(batch.seconds / batch.size)

    def entry(self, decoded: DecodedImage, png: bytes) -> dict[str, Any]:
        """Return a heat map for the response: the PNG, and the region of the image that it covers."""
        box = self.classifier.preprocessing.seen(*decoded.size)
        return {"png": base64.b64encode(png).decode(), "box": box, "size": decoded.size}


def to_png(values: Tensor) -> bytes:
    """Return uint8 values (H, W) as a small grayscale PNG."""
    image = Image.fromarray(values.numpy())
    image.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.BOX)
    file = io.BytesIO()
    image.save(file, "png")
    return file.getvalue()
