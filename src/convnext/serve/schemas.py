"""What the API answers with, for its OpenAPI document."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from convnext.serve.bodies import JSON, MULTIPART, JsonBody
from convnext.serve.limits import Limits

REFERENCE = "#/components/schemas/{model}"


class Class(BaseModel):
    """A class that a picture may be of."""

    label: str
    probability: float = Field(ge=0, le=1)


class Map(BaseModel):
    """Where the network looked: Grad-CAM of the most probable class."""

    png: str = Field(description="A small grey PNG in base64, to be stretched over the box.")
    box: list[float] = Field(
        min_length=4,
        max_length=4,
        description="The part of the picture that the network sees: left, top, right, bottom in pixels. It reaches "
        "beyond the picture where that is put into a frame.",
    )
    size: list[int] = Field(min_length=2, max_length=2, description="Width and height of the upright picture.")


class Answer(BaseModel):
    """What is said of one picture, as by convnext predict --json."""

    path: str | None = Field(description="The file name as it was given; null where there was none.")
    label: str | None = Field(description="The most probable class; null where the picture could not be read.")
    probability: float | None = Field(ge=0, le=1, description="Of that class.")
    top: list[Class] = Field(description="The most probable classes, the first first.")
    error: str | None = Field(description="Why the picture could not be read; null where it was.")
    map: Map | None = Field(None, description="With map=true; null where there is none.")
    map_error: str | None = Field(None, description="With map=true: why there is no map; null where there is.")


class Error(BaseModel):
    """Why a request was not answered."""

    error: str
    answers: list[Answer] | None = Field(None, description="Where files were looked at: an entry for each, with why.")


class State(BaseModel):
    """How the server is."""

    status: str


class Model(BaseModel):
    """What is served, and within which limits."""

    model_config = ConfigDict(title="Model")

    name: str
    classes: list[str]
    image_size: int = Field(description="Pixels a side of what the network sees.")
    top: int = Field(description="Classes that are named where a request does not say how many.")
    maps: bool = Field(description="Whether there are maps of this network.")
    formats: list[str] = Field(description="Kinds of image files that are taken.")
    limits: dict[str, float] = Field(description="As on the command line.")


ERRORS = {
    400: "The body is malformed, or ended too early.",
    408: "The body took too long to come.",
    413: "The body has too many bytes.",
    415: "The body, its encoding or every file in it is of a kind that is not taken.",
    422: "A parameter is out of range, there are no files or too many, or none could be read.",
    429: "The queue is full: try again after the seconds that Retry-After names.",
    500: "The network failed.",
    503: "No answer in time: try again after the seconds that Retry-After names.",
}


def responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Of a path, the answers with an error."""
    return {status: {"model": Error, "description": ERRORS[status]} for status in statuses}


def request_body(limits: Limits) -> dict[str, Any]:
    """The bodies that /predict takes."""
    files = {
        "type": "array",
        "items": {"type": "string", "format": "binary"},
        "minItems": 1,
        "maxItems": limits.max_files,
        "description": "Image files; the field may have any name, and several parts the same.",
    }
    form = {"type": "object", "properties": {"files": files}, "required": ["files"]}
    return {
        "required": True,
        "content": {
            MULTIPART: {"schema": form},
            JSON: {"schema": {"$ref": REFERENCE.format(model="JsonBody")}},
        },
    }


def body_schemas(limits: Limits) -> dict[str, Any]:
    """The schemas that :func:`request_body` refers to, by name."""
    schema = JsonBody.model_json_schema(ref_template=REFERENCE)
    schema["properties"]["images"]["maxItems"] = limits.max_files
    return schema.pop("$defs") | {"JsonBody": schema}
