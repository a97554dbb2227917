"""From the pictures of a request to its answers: decoded in threads, gathered into batches, answered by the network."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from convnext.acceleration.job import for_serving
from convnext.errors import ConvNeXtError, UsageError
from convnext.inference.classifier import THREADS, Candidate, Classifier, Prediction
from convnext.serve.batcher import Batcher
from convnext.serve.heat_maps import Maps
from convnext.serve.limits import Admission, Limits, Refused
from convnext.serve.prometheus import Metrics
from convnext.serve.uploads import Decoded, Upload

HUNG_UP = 499  # what nginx calls it; nobody sees it but the metrics

Result = TypeVar("Result")


class Wanted(NamedTuple):
    """An image that waits for the network.

    Attributes:
        image: as :class:`Decoded` has it.
        top: classes to name.
    """

    image: Tensor
    top: int


class Answer(NamedTuple):
    """What is said of one picture.

    Attributes:
        entry: as ``convnext predict --json`` has it.
        status: of HTTP, were it the only one.
    """

    entry: dict[str, Any]
    status: int = 200


class Service:
    """A classifier that answers requests side by side; it is ready, and warm, once it is built.

    Args:
        classifier: the trained network.
        limits: of requests.
        top: classes that are named where a request does not say how many.
        say: told in a line what was done to make it fast.

    Raises:
        UsageError: the network has no classes, or top is below 1.
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
        self.name = Path(opened).name if Path(opened).exists() else opened  # where it lies is not told to clients
        self.top = min(top, len(classifier.classes))
        size, channels = classifier.preprocessing.image_size, classifier.preprocessing.channels
        pixels = torch.randint(256, (limits.max_batch, size, size, channels), dtype=torch.uint8)
        examples = [classifier.on_device(one) for one in pixels]
        batch = torch.stack(examples).contiguous(memory_format=torch.channels_last)
        self.network = for_serving(classifier.model, batch, say)
        for count in (1, limits.max_batch):
            classifier.probabilities(self.network, examples[:count], 1)
        self.metrics = Metrics()
        self.admission = Admission(limits, lambda: self.metrics.pace)
        self.pool = ThreadPoolExecutor(THREADS, thread_name_prefix="convnext-decode")
        self.batcher = Batcher(self.candidates, limits.max_batch, limits.max_wait_ms / 1000, self.metrics.batch_done)
        self.maps = Maps(classifier, self.metrics)
        self.metrics.gauge("convnext_under_way_images", "Images under way.", lambda: self.admission.images)
        self.metrics.gauge("convnext_queue_images", "Images that wait for the network.", lambda: len(self.batcher))

    def close(self) -> None:
        """Finish what is under way, and end all threads."""
        self.pool.shutdown(cancel_futures=True)
        self.batcher.close()
        self.maps.batcher.close()

    @property
    def is_alive(self) -> bool:
        """Whether the network's threads run."""
        return self.batcher.thread.is_alive() and self.maps.batcher.thread.is_alive()

    def candidates(self, batch: list[Wanted]) -> list[tuple[Candidate, ...]]:
        """The most probable classes of the images of a batch, as many as each wants."""
        images = [self.classifier.on_device(wanted.image) for wanted in batch]
        found = self.classifier.probabilities(self.network, images, max(wanted.top for wanted in batch))
        return [candidates[: wanted.top] for candidates, wanted in zip(found, batch, strict=True)]

    async def answers(
        self, uploads: list[Upload], top: int, with_map: bool, seconds: float, gone: Awaitable[Any]
    ) -> list[Answer]:
        """An answer for each picture, in their order.

        Args:
            uploads: the pictures.
            top: classes to name for each; all there are, where there are fewer.
            with_map: say where the network looked as well.
            seconds: that there are.
            gone: ends once nobody waits for the answers any more.

        Raises:
            Refused: 503, they were not ready in time; 499, nobody waits any more.
            ConvNeXtError: the network failed.
        """
        one_by_one = [self.answer(upload, min(top, len(self.classifier.classes)), with_map) for upload in uploads]
        working, leaving = asyncio.ensure_future(all_of(one_by_one)), asyncio.ensure_future(gone)
        try:
            await asyncio.wait((working, leaving), timeout=max(0, seconds), return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                return working.result()
            if leaving.done():
                raise Refused(HUNG_UP, "the client has hung up")
            raise Refused(
                503, f"no answer within {self.limits.timeout:g} s: the server is busy", self.admission.retry()
            )
        finally:
            working.cancel()
            leaving.cancel()

    async def answer(self, upload: Upload, top: int, with_map: bool) -> Answer:
        """The answer for one picture."""
        try:
            with self.metrics.timed("decode"):
                decoded = await self.decoded(upload)
        except Refused as refused:
            self.metrics.unreadable.inc()
            prediction = Prediction(upload.name, None, None, error=refused.reason)
            return Answer(prediction.to_dict(), refused.status)
        candidates = await asyncio.wrap_future(self.batcher.submit(Wanted(decoded.image, top)))
        self.metrics.answered.inc()
        entry = Prediction(upload.name, *candidates[0], candidates).to_dict()
        return Answer(entry | await self.map(decoded) if with_map else entry)

    async def map(self, decoded: Decoded) -> dict[str, Any]:
        """Where the network looked in a picture, or why that cannot be said."""
        if self.maps.unavailable is not None:
            return {"map": None, "map_error": self.maps.unavailable}
        try:
            content = await asyncio.wrap_future(self.maps.batcher.submit(decoded.image))
        except ConvNeXtError as error:  # the answer itself stands
            return {"map": None, "map_error": str(error)}
        return {"map": self.maps.entry(decoded, content), "map_error": None}

    async def decoded(self, upload: Upload) -> Decoded:
        """A picture as the network sees it."""
        loop, preprocessing = asyncio.get_running_loop(), self.classifier.preprocessing
        return await loop.run_in_executor(self.pool, upload.decoded, preprocessing, self.limits.max_pixels)


async def all_of(coroutines: Sequence[Coroutine[Any, Any, Result]]) -> list[Result]:
    """What all give, in their order; where one fails, or this is cancelled, all are cancelled."""
    if len(coroutines) == 1:
        return [await coroutines[0]]
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
