"""Limits of one request and of all requests together, and the error of a request beyond them."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from PIL import Image
from starlette.exceptions import HTTPException

from convnext.errors import UsageError

MAX_HELD_REQUESTS = 8  # of the largest size: the bytes that all requests together may hold
MAX_RETRY_SECONDS = 60


@dataclass(frozen=True)
class Limits:
    """Limits of a server.

    Attributes:
        max_batch: images per batch.
        max_wait_ms: milliseconds that an image waits for others to form a batch.
        max_bytes: bytes of a request's body.
        max_pixels: width times height of an image; a larger one is refused before it is decoded.
        max_files: files per request.
        queue: images of all requests between arrival and response.
        timeout: seconds per request, from its head to its response.

    Raises:
        UsageError: a value is out of range; the message names the option.
    """

    max_batch: int = 16
    max_wait_ms: float = 2
    max_bytes: int = 32 * 2**20
    max_pixels: int = 64_000_000
    max_files: int = 32
    queue: int = 128
    timeout: float = 30

    def __post_init__(self) -> None:
        for name in ("max_batch", "max_bytes", "max_pixels", "max_files", "queue"):
            if getattr(self, name) < 1:
                raise UsageError(f"--{name.replace('_', '-')} is {getattr(self, name)}, needs 1 or more")
        if not 0 <= self.max_wait_ms <= 10_000:
            raise UsageError(f"--max-wait-ms is {self.max_wait_ms:g}, needs a number from 0 to 10000")
        if not 0 < self.timeout <= 86_400:
            raise UsageError(f"--timeout is {self.timeout:g}, needs seconds above 0, a day (86400) at most")
        if self.max_files > self.queue:
            raise UsageError(
                f"--max-files is {self.max_files} and --queue {self.queue}: a request with so many files would never "
                "be admitted; raise --queue or lower --max-files"
            )
        if Image.MAX_IMAGE_PIXELS is not None and self.max_pixels > Image.MAX_IMAGE_PIXELS:
            raise UsageError(
                f"--max-pixels is {self.max_pixels}, needs {Image.MAX_IMAGE_PIXELS} or less: Pillow refuses larger "
                "images as decompression bombs"
            )


class RequestError(HTTPException):
    """A request that gets a response of status 4xx or 5xx; ``answers`` has an entry per file if the files were read."""

    def __init__(
        self, status: int, reason: str, headers: dict[str, str] | None = None, answers: list[Any] | None = None
    ) -> None:
        super().__init__(status, reason, headers)
        self.answers = answers


class Admission:
    """Count of the images and bytes that all requests hold; for the event loop's thread only."""

    def __init__(self, limits: Limits, seconds_per_image: Callable[[], float]) -> None:
        self.limits, self.seconds_per_image = limits, seconds_per_image  # of the model, as currently estimated
        self.images = self.bytes = 0

    @property
    def is_full(self) -> bool:
        """True if there is no room for another image."""
        return self.images >= self.limits.queue

    @contextmanager
    def reserve(self) -> Iterator["Reservation"]:
        """Admit a request, and release what it holds at the end. Raises RequestError 429 if the queue is full."""
        if self.is_full:
            raise self.busy_error()
        reservation = Reservation(self)
        try:
            yield reservation
        finally:
            self.images -= reservation.images
            self.bytes -= reservation.bytes

    def busy_error(self) -> RequestError:
        """Return the error of a request that is not admitted."""
        return RequestError(429, f"busy: {self.images} images are in progress", self.retry_header())

    def retry_header(self) -> dict[str, str]:
        """Return the header with the seconds after which there should be room."""
        seconds = math.ceil(self.images * self.seconds_per_image())
        return {"Retry-After": str(min(MAX_RETRY_SECONDS, max(1, seconds)))}


class Reservation:
    """Images and bytes that one request holds."""

    def __init__(self, admission: Admission) -> None:
        self.admission, self.limits = admission, admission.limits
        self.images = self.bytes = 0

    def add_image(self) -> None:
        """Hold another image. Raises RequestError: 422, too many in the request; 429, the queue is full."""
        if self.images == self.limits.max_files:
            raise RequestError(422, f"more than {self.limits.max_files} files: send them in several requests")
        if self.admission.is_full:
            raise self.admission.busy_error()
        self.images += 1
        self.admission.images += 1

    def add_bytes(self, count: int) -> None:
        """Hold more bytes. Raises RequestError: 413, too many in the request; 429, too many in all requests."""
        self.check_size(self.bytes + count)
        if self.admission.bytes + count > MAX_HELD_REQUESTS * self.limits.max_bytes:
            raise self.admission.busy_error()
        self.bytes += count
        self.admission.bytes += count

    def check_size(self, count: int) -> None:
        """Raise RequestError 413 if a body of this size is too large."""
        if count > self.limits.max_bytes:
            reason = f"more than {self.limits.max_bytes:,} bytes: send fewer files in a request, or smaller ones"
            raise RequestError(413, reason)
