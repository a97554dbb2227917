"""Images in the body of a request: multipart or JSON, read in memory and within limits."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

from PIL import Image, UnidentifiedImageError
from pydantic import ValidationError
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request
from torch import Tensor

from convnext.data.images import UnreadableImageError, reading, upright
from convnext.data.preprocessing import Preprocessing
from convnext.inference.inputs import pixels, undecoded
from convnext.serve.limits import Limits, RequestError, Reservation
from convnext.serve.schemas import JSON, MULTIPART, JsonBody

# Pillow opens more formats, some of which start other programs and write files (EPS does both).
FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
FILE_LABEL = Path("the image")  # stands for the file in errors: a client's file name is never used as a path
DISCARD_SECONDS = 2  # for reading the rest of a refused body
MAX_DISCARDED_BYTES = 64 * 2**20


class DecodedImage(NamedTuple):
    """An image as the model sees it."""

    image: Tensor  # uint8 (S, S, 3), or (S, S) for grayscale
    size: tuple[int, int]  # width and height of the upright original


@dataclass(frozen=True)
class Upload:
    """An image file of a request: its content, and the ``name`` from the client, which is only echoed."""

    name: str | None
    data: bytes

    def decode(self, preprocessing: Preprocessing, max_pixels: int) -> DecodedImage:
        """Decode the image, unless it has more than ``max_pixels``, and preprocess it.

        Raises:
            RequestError: 415, not an image of a supported format; 422, damaged or too large.
        """
        try:
            with reading(FILE_LABEL):
                image = upright(undecoded(BytesIO(self.data), supported_formats(), max_pixels))
                return DecodedImage(pixels(image, preprocessing), image.size)
        except UnreadableImageError as error:
            is_unknown = isinstance(error.__cause__, UnidentifiedImageError)
            reason = f"{error.reason} ({', '.join(listed_formats())})" if is_unknown else error.reason
            raise RequestError(415 if is_unknown else 422, reason) from error


@cache
def supported_formats() -> tuple[str, ...]:
    """Return the formats that this installation of Pillow reads."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def listed_formats() -> tuple[str, ...]:
    """Return the same for people, without MPO: cameras write it into files that they call JPEG."""
    return tuple(name for name in supported_formats() if name != "MPO")


class RequestBody:
    """The body of a request, counted while it is read."""

    def __init__(self, request: Request, limits: Limits) -> None:
        self.request, self.limits = request, limits
        self.is_complete = False

    async def read_uploads(self, reservation: Reservation) -> list[Upload]:
        """Read the images. Raises RequestError: 400, 408, 413, 415, 422 or 429, as in ``schemas.ERRORS``."""
        header = self.request.headers.get
        kind = header("content-type", "").partition(";")[0].strip().lower()
        if header("content-encoding", "identity").lower() != "identity":
            raise RequestError(415, "compressed bodies are not supported", {"Accept-Encoding": "identity"})
        try:
            async with asyncio.timeout(self.limits.timeout):
                if kind == MULTIPART:
                    return await FormParser(self, reservation).read_uploads()
                if kind == JSON:
                    text = b"".join([chunk async for chunk in self.chunks(reservation)])
                    # In a thread, because parsing many megabytes would delay other requests.
                    uploads = await asyncio.to_thread(parse_json, text)
                    for _ in uploads:
                        reservation.add_image()
                    return uploads
        except TimeoutError:
            raise RequestError(408, f"the body took more than {self.limits.timeout:g} s to arrive") from None
        raise RequestError(415, f"the content type must be {MULTIPART} or {JSON}", {"Accept": f"{MULTIPART}, {JSON}"})

    async def chunks(self, reservation: Reservation) -> AsyncGenerator[bytes, None]:
        """Yield the body in chunks, each counted on arrival: the announced length is not trusted."""
        announced = self.request.headers.get("content-length", "")
        if announced.isdecimal():
            reservation.check_size(int(announced[:18]))
        try:
            async for chunk in self.request.stream():
                reservation.add_bytes(len(chunk))
                yield chunk
        except ClientDisconnect:
            raise RequestError(400, "the connection ended before the body did") from None
        self.is_complete = True

    async def discard(self) -> None:
        """Read the rest of the body for a short time: closing a connection with unread bytes may lose the response."""
        if self.request.headers.get("expect", "").lower() == "100-continue":
            return  # the client sends nothing until it is told to
        count = 0
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DISCARD_SECONDS):
                while count < MAX_DISCARDED_BYTES:
                    message = await self.request.receive()
                    count += len(message.get("body", b""))
                    if not message.get("more_body", False):
                        return


class FormParser(MultiPartParser):
    """Starlette's parser of multipart forms, with its files in memory. A field without a file name is an image too."""

    def __init__(self, body: RequestBody, reservation: Reservation) -> None:
        # Latin-1 keeps the bytes of fields and file names, which may be in any encoding.
        headers = Headers({"content-type": body.request.headers["content-type"] + "; charset=latin-1"})
        unlimited, size = float("inf"), body.limits.max_bytes  # on_part_begin limits the number of files and fields
        chunks = self.check_end(body.chunks(reservation))
        super().__init__(headers, chunks, max_files=unlimited, max_fields=unlimited, max_part_size=size)
        self.spool_max_size = size  # up to which a file stays in memory
        self.reservation, self.is_complete = reservation, False

    async def check_end(self, chunks: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
        """Yield the chunks. Raises RequestError 400 if the closing boundary is missing, which Starlette accepts."""
        async for chunk in chunks:
            yield chunk
        if not self.is_complete:
            raise RequestError(400, "the body is malformed: the closing boundary is missing")

    def on_part_begin(self) -> None:
        """Count an image."""
        self.reservation.add_image()
        super().on_part_begin()

    def on_end(self) -> None:
        """Note that the closing boundary has arrived."""
        self.is_complete = True

    async def read_uploads(self) -> list[Upload]:
        """Read the images. Raises RequestError: 400, malformed; 422, none; and those of the body."""
        try:
            form = await self.parse()
        except MultiPartException as error:
            raise RequestError(400, f"the body is malformed: {error.message[:200]}") from error
        if not form:
            raise RequestError(422, "no files: send one or more")
        uploads = [await to_upload(value) for _, value in form.multi_items()]
        await form.close()
        return uploads


async def to_upload(value: UploadFile | str) -> Upload:
    """Return the image in a form's value."""
    if isinstance(value, str):
        return Upload(None, value.encode("latin-1"))
    return Upload((value.filename or "").encode("latin-1").decode(errors="replace"), await value.read())


def parse_json(text: bytes) -> list[Upload]:
    """Return the images in a JSON document. Raises RequestError: 400, not JSON; 422, not the document needed."""
    try:
        images = JsonBody.model_validate_json(text).images
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(str(step) for step in first["loc"]) or "the body"
        status = 400 if first["type"] == "json_invalid" else 422
        raise RequestError(status, f"{place}: {first['msg']}"[:200]) from None
    return [Upload(image.name, image.data) for image in images]
