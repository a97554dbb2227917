"""The ASGI application: the routes of the API, and how errors become responses."""

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
from convnext.serve.limits import RequestError
from convnext.serve.pages import ASSETS, HEADERS, Asset, swagger_ui
from convnext.serve.prometheus import CONTENT_TYPE, Metrics
from convnext.serve.service import ImageResult, Service
from convnext.serve.uploads import RequestBody

DESCRIPTION = "Classifies images. Nothing that a client sends is kept or written to a disk."

log = logging.getLogger("convnext.serve")


def create_app(service: Service) -> FastAPI:
    """Return the application around a service; the caller closes the service."""
    title = f"convnext: {service.name}"
    app = FastAPI(title=title, version=__version__, description=DESCRIPTION, docs_url=None, redoc_url=None)
    app.add_middleware(ResponseMiddleware, metrics=service.metrics)
    add_predict(app, service)
    add_status(app, service)
    for path, asset in (ASSETS | swagger_ui(title)).items():
        add_asset(app, path, asset)
    add_error_handlers(app)
    return app


def add_predict(app: FastAPI, service: Service) -> None:
    """Add ``POST /predict``."""
    limits, metrics = service.limits, service.metrics

    @app.post(
        "/predict",
        summary="Classify images",
        description="Returns a list with one entry per file, in their order. The status is 200 if at least one file "
        "could be read; the others have their error.",
        response_model=list[schemas.Answer],
        responses=schemas.error_responses(400, 408, 413, 415, 422, 429, 500, 503),
        openapi_extra={"requestBody": schemas.request_body(limits)},
    )
    async def predict(
        request: Request,
        top: Annotated[
            int, Query(ge=1, description="Number of classes per image; all of them if there are fewer.")
        ] = service.top,
        with_map: Annotated[
            bool, Query(alias="map", description="Add a heat map of where the model looked (Grad-CAM).")
        ] = False,
    ) -> Response:
        end = asyncio.get_running_loop().time() + limits.timeout
        body = RequestBody(request, limits)
        try:
            with metrics.timed("request"), service.admission.reserve() as reservation:
                with metrics.timed("receive"):
                    uploads = await body.read_uploads(reservation)
                seconds = end - asyncio.get_running_loop().time()
                results = await service.predict(uploads, top, with_map, seconds, wait_for_disconnect(request))
        except RequestError as error:
            if not body.is_complete:
                await body.discard()
                error.headers = {**(error.headers or {}), "Connection": "close"}
            raise
        return results_response(results)


def results_response(results: list[ImageResult]) -> Response:
    """Return the response to a request whose files were read, or could all not be read."""
    entries = [result.entry for result in results]
    statuses = {result.status for result in results}
    if 200 in statuses:
        return json_response(entries)
    reason = f"none of the {len(entries)} files could be read"
    if len(entries) == 1:
        name, error = entries[0]["path"], entries[0]["error"]
        reason = error if name is None else f"{name}: {error}"
    raise RequestError(statuses.pop() if len(statuses) == 1 else 422, reason, answers=entries)


async def wait_for_disconnect(request: Request) -> None:
    """Return once the client has disconnected. To be called after its body has been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def add_status(app: FastAPI, service: Service) -> None:
    """Add ``/model``, ``/healthz``, ``/readyz`` and ``/metrics``."""
    full: dict[int | str, dict[str, Any]] = {503: {"model": schemas.Error, "description": "There is none."}}
    text: dict[int | str, dict[str, Any]] = {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}}

    @app.get("/model", summary="Model and limits of the server", response_model=schemas.Model)
    async def model() -> Response:
        return json_response(service.describe())

    @app.get("/healthz", summary="Is the server alive?", response_model=schemas.State)
    async def healthz() -> Response:
        return json_response({"status": "ok"})

    @app.get("/readyz", summary="Is there room for images?", response_model=schemas.State, responses=full)
    async def readyz() -> Response:
        if service.admission.is_full:
            raise RequestError(503, "no room for more images at the moment")
        return json_response({"status": "ready"})

    @app.get("/metrics", summary="Metrics for Prometheus", response_class=Response, responses=text)
    async def metrics() -> Response:
        return Response(service.metrics.text(), headers={"Content-Type": CONTENT_TYPE})


def add_asset(app: FastAPI, path: str, asset: Asset) -> None:
    """Add a file of the page."""
    headers = {"Cache-Control": "no-cache", "Content-Security-Policy": asset.policy}

    @app.api_route(path, methods=["GET", "HEAD"], include_in_schema=False)
    async def respond() -> Response:
        return Response(asset.content, headers=headers, media_type=asset.media_type)


def add_error_handlers(app: FastAPI) -> None:
    """Respond to every error with ``{"error": reason}``."""

    @app.exception_handler(HTTPException)
    async def request_error(_: Request, error: HTTPException) -> Response:
        answers = getattr(error, "answers", None)
        content = {"error": error.detail} if answers is None else {"error": error.detail, "answers": answers}
        return json_response(content, error.status_code, error.headers)

    @app.exception_handler(ConvNeXtError)
    async def model_error(_: Request, error: ConvNeXtError) -> Response:
        log.error("%s", error)
        return json_response({"error": str(error)}, 500)

    @app.exception_handler(RequestValidationError)
    async def parameter_error(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        return json_response({"error": f"{'.'.join(map(str, first['loc']))}: {first['msg']}"}, 422)


def json_response(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Return a JSON document as a response."""
    return Response(json.dumps(content, allow_nan=False), status, headers, "application/json")


class ResponseMiddleware:
    """Counts responses, adds the headers that all have, and responds to unexpected errors."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Respond to a request."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        is_started = False

        async def send_with_headers(message: Message) -> None:
            nonlocal is_started
            if message["type"] == "http.response.start":
                is_started = True
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
                path = getattr(scope.get("route"), "path", "other")
                self.metrics.requests.labels(path, message["status"]).inc()
            await send(message)

        try:
            return await self.app(scope, receive, send_with_headers)
        except asyncio.CancelledError:  # the server was told a second time to stop
            failure = json_response({"error": "the server is stopping"}, 503)
        except Exception:
            log.exception("a request failed")
            failure = json_response({"error": "the server failed"}, 500)
        if not is_started:
            await failure(scope, receive, send_with_headers)
        return None
