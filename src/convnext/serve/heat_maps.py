"""Grad-CAM for pictures that were sent: one batch at a time, beside the predictions and never in their way for long."""

import base64
import io
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from convnext.errors import ConvNeXtError, reason
from convnext.explanation.saliency import grad_cam
from convnext.inference.classifier import Classifier
from convnext.serve.batcher import Batcher, Done
from convnext.serve.prometheus import Metrics
from convnext.serve.uploads import Decoded

AT_A_TIME = 4
SIDE = 64  # of a map as it is sent, at most: it is smooth, and smaller than this in the network


class Maps:
    """Says where a network looked.

    Args:
        classifier: the network itself, in the form that has gradients.
        metrics: of the server.
    """

    def __init__(self, classifier: Classifier, metrics: Metrics) -> None:
        self.classifier, self.metrics = classifier, metrics
        self.unavailable = self.why_not()
        self.batcher = Batcher(self.maps, AT_A_TIME, done=self.count, name="convnext-maps")

    def why_not(self) -> str | None:
        """Why there are no maps of this network; None where there are."""
        size, channels = self.classifier.preprocessing.image_size, self.classifier.preprocessing.channels
        try:
            grad_cam(self.classifier.model, torch.zeros(1, channels, size, size, device=self.classifier.device))
        except (ConvNeXtError, RuntimeError, NotImplementedError) as error:
            return f"no map of this network: {reason(error)}"
        return None

    def maps(self, images: list[Tensor]) -> list[bytes]:
        """Each image's map as a grey PNG."""
        batch = torch.stack([self.classifier.on_device(image) for image in images])
        found = grad_cam(self.classifier.model, batch)
        return [png(one) for one in found.mul(255).round().byte().cpu()]

    def count(self, done: Done) -> None:
        """Time a batch."""
        for _ in range(done.size):
            self.metrics.seconds["map"].observe(done.seconds / done.size)

    def entry(self, decoded: Decoded, content: bytes) -> dict[str, Any]:
        """A map as it is sent: the PNG, and which part of the picture it lies over."""
        box = self.classifier.preprocessing.seen(*decoded.size)
        return {"png": base64.b64encode(content).decode(), "box": box, "size": decoded.size}


def png(values: Tensor) -> bytes:
    """Bytes (H, W) as a small grey PNG."""
    picture = Image.fromarray(values.numpy())
    picture.thumbnail((SIDE, SIDE), Image.Resampling.BOX)
    file = io.BytesIO()
    picture.save(file, "png")
    return file.getvalue()
