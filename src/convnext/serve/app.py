"""The application: paths, and how everything that comes in is answered."""

import asyncio
import json
import logging
from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import FastAPI, Query
from fastapi.exceptions import RequestValidationError
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from convnext.environment import __version__
from convnext.errors import ConvNeXtError
from convnext.serve import schemas
from convnext.serve.bodies import Body
from convnext.serve.limits import Refused
from convnext.serve.page import ASSETS, documentation
from convnext.serve.prometheus import CONTENT_TYPE, Metrics
from convnext.serve.service import Service
from convnext.serve.uploads import shown_formats

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
DESCRIPTION = "Says what pictures show. Nothing that comes in is kept or written to a disk."

log = logging.getLogger("convnext.serve")


def create_app(service: Service) -> FastAPI:
    """The application around a service; who built the service closes it."""
    limits, metrics = service.limits, service.metrics
    app = FastAPI(
        title=f"convnext: {service.name}",
        version=__version__,
        description=DESCRIPTION,
        docs_url=None,  # which loads its scripts from elsewhere
        redoc_url=None,
    )
    app.add_middleware(Envelope, metrics=metrics)

    @app.post(
        "/predict",
        summary="Say what pictures show",
        description="The answer is a list with an entry for each file, in their order. It is 200 where at least one "
        "could be read; the others have their error.",
        response_model=list[schemas.Answer],
        responses=schemas.responses(400, 408, 413, 415, 422, 429, 500, 503),
        openapi_extra={"requestBody": schemas.request_body(limits)},
    )
    async def predict(
        request: Request,
        top: Annotated[
            int, Query(ge=1, description="Classes to name for each picture; all, where there are fewer.")
        ] = service.top,
        with_map: Annotated[
            bool, Query(alias="map", description="Say where in the picture the network looked as well (Grad-CAM).")
        ] = False,
    ) -> Response:
        end = asyncio.get_running_loop().time() + limits.timeout
        body = Body(request, limits)
        try:
            with metrics.timed("request"), service.admission.request() as held:
                with metrics.timed("receive"):
                    uploads = await body.uploads(held)
                left = end - asyncio.get_running_loop().time()
                answers = await service.answers(uploads, top, with_map, left, is_gone(request))
        except Refused as refused:
            if not body.is_complete:
                await body.linger()
                refused.headers["Connection"] = "close"
            raise
        entries = [answer.entry for answer in answers]
        if any(answer.status == 200 for answer in answers):
            return json_response(entries)
        (status,) = statuses if len(statuses := {answer.status for answer in answers}) == 1 else (422,)
        reason = f"none of the {len(entries)} files could be read"
        if len(entries) == 1:
            name, error = entries[0]["path"], entries[0]["error"]
            reason = error if name is None else f"{name}: {error}"
        raise Refused(status, reason, answers=entries)

    @app.get("/model", summary="What is served, and within which limits", response_model=schemas.Model)
    async def model() -> Response:
        return json_response(
            {
                "name": service.name,
                "classes": service.classifier.classes,
                "image_size": service.classifier.preprocessing.image_size,
                "top": service.top,
                "maps": service.maps.unavailable is None,
                "formats": shown_formats(),
                "limits": vars(limits),
            }
        )

    unwell = {503: {"model": schemas.Error, "description": "It does not."}}

    @app.get("/healthz", summary="Whether the server works", response_model=schemas.State, responses=unwell)  # pyright: ignore
    async def healthz() -> Response:
        if not service.is_alive:
            raise Refused(503, "the network's thread has ended: start the server anew")
        return json_response({"status": "ok"})

    @app.get("/readyz", summary="Whether it has room for pictures", response_model=schemas.State, responses=unwell)  # pyright: ignore
    async def readyz() -> Response:
        if not service.is_alive or service.admission.is_full:
            raise Refused(503, "no room for more pictures at the moment")
        return json_response({"status": "ready"})

    figures = {200: {"content": {"text/plain": {"schema": {"type": "string"}}}, "description": "The figures."}}

    @app.get("/metrics", summary="Figures for Prometheus", response_class=Response, responses=figures)  # pyright: ignore
    async def show_metrics() -> Response:
        return Response(metrics.text(), headers={"Content-Type": CONTENT_TYPE})

    def add_asset(path: str, content: bytes, kind: str) -> None:
        @app.api_route(path, methods=["GET", "HEAD"], include_in_schema=False)
        async def asset() -> Response:
            return Response(content, media_type=kind, headers={"Cache-Control": "no-cache"})

    for path, (content, kind) in ASSETS.items():
        add_asset(path, content, kind)

    built = app.openapi

    def openapi() -> dict[str, Any]:
        document = built()
        document["components"]["schemas"].update(schemas.body_schemas(limits))
        return document

    app.openapi = openapi
    add_asset("/docs", documentation(openapi()).encode(), "text/html")

    @app.exception_handler(Refused)
    async def refused(_: Request, error: Refused) -> Response:
        content = (
            {"error": error.reason} if error.answers is None else {"error": error.reason, "answers": error.answers}
        )
        return json_response(content, error.status, error.headers)

    @app.exception_handler(ConvNeXtError)
    async def failed(_: Request, error: ConvNeXtError) -> Response:
        log.error("%s", error)
        return json_response({"error": str(error)}, 500)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        return json_response({"error": f"{'.'.join(map(str, first['loc']))}: {first['msg']}"}, 422)

    @app.exception_handler(HTTPException)
    async def unknown(_: Request, error: HTTPException) -> Response:
        return json_response({"error": str(error.detail).lower()}, error.status_code, error.headers)

    return app


async def is_gone(request: Request) -> None:
    """Ends once the client has hung up. To be waited for when the body has come."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def json_response(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A document as an answer."""
    return Response(json.dumps(content, allow_nan=False), status, headers, "application/json")


class Envelope:
    """Around every answer: it is counted, gets the headers that all have, and stands for what went wrong unforeseen."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        started = False

        async def send_wrapped(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                headers = MutableHeaders(scope=message)
                headers.update(HEADERS)
                headers.setdefault("Cache-Control", "no-store")
                route = scope.get("route")
                path = getattr(route, "path", "other")
                self.metrics.requests.labels(path, message["status"]).inc()
            await send(message)

        try:
            await self.app(scope, receive, send_wrapped)
        except asyncio.CancelledError:  # the server was told a second time to stop
            if not started:
                await json_response({"error": "the server stops"}, 503)(scope, receive, send_wrapped)
        except Exception:
            log.exception("a request failed")
            if not started:
                await json_response({"error": "the server failed"}, 500)(scope, receive, send_wrapped)
        return None
