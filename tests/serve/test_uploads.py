"""Whatever a client sends: no response of 500, no file opened or written, and memory that does not grow."""

import asyncio
import contextlib
import itertools
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from convnext.serve.limits import Limits
from convnext.serve.service import Service
from tests.serve.conftest import COLOURS, Client, Looking, MakeServer, MakeService, as_json, classifier, picture

KINDS = ("png", "jpeg", "webp", "gif", "bmp", "tiff", "avif")
FILES = [picture(colour, kind=kind) for colour in COLOURS for kind in KINDS]
EVENTS = ("open", "os.open", "os.mkdir", "os.system", "subprocess.Popen", "tempfile.mkstemp")


class Watch:
    """Records what this process opens and starts, while it is active."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, Any]] | None = None
        sys.addaudithook(self.look)  # which cannot be removed

    def look(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.seen is not None and event in EVENTS:
            self.seen.append((event, arguments))

    @contextlib.contextmanager
    def active(self) -> Iterator[list[tuple[str, Any]]]:
        self.seen = seen = []
        try:
            yield seen
        finally:
            self.seen = None


WATCH = Watch()


@pytest.fixture(scope="module")
def shared() -> Iterator[Client]:
    """One client for many examples."""
    service = Service(classifier(Looking()), Limits(max_bytes=100_000, max_files=4))
    yield Client(service)
    service.close()


@st.composite
def damaged(draw: st.DrawFn, sound: bytes, count: int, length: int) -> bytes:
    """Bytes with some of them changed, removed or inserted."""
    data = bytearray(sound)
    for _ in range(draw(st.integers(0, count))):
        begin = draw(st.integers(0, len(data)))
        data[begin : begin + draw(st.integers(0, length))] = draw(st.binary(max_size=length))
    return bytes(data)


@settings(max_examples=100, deadline=None)
@given(
    files=st.lists(st.sampled_from(FILES).flatmap(lambda data: damaged(data, 4, 8)), min_size=1, max_size=5),
    with_map=st.booleans(),
)
def test_damaged_images(files: list[bytes], with_map: bool, shared: Client) -> None:
    response = shared.send(*files, path=f"/predict?map={str(with_map).lower()}")
    assert response.status_code in (200, 415, 422)
    if response.status_code == 200:
        for entry in response.json():
            assert (entry["error"] is None) == (len(entry["top"]) == 3)
            assert ("map" in entry) == (with_map and entry["error"] is None)
    else:
        assert response.json()["error"]
    shared.assert_nothing_is_held()


BODY = httpx.Request("POST", "http://x", files=[("f", ("a.png", FILES[0])), ("f", ("b.jpg", FILES[1]))])
SEEDS = [
    (BODY.headers["content-type"], BODY.read()),
    ("application/json", httpx.Request("POST", "http://x", json=as_json(FILES[0], name="x")).read()),
]
PRINTABLE = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=60)


@st.composite
def bodies(draw: st.DrawFn) -> tuple[str, bytes]:
    """A content type and a body, sound or damaged."""
    kind, sound = draw(st.sampled_from(SEEDS))
    body = draw(damaged(draw(st.just(sound) | st.binary(max_size=300)), 3, 40))
    return draw(st.just(kind) | PRINTABLE), body


@settings(max_examples=100, deadline=None)
@given(sent=bodies(), query=st.sampled_from(["", "?top=2", "?map=1", "?top=%00", "?map=maybe", "?top=1&top=x"]))
def test_damaged_bodies(sent: tuple[str, bytes], query: str, shared: Client) -> None:
    kind, body = sent
    response = shared.request("POST", f"/predict{query}", headers={"content-type": kind}, content=body)
    assert response.status_code in (200, 400, 413, 415, 422)
    assert response.status_code == 200 or response.json()["error"]
    shared.assert_nothing_is_held()


NAMES = ["/etc/passwd", "../../secret", "C:\\windows\\system.ini", "a\0b", "|id", "file:///etc/passwd", "%2e%2e/x", ""]


def test_no_file_is_opened_and_no_program_started(tmp_path: Path) -> None:
    """By large images, damaged ones, and names that are paths."""
    large = picture(size=(1500, 1200), kind="bmp")  # 5 MB: Starlette's default is to spool 1 MB
    service = Service(classifier(Looking()), Limits())
    client = Client(service)
    client.send(*FILES[: len(KINDS)], path="/predict?map=true")  # imports on first use
    (tmp_path / "secret.png").write_bytes(picture())
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"

    async def ask() -> list[httpx.Response]:
        responses = []
        async with client.session() as session:
            for name in [*NAMES, str(tmp_path / "secret.png")]:
                for data in (large, FILES[0], b"no picture", postscript, picture(size=(64, 64), kind="jpeg")[:-9]):
                    responses.append(await session.post("/predict?map=true", files={"f": (name, data)}))
                responses.append(await session.post("/predict", json=as_json(large, FILES[0], name=name)))
                path = httpx.URL("http://x/" + name.replace("\0", "")).path.lstrip("/")
                responses.append(await session.get(f"/{path}"))
        return responses

    with WATCH.active() as opened:
        responses = asyncio.run(ask())
    service.close()
    assert {response.status_code for response in responses} <= {200, 404, 415, 422}
    assert sum(response.status_code == 200 for response in responses) >= 3 * len(NAMES)
    assert [entry for entry in opened if not str(entry[1][0]).startswith(("/proc/", "/sys/"))] == []
    with WATCH.active() as opened, tempfile.SpooledTemporaryFile(max_size=10) as spooled:
        spooled.write(bytes(20))
    assert opened  # the watch sees what it is to see


@pytest.mark.slow
def test_schemathesis_finds_nothing(make_server_on_a_port: MakeServer, tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{make_server_on_a_port(Looking())}/openapi.json"
    arguments = ["run", url, "--checks", "all", "--max-examples", "60", "--seed", "1", "--no-color"]
    root = str(Path(__file__).parents[2])
    hooks = {
        "SCHEMATHESIS_HOOKS": "tests.serve.schemathesis_hooks",
        "PYTHONPATH": os.pathsep.join([root, *sys.path]),
    }
    done = subprocess.run(
        [sys.executable, "-m", "schemathesis.cli", *arguments],
        env=os.environ | hooks,
        cwd=tmp_path,  # it writes there
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert "Tested: 5" in done.stdout


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_memory_does_not_grow(make_service: MakeService) -> None:
    """Over thousands of requests, good and bad, some of which are cancelled."""
    client = Client(make_service(Looking(), timeout=5))
    large, chance = picture(size=(900, 700), kind="jpeg"), random.Random(0)
    sent = itertools.count()

    async def ask(count: int) -> None:
        async with client.session() as session:

            async def one() -> None:
                while next(sent) < count:
                    data = chance.choice([large, FILES[0], FILES[2], large[:-500], b"no picture", bytes(200_000)])
                    path = chance.choice(["/predict", "/predict?map=true", "/predict?top=1"])
                    request = session.post(path, files={"f": ("x", data)})
                    if chance.random() < 0.05:
                        with contextlib.suppress(TimeoutError):
                            await asyncio.wait_for(request, 0.001)
                    else:
                        assert (await request).status_code in (200, 415, 422)

            await asyncio.gather(*(one() for _ in range(16)))

    asyncio.run(ask(800))
    before = resident()
    asyncio.run(ask(3000))
    assert resident() - before < 15
    client.assert_nothing_is_held()


def resident() -> float:
    """Megabytes of memory of this process."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024
