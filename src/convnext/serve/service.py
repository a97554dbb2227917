"""Predictions for the images of a request: decoded in threads, gathered into batches, classified by the model."""

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from convnext.acceleration.accelerate import accelerate_job
from convnext.errors import ConvNeXtError, UsageError
from convnext.inference.classifier import THREADS, Candidate, Classifier, Prediction
from convnext.serve.batcher import Batcher
from convnext.serve.heat_maps import HeatMaps
from convnext.serve.limits import Admission, Limits, RequestError
from convnext.serve.prometheus import Metrics
from convnext.serve.uploads import DecodedImage, Upload, listed_formats

MANY_IMAGES = 1_000_000  # so many are served that any faster variant pays ...
MAX_ACCELERATION_SECONDS = 10.0  # ... but not those that are compiled, for one batch size
CLIENT_CLOSED_REQUEST = 499  # nginx's status; only the metrics see it


class QueuedImage(NamedTuple):
    """An image that waits for the model, as in :class:`DecodedImage`, and the number of classes to return for it."""

    image: Tensor
    top: int


class ImageResult(NamedTuple):
    """The result for one image."""

    entry: dict[str, Any]  # as in convnext predict --json
    status: int = 200  # HTTP status if it were the only image


class Service:
    """A classifier that serves concurrent requests; warmed up when it is built.

    Args:
        classifier: with a trained model.
        limits: of requests.
        top: default number of classes in a response.
        say: prints a line about what was accelerated.

    Raises:
        UsageError: the model has no classes, or top is below 1.
        RunError: its outputs are not finite, or a batch does not fit into memory.
    """

    def __init__(
        self, classifier: Classifier, limits: Limits, top: int = 5, say: Callable[[str], None] = lambda _: None
    ) -> None:
        classifier.check_classes()
        if top < 1:
            raise UsageError(f"--top is {top}, needs 1 or more")
        self.classifier, self.limits = classifier, limits
        opened = classifier.name or type(classifier.model).__name__
        self.name = Path(opened).name if Path(opened).exists() else opened  # clients do not see the folder
        self.top = min(top, len(classifier.classes))
        size, channels = classifier.preprocessing.image_size, classifier.preprocessing.channels
        pixels = torch.randint(256, (limits.max_batch, size, size, channels), dtype=torch.uint8)
        examples = [classifier.on_device(one) for one in pixels]
        shape = limits.max_batch, channels, size, size
        seconds = MAX_ACCELERATION_SECONDS
        self.network = accelerate_job(classifier.model, shape, classifier.device, MANY_IMAGES, say, seconds)
        for count in (1, limits.max_batch):
            classifier.probabilities(self.network, examples[:count], 1)
        self.metrics = Metrics()
        self.admission = Admission(limits, lambda: self.metrics.seconds_per_image)
        self.pool = ThreadPoolExecutor(THREADS, thread_name_prefix="convnext-decode")
        self.batcher = Batcher(self.classify, limits.max_batch, limits.max_wait_ms / 1000, self.metrics.count)
        self.maps = HeatMaps(classifier, self.metrics)
        self.metrics.gauge("convnext_under_way_images", "Images in progress.", lambda: self.admission.images)
        self.metrics.gauge("convnext_queue_images", "Images that wait for the model.", lambda: len(self.batcher))

    def close(self) -> None:
        """End all threads."""
        for pool in (self.pool, self.batcher.pool, self.maps.batcher.pool):
            pool.shutdown(cancel_futures=True)

    def describe(self) -> dict[str, Any]:
        """Return the document of ``/model``."""
        return {
            "name": self.name,
            "classes": self.classifier.classes,
            "image_size": self.classifier.preprocessing.image_size,
            "top": self.top,
            "maps": self.maps.unavailable is None,
            "formats": listed_formats(),
            "limits": vars(self.limits),
        }

    def classify(self, batch: list[QueuedImage]) -> list[tuple[Candidate, ...]]:
        """Return the most probable classes of each image of a batch."""
        images = [self.classifier.on_device(queued.image) for queued in batch]
        found = self.classifier.probabilities(self.network, images, max(queued.top for queued in batch))
        return [candidates[: queued.top] for candidates, queued in zip(found, batch, strict=True)]

    async def predict(
        self, uploads: list[Upload], top: int, with_map: bool, seconds: float, disconnected: Awaitable[Any]
    ) -> list[ImageResult]:
        """Return the result of each image, in their order.

        Raises:
            RequestError: 503, ``seconds`` are over; 499, ``disconnected`` completed.
            ConvNeXtError: the model failed.
        """
        top = min(top, len(self.classifier.classes))
        work = asyncio.gather(*(self.predict_one(upload, top, with_map) for upload in uploads))
        leaving = asyncio.ensure_future(disconnected)
        try:
            await asyncio.wait((work, leaving), timeout=max(0, seconds), return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                return work.result()
            if leaving.done():
                raise RequestError(CLIENT_CLOSED_REQUEST, "the client has disconnected")
            raise RequestError(
                503, f"no response within {self.limits.timeout:g} s: the server is busy", self.admission.retry_header()
            )
        finally:
            work.cancel()
            leaving.cancel()

    async def predict_one(self, upload: Upload, top: int, with_map: bool) -> ImageResult:
        """Return the result of one image."""
        loop, preprocessing = asyncio.get_running_loop(), self.classifier.preprocessing
        try:
            with self.metrics.timed("decode"):
                decoded = await loop.run_in_executor(self.pool, upload.decode, preprocessing, self.limits.max_pixels)
        except RequestError as error:
            self.metrics.unreadable.inc()
            return ImageResult(Prediction(upload.name, None, None, error=error.detail).to_dict(), error.status_code)
        candidates = await self.batcher.submit(QueuedImage(decoded.image, top))
        self.metrics.answered.inc()
        entry = Prediction(upload.name, *candidates[0], candidates).to_dict()
        return ImageResult(entry | await self.map_entry(decoded) if with_map else entry)

    async def map_entry(self, decoded: DecodedImage) -> dict[str, Any]:
        """Return an image's heat map, or why there is none."""
        if self.maps.unavailable is not None:
            return {"map": None, "map_error": self.maps.unavailable}
        try:
            png = await self.maps.batcher.submit(decoded.image)
        except ConvNeXtError as error:  # the prediction remains
            return {"map": None, "map_error": str(error)}
        return {"map": self.maps.entry(decoded, png), "map_error": None}
