"""Grad-CAM heat maps of uploaded images."""

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

URL = "/predict?map=true"


def wide(kind: str = "png", orientation: int = 1) -> bytes:
    """80 x 40 pixels: green, with a red square in the upper left of the middle."""
    image, file = Image.new("RGB", (80, 40), "#00ff00"), io.BytesIO()
    image.paste("#ff0000", (20, 0, 40, 20))
    exif = image.getexif()
    exif[0x0112] = orientation
    image.save(file, kind, exif=exif)
    return file.getvalue()


def decode(entry: dict) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(entry["map"]["png"])))


def test_a_heat_map_is_the_models_and_covers_what_it_sees(make_service: MakeService) -> None:
    service = make_service(Looking())
    (entry,) = Client(service).send(wide(), path=URL).json()
    assert (entry["label"], entry["map_error"]) == ("green", None)
    assert (entry["map"]["box"], entry["map"]["size"]) == ([20, 0, 60, 40], [80, 40])
    image = decode(entry)
    assert (image.mode, image.format) == ("L", "PNG")
    prepared = service.classifier.preprocessing(Image.open(io.BytesIO(wide())))
    (expected,) = grad_cam(service.classifier.model, prepared[None])
    actual = np.asarray(image) / 255
    assert actual == pytest.approx(expected.numpy(), abs=1 / 255)
    assert actual[:3, :3].max() < actual[5:, 5:].min()  # green is the evidence for green
    (rotated,) = Client(service).send(wide("jpeg", orientation=6), path=URL).json()
    assert (rotated["map"]["box"], rotated["map"]["size"]) == ([0, 20, 40, 60], [40, 80])
    service.classifier.preprocessing = Preprocessing(200, 1.0, mean=(0,) * 3, std=(0.1,) * 3)
    (large,) = Client(service).send(picture(size=(300, 300)), path=URL).json()
    assert decode(large).size == (64, 64)  # smooth, and small to send


def test_several_images_have_their_own_heat_maps(make_service: MakeService) -> None:
    client = Client(make_service(Looking()))
    files = [wide(), picture("red"), b"no picture", wide("jpeg"), picture("blue"), wide(), wide()]
    entries = client.send(*files, path=URL).json()
    assert [entry.get("map") is None for entry in entries] == [False, False, True, False, False, False, False]
    assert entries[0]["map"] == entries[5]["map"] == entries[6]["map"]
    assert entries[0]["map"]["png"] != entries[1]["map"]["png"]
    client.wait_for('convnext_seconds_count{part="map"} 6.0')
    for path in ("/predict", "/predict?map=false"):
        (entry,) = client.send(picture(), path=path).json()
        assert not {"map", "map_error"} & set(entry)


def test_a_model_without_heat_maps_says_so(client: Client) -> None:
    (entry,) = client.send(picture(), path=URL).json()
    assert (entry["label"], entry["map"], bool(entry["map_error"])) == ("red", None, True)
    assert client.get("/model").json()["maps"] is False


def test_a_heat_map_that_fails_leaves_the_prediction(
    make_service: MakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = Client(make_service(Looking()))

    def fail(*_: object) -> None:
        raise RunError("the map failed")

    monkeypatch.setattr("convnext.serve.heat_maps.grad_cam", fail)
    (entry,) = client.send(picture(), path=URL).json()
    assert (entry["label"], entry["map"], entry["map_error"]) == ("red", None, "the map failed")


def test_heat_maps_count_against_the_time_and_delay_no_prediction(
    make_service: MakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, gate = Client(make_service(Looking(), timeout=0.4)), threading.Event()

    def wait(model: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
        gate.wait(10)
        return grad_cam(model, images)

    monkeypatch.setattr("convnext.serve.heat_maps.grad_cam", wait)
    assert client.send(picture(), path=URL).status_code == 503
    assert client.send(picture()).status_code == 200
    gate.set()
    assert client.send(picture(), path=URL).status_code == 200
