"""From a request's body to its pictures: multipart and JSON, read piece by piece, never more than is allowed."""

import asyncio
import base64
import binascii
from collections.abc import AsyncIterator

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from python_multipart.multipart import parse_options_header
from starlette.requests import ClientDisconnect, Request

from convnext.serve.limits import Held, Limits, Refused
from convnext.serve.multipart import Parts
from convnext.serve.uploads import Upload

MULTIPART, JSON = "multipart/form-data", "application/json"
LINGER_SECONDS = 2  # in which a refused body is read on and thrown away
LINGER_BYTES = 64 * 2**20


class JsonImage(BaseModel):
    """A picture within JSON."""

    model_config = ConfigDict(title="Image")

    data: str = Field(description="The content of an image file, in base64.", json_schema_extra={"format": "byte"})
    name: str | None = Field(None, description="What to call it; it comes back as path.")


class JsonBody(BaseModel):
    """Pictures as JSON."""

    model_config = ConfigDict(title="Images")

    images: list[JsonImage] = Field(min_length=1)


class Body:
    """The body of a request."""

    def __init__(self, request: Request, limits: Limits) -> None:
        self.request, self.limits = request, limits
        self.is_complete = False

    async def uploads(self, held: Held) -> list[Upload]:
        """The pictures in it.

        Raises:
            Refused: 400, it is malformed; 408, it takes too long; 413, it is too large; 415, it is of another kind;
                422, it has no pictures or too many; 429, there is no room for it.
        """
        header = self.request.headers.get
        kind, options = parse_options_header(header("content-type"))
        encoding = header("content-encoding", "identity").lower()
        if encoding != "identity":
            raise Refused(415, "an encoded body: send it as it is", {"Accept-Encoding": "identity"})
        try:
            async with asyncio.timeout(self.limits.timeout):
                if kind == MULTIPART.encode():
                    parts = Parts(options.get(b"boundary", b""), held)
                    async for piece in self.pieces(held):
                        parts.write(piece)
                    return parts.uploads()
                if kind == JSON.encode():
                    text = bytearray()
                    async for piece in self.pieces(held):
                        text += piece
                    # In a thread: of many megabytes this takes a while, in which others are answered.
                    uploads = await asyncio.to_thread(json_uploads, bytes(text))
                    for _ in uploads:
                        held.add_file()
                    return uploads
        except TimeoutError:
            raise Refused(408, f"the body took more than {self.limits.timeout:g} s to come") from None
        raise Refused(415, f"the content type is to be {MULTIPART} or {JSON}", {"Accept": f"{MULTIPART}, {JSON}"})

    async def pieces(self, held: Held) -> AsyncIterator[bytes]:
        """Its bytes, counted as they come, however many were announced."""
        announced = self.request.headers.get("content-length", "")
        if announced.isdecimal() and (len(announced) > 18 or int(announced) > self.limits.max_bytes):
            raise held.too_large()
        try:
            async for piece in self.request.stream():
                held.add_bytes(len(piece))
                yield piece
        except ClientDisconnect:
            raise Refused(400, "the connection ended before the body did") from None
        self.is_complete = True

    async def linger(self) -> None:
        """Read on what the client still sends, for a short while, and throw it away.

        A connection that is closed with bytes unread is reset, and with that the answer may be lost on its way.
        """
        if self.is_complete or self.request.headers.get("expect", "").lower() == "100-continue":
            return  # in the latter case the client waits for a word before it sends anything
        count = 0
        try:
            async with asyncio.timeout(LINGER_SECONDS):
                while count < LINGER_BYTES:
                    message = await self.request.receive()
                    count += len(message.get("body", b""))
                    if not message.get("more_body", False):
                        return
        except TimeoutError:
            return


def json_uploads(text: bytes) -> list[Upload]:
    """The pictures in a JSON document.

    Raises:
        Refused: 400, it is no JSON; 422, it is another document, or the data is no base64.
    """
    try:
        images = JsonBody.model_validate_json(text).images
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(str(step) for step in first["loc"]) or "the body"
        status = 400 if first["type"] == "json_invalid" else 422
        raise Refused(status, f"{place}: {first['msg']}"[:200]) from None
    return [Upload(image.name, decoded(number, image.data)) for number, image in enumerate(images)]


def decoded(number: int, data: str) -> bytes:
    """The bytes that base64 stands for."""
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        hint = ": leave out what comes before the comma" if data.startswith("data:") else ""
        raise Refused(422, f"images.{number}.data: no base64{hint}") from None
