"""Small servers: a network that sees colours, answered in this process or on a socket."""

import asyncio
import base64
import io
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
import torch
import uvicorn
from PIL import Image
from torch import nn

from convnext import Classifier
from convnext.data.preprocessing import Preprocessing
from convnext.serve.app import create_app
from convnext.serve.limits import Limits
from convnext.serve.server import bind, make_server
from convnext.serve.service import Service

COLOURS = {"red": "#ff0000", "green": "#00ff00", "blue": "#0000ff"}
MakeService = Callable[..., Service]
MakeServer = Callable[..., int]
RUNNING: dict[int, uvicorn.Server] = {}  # by port


class Colours(nn.Module):
    """As logits, the means of the three channels."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean((2, 3))


class Gated(Colours):
    """Colours, seen only while the gate is open; ``entered`` once someone stands before it."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.entered = threading.Event(), threading.Event()
        self.gate.set()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if not self.gate.is_set():
            self.entered.set()
            self.gate.wait(20)
        return super().forward(images)


class Looking(Gated):
    """Colours, by a convolution, so that it can be said where they are."""

    def __init__(self) -> None:
        super().__init__()
        convolution = nn.Conv2d(3, 3, 1, bias=False)
        nn.init.dirac_(convolution.weight)
        self.stages = nn.Sequential(convolution)

    def forward(self, images: Any) -> Any:
        return super().forward(self.stages(images))


def classifier(model: nn.Module | None = None) -> Classifier:
    """A network that sees colours."""
    preprocessing = Preprocessing(8, 1.0, mean=(0,) * 3, std=(0.1,) * 3)
    return Classifier(model or Colours(), tuple(COLOURS), preprocessing, "colours", "cpu")


def picture(colour: str = "red", size: tuple[int, int] = (20, 10), kind: str = "png", **options: Any) -> bytes:
    """The content of an image file."""
    file = io.BytesIO()
    Image.new("RGB", size, COLOURS[colour]).save(file, kind, **options)
    return file.getvalue()


def as_json(*pictures: bytes, **more: Any) -> dict[str, Any]:
    """A JSON body."""
    return {"images": [{"data": base64.b64encode(data).decode()} | more for data in pictures]}


class Client:
    """Asks a service in this process."""

    def __init__(self, service: Service) -> None:
        self.service, self.app = service, create_app(service)

    def session(self) -> httpx.AsyncClient:
        """For requests side by side."""
        return httpx.AsyncClient(transport=httpx.ASGITransport(self.app), base_url="http://server", timeout=None)

    def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        """One request."""

        async def ask() -> httpx.Response:
            async with self.session() as session:
                return await session.request(method, path, **options)

        return asyncio.run(ask())

    def get(self, path: str, **options: Any) -> httpx.Response:
        return self.request("GET", path, **options)

    def wait_for(self, figure: str) -> None:
        """Until the metrics have a line."""
        deadline = time.monotonic() + 10
        while f"\n{figure}\n" not in self.get("/metrics").text:
            assert time.monotonic() < deadline, f"{figure} did not come"

    async def run_asgi(
        self, headers: dict[str, str], body: list[bytes], until: Callable[[], bool] = lambda: True
    ) -> tuple[list[Any], int]:
        """Send a request to /predict and disconnect after its body; the messages sent, and how many were received."""
        sent, received, pieces = list[Any](), 0, [{"type": "http.request", "body": piece} for piece in body]

        async def receive() -> Any:
            nonlocal received
            received += 1
            if pieces:
                return pieces.pop()
            while not until():
                await asyncio.sleep(0.005)
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)

        raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        scope = {"type": "http", "method": "POST", "path": "/predict", "query_string": b"", "headers": raw}
        await self.app(scope, receive, send)
        return sent, received

    def assert_nothing_is_held(self) -> None:
        """No request is in progress any more."""
        assert self.service.admission.images == self.service.admission.bytes == 0

    def send(self, *files: bytes, path: str = "/predict", names: list[str | None] | None = None) -> httpx.Response:
        """Files, by multipart."""
        named = zip(names or [f"{number}.png" for number in range(len(files))], files, strict=True)
        return self.request("POST", path, files=[("files", (name, data)) for name, data in named])


@pytest.fixture
def make_service() -> Iterator[MakeService]:
    """Build services; they are closed in the end."""
    services: list[Service] = []

    def make(model: nn.Module | None = None, top: int = 5, **limits: Any) -> Service:
        services.append(Service(classifier(model), Limits(**limits), top))
        return services[-1]

    yield make
    for service in services:
        service.close()


@pytest.fixture
def client(make_service: MakeService) -> Client:
    """A client of a service with the limits as they come."""
    return Client(make_service())


@pytest.fixture
def make_server_on_a_port(make_service: MakeService) -> Iterator[MakeServer]:
    """Serve on sockets, in threads; gives the port."""
    running: list[tuple[Any, threading.Thread, Any]] = []

    def make(model: nn.Module | None = None, service: Service | None = None, **limits: Any) -> int:
        bound = bind("127.0.0.1", 0)
        server = make_server(service or make_service(model, **limits))
        bound.listen()
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
        thread.start()
        running.append((server, thread, bound))
        RUNNING[bound.getsockname()[1]] = server
        return bound.getsockname()[1]

    yield make
    for server, thread, bound in running:
        server.should_exit = True
        thread.join(20)
        bound.close()
        assert not thread.is_alive()
