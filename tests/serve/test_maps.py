"""Where the network looked, as the API says it."""

import base64
import io
import threading

import numpy as np
import pytest
import torch
from PIL import Image

from convnext.data.preprocessing import Preprocessing
from convnext.errors import RunError
from convnext.explanation.saliency import grad_cam
from tests.serve.conftest import Client, Looking, MakeService, picture


def wide(kind: str = "png") -> bytes:
    """80 x 40 pixels: green, with a red square in the middle's upper left."""
    image = Image.new("RGB", (80, 40), "#00ff00")
    image.paste("#ff0000", (20, 0, 40, 20))
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def test_a_map_is_the_networks_and_lies_over_what_it_sees(make_service: MakeService) -> None:
    service = make_service(Looking())
    answer = Client(service).send(wide(), path="/predict?map=true")
    (entry,) = answer.json()
    assert entry["label"] == "green"
    assert entry["map_error"] is None
    assert entry["map"]["box"] == [20, 0, 60, 40]
    assert entry["map"]["size"] == [80, 40]
    image = Image.open(io.BytesIO(base64.b64decode(entry["map"]["png"])))
    assert (image.mode, image.format) == ("L", "PNG")
    shown = np.asarray(image) / 255
    prepared = service.classifier.preprocessing(Image.open(io.BytesIO(wide())))
    (expected,) = grad_cam(service.classifier.model, prepared[None])
    assert shown.shape == (8, 8)
    assert shown == pytest.approx(expected.numpy(), abs=1 / 255)
    assert shown[:3, :3].max() < shown[5:, 5:].min()  # green is what speaks for green


def test_a_map_of_a_large_image_is_small(make_service: MakeService) -> None:
    service = make_service(Looking())
    service.classifier.preprocessing = Preprocessing(200, 1.0, mean=(0,) * 3, std=(0.1,) * 3)
    (entry,) = Client(service).send(picture(size=(300, 300)), path="/predict?map=1").json()
    content = base64.b64decode(entry["map"]["png"])
    assert Image.open(io.BytesIO(content)).size == (64, 64)
    assert len(content) < 5000


def test_a_turned_picture_is_upright(make_service: MakeService) -> None:
    image, file = Image.open(io.BytesIO(wide())), io.BytesIO()
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(file, "jpeg", exif=exif)
    (entry,) = Client(make_service(Looking())).send(file.getvalue(), path="/predict?map=true").json()
    assert entry["map"]["size"] == [40, 80]
    assert entry["map"]["box"] == [0, 20, 40, 60]


def test_maps_of_several_pictures_are_their_own(make_service: MakeService) -> None:
    client = Client(make_service(Looking()))
    files = [wide(), picture("red"), b"no picture", wide("jpeg"), picture("blue"), wide(), wide()]
    entries = client.send(*files, path="/predict?map=true").json()
    assert [entry.get("map") is None for entry in entries] == [False, False, True, False, False, False, False]
    assert entries[0]["map"] == entries[5]["map"] == entries[6]["map"]
    assert entries[0]["map"]["png"] != entries[1]["map"]["png"]
    client.wait_for('convnext_seconds_count{part="map"} 6.0')


def test_without_being_asked_there_is_none(make_service: MakeService) -> None:
    for path in ("/predict", "/predict?map=false"):
        (entry,) = Client(make_service(Looking())).send(picture(), path=path).json()
        assert not {"map", "map_error"} & set(entry)


def test_a_network_without_maps_says_so(client: Client) -> None:
    (entry,) = client.send(picture(), path="/predict?map=true").json()
    assert (entry["label"], entry["map"]) == ("red", None)
    assert entry["map_error"].startswith("no map of this network: ")
    assert client.get("/model").json()["maps"] is False


def test_a_map_that_fails_leaves_the_answer_as_it_is(
    make_service: MakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = Client(make_service(Looking()))
    assert client.get("/model").json()["maps"] is True

    def fail(*_: object) -> None:
        raise RunError("the map failed")

    monkeypatch.setattr("convnext.serve.heat_maps.grad_cam", fail)
    (entry,) = client.send(picture(), path="/predict?map=true").json()
    assert (entry["label"], entry["map"], entry["map_error"]) == ("red", None, "the map failed")


def test_maps_count_against_the_time_and_hold_up_no_prediction(
    make_service: MakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, gate = Client(make_service(Looking(), timeout=0.4)), threading.Event()

    def wait(model: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
        gate.wait(10)
        return grad_cam(model, images)

    monkeypatch.setattr("convnext.serve.heat_maps.grad_cam", wait)
    assert client.send(picture(), path="/predict?map=true").status_code == 503
    assert client.send(picture()).status_code == 200
    gate.set()
    assert client.send(picture(), path="/predict?map=true").status_code == 200
