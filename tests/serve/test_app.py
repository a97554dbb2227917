"""The API in this process: every answer that it gives, and every limit."""

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from convnext.data.preprocessing import Preprocessing
from convnext.errors import RunError, UsageError
from convnext.serve import app as app_module
from convnext.serve.limits import Limits
from convnext.serve.service import QueuedImage, Service
from tests.serve.conftest import COLOURS, Client, Colours, Gated, MakeService, as_json, classifier, picture


def test_files_are_answered_as_predict_does_it(client: Client, tmp_path: Path) -> None:
    files = [picture("red"), picture("blue", (31, 77), "jpeg"), picture("green", kind="webp")]
    for number, data in enumerate(files):
        (tmp_path / str(number)).write_bytes(data)
    expected = client.service.classifier.predict([tmp_path / str(number) for number in range(3)], top=2)
    answer = client.send(*files, path="/predict?top=2", names=["a b.png", "b.jpg", "c.webp"])
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    entries = answer.json()
    assert [entry["path"] for entry in entries] == ["a b.png", "b.jpg", "c.webp"]
    assert [entry["label"] for entry in entries] == ["red", "blue", "green"]
    for entry, prediction in zip(entries, expected, strict=True):
        wanted = prediction.to_dict() | {"path": entry["path"]}
        assert entry | {"top": None, "probability": None} == wanted | {"top": None, "probability": None}
        assert [one["probability"] for one in entry["top"]] == pytest.approx([p for _, p in prediction.top], abs=1e-6)


def test_json_is_answered_alike(client: Client) -> None:
    answer = client.request("POST", "/predict", json=as_json(picture("green"), picture("blue"), name="x"))
    assert answer.status_code == 200
    assert [(entry["path"], entry["label"]) for entry in answer.json()] == [("x", "green"), ("x", "blue")]
    (entry,) = client.request("POST", "/predict", json=as_json(picture("green"))).json()
    assert entry["path"] is None


def test_as_many_classes_as_are_wanted(make_service: MakeService) -> None:
    client = Client(make_service(top=2))
    assert [len(client.send(picture(), path=path).json()[0]["top"]) for path in ("/predict", "/predict?top=1")] == [
        2,
        1,
    ]
    assert len(client.send(picture(), path="/predict?top=999999999999").json()[0]["top"]) == 3


def test_requests_side_by_side_get_their_own_answers(make_service: MakeService) -> None:
    model = Gated()
    client, names = Client(make_service(model, max_batch=8)), [*COLOURS] * 20

    async def ask_all() -> list[Any]:
        async with client.session() as session:
            asked = [
                session.post(f"/predict?top={1 + number % 3}", files={"f": (str(number), picture(name))})
                for number, name in enumerate(names)
            ]
            return [answer.json()[0] for answer in await asyncio.gather(*asked)]

    entries = asyncio.run(ask_all())
    assert [entry["path"] for entry in entries] == [str(number) for number in range(60)]
    assert [entry["label"] for entry in entries] == names
    assert [len(entry["top"]) for entry in entries] == [1 + number % 3 for number in range(60)]
    assert client.service.admission.images == client.service.admission.bytes == 0


BAD = {
    "no picture": (b"not a picture", 415, "no image of a kind that can be read (JPEG, "),
    "nothing": (b"", 415, "no image of a kind"),
    "truncated": (picture(size=(300, 300), kind="jpeg")[:-100], 422, "truncated"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n", 415, "no image"),
    "too narrow": (picture(size=(1, 30_000)), 422, "too long and narrow"),
    "many pixels": (picture(size=(400, 300)), 422, "400 x 300 are 120,000 pixels, no more than 100,000 are taken"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_picture_is_refused_with_why(name: str, make_service: MakeService) -> None:
    data, status, reason = BAD[name]
    service = make_service(max_pixels=100_000)
    service.classifier.preprocessing = Preprocessing(256, 1.0, mean=(0,) * 3, std=(0.1,) * 3)
    answer = Client(service).send(data, names=["bad.png"])
    assert answer.status_code == status
    assert answer.json()["error"].startswith("bad.png: ")
    assert reason in answer.json()["error"]
    (entry,) = answer.json()["answers"]
    assert (entry["path"], entry["label"], entry["top"]) == ("bad.png", None, [])
    assert reason in entry["error"]


def test_one_bad_picture_among_good_ones(client: Client) -> None:
    answer = client.send(picture("red"), b"no picture", picture("blue"))
    assert answer.status_code == 200
    assert [entry["label"] for entry in answer.json()] == ["red", None, "blue"]
    assert "no image of a kind" in answer.json()[1]["error"]


def test_several_bad_pictures(client: Client) -> None:
    damaged = picture(size=(300, 300), kind="jpeg")[:-100]
    answer = client.send(b"no picture", damaged)
    assert (answer.status_code, answer.json()["error"]) == (422, "none of the 2 files could be read")
    assert len(answer.json()["answers"]) == 2
    assert client.send(b"no", b"neither").status_code == 415


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp", "gif", "bmp", "tiff", "avif"])
def test_pixels_are_counted_before_they_are_decoded(
    kind: str, make_service: MakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, client = picture(size=(11, 10), kind=kind), Client(make_service(max_pixels=100))
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda _: pytest.fail("decoded"))
    answer = client.send(data)
    assert (answer.status_code, "11 x 10" in answer.json()["error"]) == (422, True)


MALFORMED: dict[str, tuple[dict[str, str], bytes, int]] = {
    "no type": ({}, b"x", 415),
    "another type": ({"content-type": "image/png"}, picture(), 415),
    "gzip": ({"content-type": "application/json", "content-encoding": "gzip"}, b"x", 415),
    "no boundary": ({"content-type": "multipart/form-data"}, b"x", 400),
    "long boundary": ({"content-type": "multipart/form-data; boundary=" + "b" * 300}, b"x", 400),
    "no parts": ({"content-type": "multipart/form-data; boundary=b"}, b"--b--\r\n", 422),
    "no multipart": ({"content-type": "multipart/form-data; boundary=b"}, b"hello", 400),
    "cut off": ({"content-type": "multipart/form-data; boundary=b"}, b"--b\r\nContent-Disposition: x\r\n\r\nab", 400),
    "empty": ({"content-type": "multipart/form-data; boundary=b"}, b"", 400),
    "no json": ({"content-type": "application/json"}, b"{", 400),
    "no utf-8": ({"content-type": "application/json"}, b'{"images": "\xff"}', 400),
    "deep json": ({"content-type": "application/json"}, b"[" * 100_000, 400),
    "another document": ({"content-type": "application/json"}, b"[]", 422),
    "no images": ({"content-type": "application/json"}, b'{"images": []}', 422),
    "a number": ({"content-type": "application/json; charset=utf-8"}, b'{"images": [{"data": 1}]}', 422),
    "no base64": ({"content-type": "application/json"}, b'{"images": [{"data": "?"}]}', 422),
    "an address": ({"content-type": "application/json"}, b'{"images": [{"data": "data:image/png;base64,AA=="}]}', 422),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_body_is_refused_with_why(name: str, client: Client) -> None:
    headers, body, status = MALFORMED[name]
    answer = client.request("POST", "/predict", headers=headers, content=body)
    assert answer.status_code == status
    assert set(answer.json()) == {"error"}
    assert len(answer.json()["error"]) > 10


@pytest.mark.parametrize("query", ["top=0", "top=-1", "top=x", "top="])
def test_a_bad_parameter_is_refused(query: str, client: Client) -> None:
    answer = client.send(picture(), path=f"/predict?{query}")
    assert answer.status_code == 422
    assert answer.json()["error"].startswith("query.top: ")


def test_unknown_paths_and_methods(client: Client) -> None:
    for path in ("/nothing", "/page.html", "/assets/page.html", "/../pyproject.toml", "/%2e%2e/etc/passwd"):
        answer = client.get(path)
        assert (answer.status_code, answer.json()) == (404, {"error": "Not Found"}), path
    answer = client.get("/predict")
    assert (answer.status_code, answer.json(), answer.headers["allow"]) == (
        405,
        {"error": "Method Not Allowed"},
        "POST",
    )


def test_too_many_bytes(make_service: MakeService) -> None:
    client, small = Client(make_service(max_bytes=2000)), picture()
    assert client.send(small).status_code == 200
    answer = client.send(small + b"0" * 2000)
    assert answer.status_code == 413
    assert "2,000 bytes" in answer.json()["error"]
    assert answer.headers["connection"] == "close"
    assert client.service.admission.bytes == 0


def test_an_announced_body_that_is_too_large_is_not_read(make_service: MakeService) -> None:
    asked = []

    async def receive() -> Any:
        asked.append(1)
        return {"type": "http.disconnect"}

    sent = []

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"content-type", b"application/json"), (b"content-length", b"9" * 30), (b"expect", b"100-continue")]
    scope = {"type": "http", "method": "POST", "path": "/predict", "query_string": b"", "headers": headers}
    asyncio.run(Client(make_service()).app(scope, receive, send))
    assert sent[0]["status"] == 413
    assert not asked


def test_a_body_that_lies_about_its_length(make_service: MakeService) -> None:
    """Counted as it comes: no more than one piece beyond the limit is ever taken."""
    client, taken = Client(make_service(max_bytes=10_000)), []

    async def body() -> Any:
        yield b"--b\r\nContent-Disposition: form-data; name=f\r\n\r\n"
        while sum(taken) < 200_000_000:
            taken.append(5000)
            yield b"0" * 5000

    for length in ({}, {"content-length": "100"}):
        headers = {"content-type": "multipart/form-data; boundary=b", **length}
        taken.clear()
        answer = client.request("POST", "/predict", headers=headers, content=body())
        assert answer.status_code == 413
        assert sum(taken) < 100_000_000  # read on for a while, and thrown away


def test_too_many_files(make_service: MakeService) -> None:
    client = Client(make_service(max_files=2))
    assert client.send(picture(), picture()).status_code == 200
    for answer in (client.send(*[picture()] * 3), client.request("POST", "/predict", json=as_json(*[picture()] * 3))):
        assert answer.status_code == 422
        assert answer.json() == {"error": "more than 2 files: send them in several requests"}
    assert client.service.admission.images == 0


def test_a_full_queue(make_service: MakeService) -> None:
    model = Gated()
    client = Client(make_service(model, queue=3, max_files=3, max_batch=1))

    async def ask() -> tuple[list[httpx.Response], list[httpx.Response]]:
        async with client.session() as session:
            model.gate.clear()
            asked = [asyncio.ensure_future(session.post("/predict", files={"f": picture()})) for _ in range(2)]
            while client.service.admission.images < 2 or not model.entered.is_set():
                await asyncio.sleep(0.01)
            two = [("f", ("x", picture()))] * 2
            refused = [await session.post("/predict", files=two)]
            asked.append(asyncio.ensure_future(session.post("/predict", files={"f": picture()})))
            while client.service.admission.images < 3:
                await asyncio.sleep(0.01)
            refused += [await session.post("/predict", files={"f": picture()}), await session.get("/readyz")]
            model.gate.set()
            return refused, list(await asyncio.gather(*asked))

    (two, one, ready), answered = asyncio.run(ask())
    assert (two.status_code, one.status_code, ready.status_code) == (429, 429, 503)
    assert int(one.headers["retry-after"]) >= 1
    assert one.json()["error"].startswith("busy: 3 images")
    assert [answer.status_code for answer in answered] == [200] * 3
    assert client.get("/readyz").status_code == 200
    assert client.service.admission.images == 0


def test_all_requests_together_hold_no_more_than_they_may(make_service: MakeService) -> None:
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
            return [answer.status_code for answer in await asyncio.gather(*asked)]

    statuses = asyncio.run(ask())
    assert set(statuses) == {200, 429}
    assert statuses.count(200) >= 8


def test_an_answer_that_takes_too_long(make_service: MakeService) -> None:
    """It is refused in time, and its images do not take the network's time any more."""
    model = Gated()
    client = Client(make_service(model, timeout=0.3, max_batch=1))
    model.gate.clear()
    answer = client.send(picture(), picture(), picture())
    assert answer.status_code == 503
    assert "within 0.3 s" in answer.json()["error"]
    assert int(answer.headers["retry-after"]) >= 1
    model.gate.set()
    assert client.send(picture("blue")).json()[0]["label"] == "blue"
    client.wait_for("convnext_batch_images_count 2.0")  # the one that had begun, and the last


def test_a_body_that_takes_too_long(make_service: MakeService) -> None:
    async def body() -> Any:
        yield b"--b\r\n"
        await asyncio.sleep(5)

    headers = {"content-type": "multipart/form-data; boundary=b"}
    answer = Client(make_service(timeout=0.2)).request("POST", "/predict", headers=headers, content=body())
    assert (answer.status_code, answer.headers["connection"]) == (408, "close")
    assert "0.2 s" in answer.json()["error"]


def test_who_hangs_up_is_not_worked_for(make_service: MakeService) -> None:
    model = Gated()
    service = make_service(model, max_batch=1)
    client = Client(service)
    request = httpx.Request("POST", "http://server/predict", files={"f": picture()})
    sent, pieces = list[Any](), [{"type": "http.request", "body": request.read(), "more_body": False}]

    async def hang_up() -> None:
        async def receive() -> Any:
            if pieces:
                return pieces.pop()
            while not len(service.batcher):
                await asyncio.sleep(0.005)
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)

        model.gate.clear()
        service.batcher.submit(wanted())
        headers = [(name.lower(), value) for name, value in request.headers.raw]
        scope = {"type": "http", "method": "POST", "path": "/predict", "query_string": b"", "headers": headers}
        await client.app(scope, receive, send)

    asyncio.run(hang_up())
    assert sent[0]["status"] == 499
    model.gate.set()
    assert client.send(picture("blue")).json()[0]["label"] == "blue"
    client.wait_for("convnext_batch_images_count 2.0")
    assert service.admission.images == 0


def wanted() -> QueuedImage:
    """An image for the network."""
    return QueuedImage(torch.zeros(8, 8, 3, dtype=torch.uint8), 1)


class Broken(Colours):
    """Colours, but where there is blue."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.where(images[:, 2].amax((1, 2))[:, None] > 9.9, float("nan"), super().forward(images))


def test_a_failing_network_is_nobody_elses_fault(make_service: MakeService, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "randint", lambda _, *size, **options: torch.zeros(*size, **options))  # to warm up with
    client = Client(make_service(Broken()))

    async def ask() -> list[httpx.Response]:
        async with client.session() as session:
            asked = [session.post("/predict", files={"f": picture(name)}) for name in ("red", "blue", "green") * 4]
            return list(await asyncio.gather(*asked))

    for number, answer in enumerate(asyncio.run(ask())):
        assert answer.status_code == (500 if number % 3 == 1 else 200)
        if number % 3 == 1:
            assert answer.json() == {"error": "the outputs of colours are not finite: its weights are damaged"}


def test_what_nobody_foresaw_is_an_error_without_a_trace(
    client: Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(app_module.RequestBody, "read_uploads", None)  # which is not to be called
    answer = client.send(picture())
    assert (answer.status_code, answer.json()) == (500, {"error": "the server failed"})
    assert "TypeError" in caplog.text
    assert client.service.admission.images == 0


def test_networks_that_cannot_serve() -> None:
    nothing = classifier()
    nothing.classes = ()
    with pytest.raises(UsageError, match="has no classifier"):
        Service(nothing, Limits())
    with pytest.raises(UsageError, match="--top is 0"):
        Service(classifier(), Limits(), top=0)
    with pytest.raises(RunError, match="not finite"):
        Service(classifier(AlwaysBroken()), Limits())


class AlwaysBroken(Colours):
    """No colours."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(images) * float("nan")


def test_nothing_is_kept_by_others(client: Client) -> None:
    for answer in (client.send(picture()), client.get("/"), client.get("/nothing")):
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert "script-src 'self';" in answer.headers["content-security-policy"]
        assert "access-control-allow-origin" not in answer.headers
    assert client.send(picture()).headers["cache-control"] == "no-store"
    preflight = {"origin": "https://example.com", "access-control-request-method": "POST"}
    assert client.request("OPTIONS", "/predict", headers=preflight).status_code == 405


def test_what_is_served(client: Client) -> None:
    document = client.get("/model").json()
    assert (document["name"], document["classes"], document["image_size"]) == ("colours", [*COLOURS], 8)
    assert document["limits"] == json.loads(json.dumps(vars(Limits())))
    assert client.get("/healthz").json() == {"status": "ok"}


def test_metrics(client: Client) -> None:
    client.send(picture())
    client.send(picture(), b"no picture", picture())
    client.get("/somewhere/else")
    client.wait_for("convnext_batch_images_sum 3.0")
    text = client.get("/metrics").text
    assert 'convnext_requests_total{path="/predict",status="200"} 2.0' in text
    assert 'convnext_requests_total{path="other",status="404"} 1.0' in text
    assert 'convnext_images_total{outcome="answered"} 3.0' in text
    assert 'convnext_images_total{outcome="unreadable"} 1.0' in text
    assert 'convnext_seconds_count{part="decode"} 4.0' in text
    assert 'convnext_seconds_count{part="request"} 2.0' in text
    assert "convnext_under_way_images 0.0" in text


def test_a_dead_thread_is_unhealthy(client: Client) -> None:
    client.service.batcher.close()
    assert client.get("/healthz").status_code == client.get("/readyz").status_code == 503
