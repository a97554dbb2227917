"""The page for people, and the one that describes the API: files that need nothing from elsewhere."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jinja2

FOLDER = Path(__file__).parent / "assets"
ASSETS = {
    path: ((FOLDER / name).read_bytes(), kind)
    for path, name, kind in (
        ("/", "page.html", "text/html"),
        ("/page.css", "page.css", "text/css"),
        ("/page.js", "page.js", "text/javascript"),
        ("/icon.svg", "icon.svg", "image/svg+xml"),
        ("/docs.css", "docs.css", "text/css"),
    )
}


class Property(NamedTuple):
    """A line of a table: what a value is called, what it may be, what it means."""

    name: str
    kind: str
    text: str


def documentation(document: dict[str, Any]) -> str:
    """An OpenAPI document as a page."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    template = environment.from_string((FOLDER / "docs.html.jinja").read_text(encoding="utf-8"))
    operations = [
        (method.upper(), path, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    schemas = document["components"]["schemas"]
    return template.render(
        info=document["info"],
        operations=operations,
        schemas={name: list(properties(schema)) for name, schema in sorted(schemas.items())},
        kind_of=kind_of,
    )


def properties(schema: dict[str, Any]) -> Iterator[Property]:
    """The properties of a schema, line by line."""
    required = schema.get("required", ())
    for name, value in schema.get("properties", {}).items():
        optional = "" if name in required else ", optional"
        yield Property(name, kind_of(value) + optional, value.get("description", ""))


def kind_of(schema: dict[str, Any]) -> str:
    """What a value may be, in words."""
    if "$ref" in schema:
        return schema["$ref"].rpartition("/")[2]
    if "anyOf" in schema:
        return " or ".join(kind_of(one) for one in schema["anyOf"])
    if schema.get("type") == "array":
        return f"list of {kind_of(schema['items'])}"
    if schema.get("type") == "object":
        return "object"
    return schema.get("format") or schema.get("type", "anything")
