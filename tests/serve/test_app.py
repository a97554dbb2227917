"""The API in this process: every response, and every limit."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from convnext.data.preprocessing import Preprocessing
from convnext.errors import RunError, UsageError
from convnext.serve import app as app_module
from convnext.serve.limits import Limits
from convnext.serve.service import Service
from tests.serve.conftest import COLOURS, Client, Colours, Gated, MakeService, as_json, classifier, picture

FORM = {"content-type": "multipart/form-data; boundary=b"}
JSON = {"content-type": "application/json"}


def test_files_are_classified_as_by_predict(client: Client, tmp_path: Path) -> None:
    files = [picture("red"), picture("blue", (31, 77), "jpeg"), picture("green", kind="webp")]
    for number, data in enumerate(files):
        (tmp_path / str(number)).write_bytes(data)
    expected = client.service.classifier.predict([tmp_path / str(number) for number in range(3)], top=2)
    response = client.send(*files, path="/predict?top=2", names=["a b.png", "b.jpg", "c.webp"])
    assert (response.status_code, response.headers["content-type"]) == (200, "application/json")
    entries = response.json()
    assert [entry["path"] for entry in entries] == ["a b.png", "b.jpg", "c.webp"]
    for entry, prediction in zip(entries, expected, strict=True):
        wanted = prediction.to_dict() | {"path": entry["path"]}
        assert entry | {"top": None, "probability": None} == wanted | {"top": None, "probability": None}
        assert [one["probability"] for one in entry["top"]] == pytest.approx([p for _, p in prediction.top], abs=1e-6)
    entries = client.request("POST", "/predict", json=as_json(*files, name="x")).json()
    assert [(entry["path"], entry["label"]) for entry in entries] == [("x", "red"), ("x", "blue"), ("x", "green")]
    (entry,) = client.request("POST", "/predict", json=as_json(files[0])).json()
    assert entry["path"] is None
    part = b"--b\r\nContent-Disposition: form-data; name=f\r\n\r\n"  # a field without a file name
    field = client.request("POST", "/predict", headers=FORM, content=part + files[1] + b"\r\n--b--\r\n")
    assert [(entry["path"], entry["label"]) for entry in field.json()] == [(None, "blue")]
    (entry,) = client.send(files[0], names=["d\u00e9j\u00e0 vu \u732b.png"]).json()
    assert entry["path"] == "d\u00e9j\u00e0 vu \u732b.png"


def test_top(make_service: MakeService) -> None:
    client = Client(make_service(top=2))
    for query, count in (("", 2), ("?top=1", 1), ("?top=999999999999", 3)):
        assert len(client.send(picture(), path=f"/predict{query}").json()[0]["top"]) == count
    for value in ("0", "-1", "x", ""):
        response = client.send(picture(), path=f"/predict?top={value}")
        assert response.status_code == 422
        assert response.json()["error"].startswith("query.top: ")


def test_concurrent_requests_get_their_own_predictions(make_service: MakeService) -> None:
    client, names = Client(make_service(max_batch=8)), [*COLOURS] * 20

    async def ask_all() -> list[Any]:
        async with client.session() as session:
            asked = [
                session.post(f"/predict?top={1 + number % 3}", files={"f": (str(number), picture(name))})
                for number, name in enumerate(names)
            ]
            return [response.json()[0] for response in await asyncio.gather(*asked)]

    entries = asyncio.run(ask_all())
    assert [entry["path"] for entry in entries] == [str(number) for number in range(60)]
    assert [entry["label"] for entry in entries] == names
    assert [len(entry["top"]) for entry in entries] == [1 + number % 3 for number in range(60)]
    client.assert_nothing_is_held()


TRUNCATED = picture(size=(300, 300), kind="jpeg")[:-100]
BAD = {
    "not an image": (b"not a picture", 415, "JPEG, "),
    "empty": (b"", 415, "JPEG"),
    "truncated": (TRUNCATED, 422, "truncated"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n", 415, "JPEG"),
    "too narrow": (picture(size=(1, 30_000)), 422, "narrow"),
    "many pixels": (picture(size=(400, 300)), 422, "400 x 300"),
}


def test_bad_images_are_refused(make_service: MakeService) -> None:
    service = make_service(max_pixels=100_000)
    service.classifier.preprocessing = Preprocessing(256, 1.0, mean=(0,) * 3, std=(0.1,) * 3)
    client = Client(service)
    for name, (data, status, reason) in BAD.items():
        response = client.send(data, names=["bad.png"])
        assert response.status_code == status, name
        assert response.json()["error"].startswith("bad.png: ")
        (entry,) = response.json()["answers"]
        assert (entry["path"], entry["label"], entry["top"]) == ("bad.png", None, [])
        assert reason in entry["error"]
    response = client.send(picture("red"), b"no picture", picture("blue"))
    assert response.status_code == 200
    assert [(entry["label"], bool(entry["error"])) for entry in response.json()] == [
        ("red", False),
        (None, True),
        ("blue", False),
    ]
    response = client.send(b"no picture", TRUNCATED)
    assert (response.status_code, len(response.json()["answers"])) == (422, 2)
    assert client.send(b"no", b"neither").status_code == 415


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp", "gif", "bmp", "tiff", "avif"])
def test_pixels_are_counted_before_they_are_decoded(
    kind: str, make_service: MakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, client = picture(size=(11, 10), kind=kind), Client(make_service(max_pixels=100))
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda _: pytest.fail("decoded"))
    response = client.send(data)
    assert (response.status_code, "11 x 10" in response.json()["error"]) == (422, True)


MALFORMED: dict[str, tuple[dict[str, str], bytes, int]] = {
    "no type": ({}, b"x", 415),
    "another type": ({"content-type": "image/png"}, picture(), 415),
    "gzip": (JSON | {"content-encoding": "gzip"}, b"x", 415),
    "no boundary": ({"content-type": "multipart/form-data"}, b"x", 400),
    "long boundary": ({"content-type": "multipart/form-data; boundary=" + "b" * 300}, b"x", 400),
    "no parts": (FORM, b"--b--\r\n", 422),
    "no multipart": (FORM, b"hello", 400),
    "no name": (FORM, b"--b\r\nContent-Disposition: x\r\n\r\nab", 400),
    "cut off": (FORM, b'--b\r\nContent-Disposition: form-data; name="x"; filename="y"\r\n\r\nab', 400),
    "no body": (FORM, b"", 400),
    "no json": (JSON, b"{", 400),
    "no utf-8": (JSON, b'{"images": "\xff"}', 400),
    "deep json": (JSON, b"[" * 100_000, 400),
    "another document": (JSON, b"[]", 422),
    "no images": (JSON, b'{"images": []}', 422),
    "a number": ({"content-type": "application/json; charset=utf-8"}, b'{"images": [{"data": 1}]}', 422),
    "no base64": (JSON, b'{"images": [{"data": "?"}]}', 422),
    "an address": (JSON, b'{"images": [{"data": "data:image/png;base64,AA=="}]}', 422),
}


def test_malformed_bodies_are_refused(client: Client) -> None:
    for name, (headers, body, status) in MALFORMED.items():
        response = client.request("POST", "/predict", headers=headers, content=body)
        assert (response.status_code, set(response.json())) == (status, {"error"}), name
    client.assert_nothing_is_held()


async def endless(taken: list[int]) -> AsyncIterator[bytes]:
    """A body that does not end, for as much as 200 MB."""
    yield b"--b\r\nContent-Disposition: form-data; name=f\r\n\r\n"
    while len(taken) < 40_000:
        taken.append(1)
        yield b"0" * 5000


def test_too_many_bytes(make_service: MakeService) -> None:
    client = Client(make_service(max_bytes=2000))
    assert client.send(picture()).status_code == 200
    response = client.send(picture() + b"0" * 2000)
    assert (response.status_code, response.headers["connection"]) == (413, "close")
    for announced in ({}, {"content-length": "100"}):  # bytes count as they arrive, whatever was announced
        taken = list[int]()
        assert client.request("POST", "/predict", headers=FORM | announced, content=endless(taken)).status_code == 413
        assert len(taken) < 20_000  # it is read for a while, and discarded
    client.assert_nothing_is_held()


def test_an_announced_body_that_is_too_large_is_not_read(client: Client) -> None:
    headers = JSON | {"content-length": "9" * 30, "expect": "100-continue"}
    sent, received = asyncio.run(client.run_asgi(headers, []))
    assert (sent[0]["status"], received) == (413, 0)


def test_too_many_files(make_service: MakeService) -> None:
    client = Client(make_service(max_files=2))
    assert client.send(picture(), picture()).status_code == 200
    for response in (client.send(*[picture()] * 3), client.request("POST", "/predict", json=as_json(*[picture()] * 3))):
        assert (response.status_code, "2 files" in response.json()["error"]) == (422, True)
    client.assert_nothing_is_held()


def test_a_full_queue(make_service: MakeService) -> None:
    model = Gated()
    client = Client(make_service(model, queue=3, max_files=3, max_batch=1))

    async def ask() -> tuple[list[httpx.Response], list[httpx.Response]]:
        async with client.session() as session:
            model.gate.clear()
            asked = [asyncio.ensure_future(session.post("/predict", files={"f": picture()})) for _ in range(2)]
            while client.service.admission.images < 2 or not model.entered.is_set():
                await asyncio.sleep(0.01)
            refused = [await session.post("/predict", files=[("f", ("x", picture()))] * 2)]
            asked.append(asyncio.ensure_future(session.post("/predict", files={"f": picture()})))
            while client.service.admission.images < 3:
                await asyncio.sleep(0.01)
            refused += [await session.post("/predict", files={"f": picture()}), await session.get("/readyz")]
            model.gate.set()
            return refused, list(await asyncio.gather(*asked))

    refused, responses = asyncio.run(ask())
    assert [response.status_code for response in refused] == [429, 429, 503]
    assert int(refused[1].headers["retry-after"]) >= 1
    assert [response.status_code for response in responses] == [200] * 3
    assert client.get("/readyz").status_code == 200
    client.assert_nothing_is_held()


def test_all_requests_together_hold_limited_bytes(make_service: MakeService) -> None:
    model = Gated()
    client = Client(make_service(model, max_bytes=1000, max_batch=1))
    body = picture() + b"0" * 500

    async def ask() -> list[int]:
        async with client.session() as session:
            model.gate.clear()
            asked = [asyncio.ensure_future(session.post("/predict", files={"f": body})) for _ in range(20)]
            await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
            assert client.service.admission.bytes <= 8000
            model.gate.set()
            return [response.status_code for response in await asyncio.gather(*asked)]

    statuses = asyncio.run(ask())
    assert set(statuses) == {200, 429}
    assert statuses.count(200) >= 8


def test_a_response_that_takes_too_long(make_service: MakeService) -> None:
    """It is refused in time, and its images do not take the model's time any more."""
    model = Gated()
    client = Client(make_service(model, timeout=0.3, max_batch=1))
    model.gate.clear()
    response = client.send(picture(), picture(), picture())
    assert (response.status_code, "0.3 s" in response.json()["error"]) == (503, True)
    assert int(response.headers["retry-after"]) >= 1
    model.gate.set()
    assert client.send(picture("blue")).json()[0]["label"] == "blue"
    client.wait_for("convnext_batch_images_count 2.0")  # the one in progress, and the last


def test_a_body_that_takes_too_long(make_service: MakeService) -> None:
    async def body() -> AsyncIterator[bytes]:
        yield b"--b\r\n"
        await asyncio.sleep(5)

    response = Client(make_service(timeout=0.2)).request("POST", "/predict", headers=FORM, content=body())
    assert (response.status_code, response.headers["connection"]) == (408, "close")
    assert "0.2 s" in response.json()["error"]


def test_nothing_is_computed_for_a_client_that_disconnects(make_service: MakeService) -> None:
    model = Gated()
    service = make_service(model, max_batch=1)
    client = Client(service)
    request = httpx.Request("POST", "http://server/predict", files={"f": picture()})

    async def ask() -> list[Any]:
        async with client.session() as session:
            model.gate.clear()
            first = asyncio.ensure_future(session.post("/predict", files={"f": picture()}))
            while not model.entered.is_set():
                await asyncio.sleep(0.005)
            sent, _ = await client.run_asgi(
                dict(request.headers), [request.read()], until=lambda: len(service.batcher) > 0
            )
            model.gate.set()
            assert (await first).status_code == 200
            return sent

    assert asyncio.run(ask())[0]["status"] == 499
    assert client.send(picture("blue")).json()[0]["label"] == "blue"
    client.wait_for("convnext_batch_images_count 2.0")
    client.assert_nothing_is_held()


class Broken(Colours):
    """Colours, but NaN where there is blue."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.where(images[:, 2].amax((1, 2))[:, None] > 9.9, float("nan"), super().forward(images))


def test_a_failing_model_spoils_no_other_request(make_service: MakeService, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "randint", lambda _, *size, **options: torch.zeros(*size, **options))  # the warm-up
    client = Client(make_service(Broken()))

    async def ask() -> list[httpx.Response]:
        async with client.session() as session:
            asked = [session.post("/predict", files={"f": picture(name)}) for name in ("red", "blue", "green") * 4]
            return list(await asyncio.gather(*asked))

    responses = asyncio.run(ask())
    assert [response.status_code for response in responses] == [200, 500, 200] * 4
    assert "colours" in responses[1].json()["error"]


def test_an_unexpected_error_shows_no_traceback(
    client: Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(app_module.RequestBody, "read_uploads", None)
    response = client.send(picture())
    assert (response.status_code, response.json()) == (500, {"error": "the server failed"})
    assert "TypeError" in caplog.text
    client.assert_nothing_is_held()


def test_models_that_cannot_be_served(monkeypatch: pytest.MonkeyPatch) -> None:
    without_classes = classifier()
    without_classes.classes = ()
    with pytest.raises(UsageError, match="no classifier"):
        Service(without_classes, Limits())
    with pytest.raises(UsageError, match="--top is 0"):
        Service(classifier(), Limits(), top=0)
    monkeypatch.setattr(Colours, "forward", lambda _, images: images.mean((2, 3)) * float("nan"))
    with pytest.raises(RunError, match="finite"):
        Service(classifier(), Limits())


def test_headers_unknown_paths_and_methods(client: Client) -> None:
    for response in (client.send(picture()), client.get("/"), client.get("/nothing")):
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["referrer-policy"] == "no-referrer"
        assert "script-src 'self';" in response.headers["content-security-policy"]
        assert "access-control-allow-origin" not in response.headers
    assert client.send(picture()).headers["cache-control"] == "no-store"
    preflight = {"origin": "https://example.com", "access-control-request-method": "POST"}
    assert client.request("OPTIONS", "/predict", headers=preflight).status_code == 405
    for path in ("/nothing", "/page.html", "/assets/page.html", "/../pyproject.toml", "/%2e%2e/etc/passwd"):
        response = client.get(path)
        assert (response.status_code, set(response.json())) == (404, {"error"}), path
    response = client.get("/predict")
    assert (response.status_code, set(response.json()), response.headers["allow"]) == (405, {"error"}, "POST")


def test_status_and_metrics(client: Client) -> None:
    document = client.get("/model").json()
    assert (document["name"], document["classes"], document["image_size"]) == ("colours", [*COLOURS], 8)
    assert document["limits"] == json.loads(json.dumps(vars(Limits())))
    assert client.get("/healthz").json() == {"status": "ok"}
    client.send(picture())
    client.send(picture(), b"no picture", picture())
    client.get("/somewhere/else")
    client.wait_for("convnext_batch_images_sum 3.0")
    text = client.get("/metrics").text
    for line in (
        'convnext_requests_total{path="/predict",status="200"} 2.0',
        'convnext_requests_total{path="other",status="404"} 1.0',
        'convnext_images_total{outcome="answered"} 3.0',
        'convnext_images_total{outcome="unreadable"} 1.0',
        'convnext_seconds_count{part="decode"} 4.0',
        'convnext_seconds_count{part="request"} 2.0',
        "convnext_under_way_images 0.0",
    ):
        assert line in text
