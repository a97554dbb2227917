"""What one request, and all of them together, may ask for; and how what is beyond is refused."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from PIL import Image

from convnext.errors import UsageError

HELD_REQUESTS = 8  # of the largest size: as many bytes of all requests are held at a time
LONGEST_RETRY = 60  # seconds that a client is told to wait at most


@dataclass(frozen=True)
class Limits:
    """The limits of a server.

    Attributes:
        max_batch: images that the network is given at a time, at most.
        max_wait_ms: milliseconds that an image waits for others to form a batch with, at most.
        max_bytes: of a request's body.
        max_pixels: of a picture, width times height; it is refused before it is decoded.
        max_files: of a request.
        queue: images of all requests that are under way, from their arrival to their answer.
        timeout: seconds for a request, from its first byte to its answer.

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
                raise UsageError(f"{option(name)} is {getattr(self, name)}, needs 1 or more")
        if not 0 <= self.max_wait_ms <= 10_000:
            raise UsageError(f"--max-wait-ms is {self.max_wait_ms:g}, needs a number from 0 to 10000")
        if not 0 < self.timeout <= 86_400:
            raise UsageError(f"--timeout is {self.timeout:g}, needs seconds above 0, a day (86400) at most")
        if self.max_files > self.queue:
            raise UsageError(
                f"--max-files is {self.max_files} and --queue {self.queue}: a request of so many files would never be "
                "answered, raise the queue or lower the files"
            )
        if Image.MAX_IMAGE_PIXELS is not None and self.max_pixels > Image.MAX_IMAGE_PIXELS:
            raise UsageError(
                f"--max-pixels is {self.max_pixels}, needs {Image.MAX_IMAGE_PIXELS} or less: beyond, Pillow takes a "
                "picture for an attack"
            )

    @property
    def max_held_bytes(self) -> int:
        """Bytes of all requests that are held at a time."""
        return HELD_REQUESTS * self.max_bytes


def option(name: str) -> str:
    """A field as the command line calls it."""
    return f"--{name.replace('_', '-')}"


class Refused(Exception):  # noqa: N818  # an answer, no fault of the program
    """A request that is answered with a status of 4xx or 5xx.

    Args:
        status: of HTTP.
        reason: in words.
        headers: of the answer, beside those of all answers.
        answers: an entry for each file, where they were looked at.
    """

    def __init__(
        self,
        status: int,
        reason: str,
        headers: Mapping[str, str] | None = None,
        answers: list[dict[str, Any]] | None = None,
    ) -> None:
        super().__init__(reason)
        self.status, self.reason, self.headers, self.answers = status, reason, dict(headers or {}), answers


class Admission:
    """Counts what all requests hold, and refuses more than there is room for. Of one thread, the event loop's.

    Args:
        limits: of the server.
        pace: seconds that the network takes for an image, as far as that is known.
    """

    def __init__(self, limits: Limits, pace: Callable[[], float]) -> None:
        self.limits, self.pace = limits, pace
        self.images = self.bytes = 0

    @contextmanager
    def request(self) -> Iterator["Held"]:
        """A request that is under way.

        Raises:
            Refused: 429, the queue is full.
        """
        held = Held(self)
        try:
            yield held
        finally:
            self.images -= held.images
            self.bytes -= held.bytes

    @property
    def is_full(self) -> bool:
        """Whether there is no room for one more image."""
        return self.images >= self.limits.queue

    def full(self) -> Refused:
        """The refusal for want of room."""
        return Refused(429, f"busy: {self.images} images are under way", self.retry())

    def retry(self) -> dict[str, str]:
        """The header with the seconds after which there should be room."""
        return {"Retry-After": str(min(LONGEST_RETRY, max(1, math.ceil(self.images * self.pace()))))}


class Held:
    """What one request holds; it begins with room for one image."""

    def __init__(self, admission: Admission) -> None:
        self.admission, self.limits = admission, admission.limits
        self.images = self.bytes = 0
        self.reserve()
        self.files = 0

    def reserve(self) -> None:
        """Take room for one image more."""
        if self.admission.is_full:
            raise self.admission.full()
        self.images += 1
        self.admission.images += 1

    def add_file(self) -> None:
        """Count a file.

        Raises:
            Refused: 422, too many of them; 429, there is no room for one more.
        """
        self.files += 1
        if self.files > self.limits.max_files:
            raise Refused(422, f"more than {self.limits.max_files} files: send them in several requests")
        if self.files > self.images:
            self.reserve()

    def add_bytes(self, count: int) -> None:
        """Count bytes of the body.

        Raises:
            Refused: 413, too many of them; 429, all requests together hold too many.
        """
        if self.bytes + count > self.limits.max_bytes:
            raise self.too_large()
        if self.admission.bytes + count > self.limits.max_held_bytes:
            raise self.admission.full()
        self.bytes += count
        self.admission.bytes += count

    def too_large(self) -> Refused:
        """The refusal of a body that is too large."""
        return Refused(
            413, f"more than {self.limits.max_bytes:,} bytes: send fewer files in a request, or smaller ones"
        )
