"""Documents of the API: what requests and responses hold, for validation and for OpenAPI."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from convnext.serve.limits import Limits

MULTIPART, JSON = "multipart/form-data", "application/json"


class JsonImage(BaseModel):
    """An image in a JSON body."""

    model_config = ConfigDict(val_json_bytes="base64")

    data: bytes = Field(description="Content of an image file, in base64.", json_schema_extra={"format": "byte"})
    name: str | None = Field(None, description="Returned as path.")


class JsonBody(BaseModel):
    """A JSON body."""

    images: list[JsonImage] = Field(min_length=1)


class Class(BaseModel):
    """A class and its probability."""

    label: str
    probability: float = Field(ge=0, le=1)


class Map(BaseModel):
    """Grad-CAM heat map of the most probable class."""

    png: str = Field(description="A small grayscale PNG in base64, to be stretched over the box.")
    box: list[float] = Field(
        min_length=4,
        max_length=4,
        description="Region that the model sees: left, top, right, bottom in pixels. It exceeds the image where "
        "preprocessing pads.",
    )
    size: list[int] = Field(min_length=2, max_length=2, description="Width and height of the upright image.")


class Answer(BaseModel):
    """Prediction for one image, as in convnext predict --json."""

    path: str | None = Field(description="File name from the request; null where there was none.")
    label: str | None = Field(description="Most probable class; null if the image could not be read.")
    probability: float | None = Field(ge=0, le=1, description="Of that class.")
    top: list[Class] = Field(description="Most probable classes, in descending order.")
    error: str | None = Field(description="Why the image could not be read; null if it was.")
    map: Map | None = Field(None, description="With map=true; null if there is none.")
    map_error: str | None = Field(None, description="With map=true: why there is no heat map; null if there is one.")


class Error(BaseModel):
    """Why a request failed."""

    error: str
    answers: list[Answer] | None = Field(None, description="One entry per file, where the files were read.")


class State(BaseModel):
    """State of the server."""

    status: str


class Model(BaseModel):
    """Model and limits of the server."""

    name: str
    classes: list[str]
    image_size: int = Field(description="Side of the model's input in pixels.")
    top: int = Field(description="Default number of classes in a response.")
    maps: bool = Field(description="True if the model has heat maps.")
    formats: list[str] = Field(description="Supported image formats.")
    limits: dict[str, float] = Field(description="As on the command line.")


ERRORS = {
    400: "The body is malformed or incomplete.",
    408: "The body took too long to arrive.",
    413: "The body has too many bytes.",
    415: "The content type, the encoding or every file is unsupported.",
    422: "A parameter is out of range, there are no files or too many, or none could be read.",
    429: "The queue is full: retry after the seconds in Retry-After.",
    500: "The model failed.",
    503: "The request timed out: retry after the seconds in Retry-After.",
}


def error_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the OpenAPI documents of a route's errors."""
    return {status: {"model": Error, "description": ERRORS[status]} for status in statuses}


def request_body(limits: Limits) -> dict[str, Any]:
    """Return the OpenAPI document of the body of ``/predict``."""
    size: dict[str, Any] = {"type": "array", "minItems": 1, "maxItems": limits.max_files}
    description = "Image files; any field name will do, and several files may have the same."
    files = size | {"items": {"type": "string", "format": "binary"}, "description": description}
    images = size | {"items": JsonImage.model_json_schema()}
    form, document = (
        {"type": "object", "properties": {name: value}, "required": [name]}
        for name, value in (("files", files), ("images", images))
    )
    return {"required": True, "content": {MULTIPART: {"schema": form}, JSON: {"schema": document}}}
