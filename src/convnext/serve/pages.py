"""The web page and the API's documentation: files in memory, none of which loads anything from another host."""

import base64
import hashlib
import html
import re
from importlib import resources
from pathlib import Path
from typing import NamedTuple

from fastapi.openapi.docs import get_swagger_ui_html

FOLDER = Path(__file__).parent / "assets"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}  # of every response, unless it sets its own


class Asset(NamedTuple):
    """A file of the page."""

    content: bytes
    media_type: str
    policy: str = POLICY


ASSETS = {
    path: Asset((FOLDER / name).read_bytes(), media_type)
    for path, name, media_type in (
        ("/", "page.html", "text/html"),
        ("/page.css", "page.css", "text/css"),
        ("/page.js", "page.js", "text/javascript"),
        ("/icon.svg", "icon.svg", "image/svg+xml"),
    )
}


def swagger_ui(title: str) -> dict[str, Asset]:
    """Return FastAPI's documentation page and its files, by path.

    The files come from fastapi-offline, a package of the extra ``serve``; without it there is no such page.
    """
    try:
        folder = resources.files("fastapi_offline") / "static"
    except ModuleNotFoundError:
        return {}
    page = get_swagger_ui_html(
        openapi_url="openapi.json",  # relative, as a proxy may add a prefix
        title=html.escape(title),
        swagger_js_url="swagger-ui-bundle.js",
        swagger_css_url="swagger-ui.css",
        swagger_favicon_url="icon.svg",
        swagger_ui_parameters={"validatorUrl": None},
    )
    scripts = re.findall(rb"<script>(.*?)</script>", bytes(page.body), re.DOTALL)
    hashes = [f"'sha256-{base64.b64encode(hashlib.sha256(script).digest()).decode()}'" for script in scripts]
    policy = POLICY.replace("script-src 'self'", " ".join(["script-src 'self'", *hashes]))
    return {
        "/docs": Asset(bytes(page.body), "text/html", policy),
        "/swagger-ui-bundle.js": Asset((folder / "swagger-ui-bundle.js").read_bytes(), "text/javascript"),
        "/swagger-ui.css": Asset((folder / "swagger-ui.css").read_bytes(), "text/css"),
    }
