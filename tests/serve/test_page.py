"""The page in a real browser: dropped, pasted and chosen pictures, by mouse and by keyboard, in any light and width."""

import base64
import io
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torch import nn

from tests.serve.conftest import Gated, Looking, MakeServer, picture

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FOUND = next((path for name in BROWSERS if (path := shutil.which(name))), None)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(FOUND is None, reason=f"needs a browser: one of {', '.join(BROWSERS)}"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """The browser, for all tests."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        options = ["--no-sandbox"] if os.name == "posix" and os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=FOUND, args=options)
        yield browser
        browser.close()


class Sight:
    """A page that is open, and what the browser complained of."""

    def __init__(self, browser: Any, address: str, **options: Any) -> None:
        self.page = browser.new_page(**options)
        self.page.set_default_timeout(20_000)
        self.complaints, self.requests = list[str](), list[str]()
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.address = address
        self.page.goto(address)
        self.page.locator("#limits:not(:empty)").wait_for()

    def card(self, name: str) -> Any:
        """The card of a picture."""
        return self.page.get_by_role("article", name=name, exact=True)

    def answered(self, name: str) -> Any:
        """The card of a picture, once it has its answer, and its map where there is one."""
        self.card(name).locator(".facts:not([hidden])").wait_for()
        return self.card(name)

    def choose(self, *files: tuple[str, bytes]) -> None:
        """Choose files, as from the system's own window."""
        kinds = [{"name": name, "mimeType": "image/png", "buffer": data} for name, data in files]
        self.page.locator("#choose").set_input_files(kinds)

    def hand(self, kind: str, *files: tuple[str, bytes]) -> None:
        """Drop or paste files."""
        self.page.evaluate(
            """([kind, files]) => {
                const data = new DataTransfer();
                for (const [name, text] of files) {
                    const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
                    data.items.add(new File([bytes], name, { type: "image/png" }));
                }
                const options = { bubbles: true, cancelable: true, dataTransfer: data, clipboardData: data };
                const Event = kind === "drop" ? DragEvent : ClipboardEvent;
                for (const name of kind === "drop" ? ["dragenter", "dragover", "drop"] : ["paste"]) {
                    document.querySelector("#drop").dispatchEvent(new Event(name, options));
                }
            }""",
            [kind, [(name, base64.b64encode(data).decode()) for name, data in files]],
        )

    def overflows(self) -> bool:
        """Whether it is wider than the window."""
        return self.page.evaluate("document.documentElement.scrollWidth > window.innerWidth")

    def expect_complaints(self, status: str) -> None:
        """The browser itself logs every response of 4xx and 5xx."""
        assert self.complaints
        assert all(status in complaint for complaint in self.complaints)
        self.complaints.clear()

    def focused(self) -> str:
        """Label or text of the focused element."""
        return self.page.evaluate(
            "(document.activeElement.getAttribute('aria-label') ?? document.activeElement.closest('label')?.innerText "
            "?? document.activeElement.innerText).trim()"
        )


@pytest.fixture
def open_page(browser: Any, make_server_on_a_port: MakeServer) -> Iterator[Any]:
    """Serve a network, and open its page; in the end, nobody has complained and nothing came from elsewhere."""
    opened: list[Sight] = []

    def open_it(model: nn.Module | None = None, limits: dict[str, Any] | None = None, **options: Any) -> Sight:
        port = make_server_on_a_port(model or Looking(), **(limits or {}))
        opened.append(Sight(browser, f"http://127.0.0.1:{port}/", **options))
        return opened[-1]

    yield open_it
    for sight in opened:
        sight.page.close()
        assert sight.complaints == []
        assert all(url.startswith((sight.address, "blob:", "data:")) for url in sight.requests)


def test_dropped_and_pasted_images(open_page: Any) -> None:
    sight = open_page()
    assert sight.page.title() == "colours: ConvNeXt"
    assert "JPEG, PNG, WEBP" in sight.page.locator("#limits").inner_text()
    assert "32 MB and 64 megapixels" in sight.page.locator("#limits").inner_text()
    sight.hand("drop", ("a.png", picture("red")), ("b.png", picture("blue", (40, 30))))
    card = sight.answered("b.png")
    assert card.locator(".label").all_inner_texts()[0] == "blue"
    assert card.locator(".percent").all_inner_texts()[0] == "100.0 %"
    widths = [bar.bounding_box()["width"] for bar in card.locator(".track").all()]
    filled = [bar.bounding_box()["width"] for bar in card.locator(".track i").all()]
    assert filled[0] == pytest.approx(widths[0], rel=0.02)
    assert filled[1] < 0.05 * widths[1]
    assert "40 \N{MULTIPLICATION SIGN} 30 px" in card.locator(".facts").inner_text()
    sight.answered("a.png")
    assert sight.page.locator(".card h2").all_inner_texts() == ["a.png", "b.png"]
    assert sight.page.locator("#count").inner_text() == "2 pictures"
    sight.hand("paste", ("image.png", picture("green")))
    assert sight.answered("image.png").locator(".label").first.inner_text() == "green"
    sight.page.evaluate("document.body.dispatchEvent(new ClipboardEvent('paste', {clipboardData: new DataTransfer()}))")
    assert sight.page.locator(".card").count() == 3


def test_the_heat_map_covers_what_the_model_sees(open_page: Any) -> None:
    """A wide image, of which the model sees the middle: red there on the right, where the heat map is bright."""
    image, file = Image.new("RGB", (80, 40), "#0000ff"), io.BytesIO()
    image.paste("#ff0000", (42, 0, 80, 40))
    image.save(file, "png")
    sight = open_page()
    sight.choose(("wide.png", file.getvalue()))
    card = sight.answered("wide.png")
    heat, frame = card.locator(".heat"), card.locator(".frame")
    heat.wait_for()
    inner, outer = heat.bounding_box(), frame.bounding_box()
    assert inner["width"] == pytest.approx(outer["width"] / 2, abs=1.5)
    assert inner["x"] - outer["x"] == pytest.approx(outer["width"] / 4, abs=1.5)
    assert inner["height"] == pytest.approx(outer["height"], abs=1.5)

    def screenshot() -> Any:
        return np.asarray(Image.open(io.BytesIO(frame.screenshot())).convert("RGB")).astype(int)

    seen = screenshot()
    box = card.get_by_role("switch", name="Where it looked")
    box.uncheck()
    assert not heat.is_visible()
    plain = screenshot()
    row, width = seen.shape[0] // 2, seen.shape[1]
    assert np.abs(seen - plain).sum(2)[row, int(0.05 * width)] > 50  # dark where the model does not see
    bright, dark = (0.7, 0.3) if card.locator(".label").first.inner_text() == "red" else (0.3, 0.7)
    assert seen[row, int(bright * width)].sum() > seen[row, int(dark * width)].sum()
    box.check()
    card.get_by_role("slider", name="Strength of the map").fill("10")
    place = row, int(bright * width)
    assert np.abs(screenshot() - plain)[place].sum() < np.abs(seen - plain)[place].sum()


def test_bad_files_say_why_and_the_others_are_classified(open_page: Any) -> None:
    sight = open_page(Gated(), limits={"max_bytes": 5000})
    sight.choose(("bad.png", b"no picture"), ("good.png", picture()), ("big.png", bytes(6000)))
    bad, big = (sight.card(name).locator(".reason") for name in ("bad.png", "big.png"))
    bad.wait_for()
    big.wait_for()
    assert "JPEG" in bad.inner_text()
    assert "4.88 kB" in big.inner_text()
    assert not sight.card("bad.png").get_by_role("button", name="Try again").is_visible()
    good = sight.answered("good.png")
    assert good.locator(".label").first.inner_text() == "red"
    assert not good.get_by_role("switch").is_visible()  # this model has no heat maps
    assert len(sight.complaints) == 1  # big.png was never sent
    sight.expect_complaints("415")


def test_a_slow_response_shows_its_progress_and_can_be_tried_again(open_page: Any) -> None:
    model = Looking()
    sight = open_page(model, limits={"timeout": 3})
    model.gate.clear()
    sight.choose(("slow.png", picture("blue")))
    card = sight.card("slow.png")
    assert card.get_attribute("aria-busy") == "true"
    assert card.locator(".skeleton").is_visible()
    card.get_by_text("Still at work, 2 s").wait_for()
    assert card.locator("img").is_visible()
    again = card.get_by_role("button", name="Try again")
    again.wait_for()
    assert "3 s" in card.locator(".reason").inner_text()
    model.gate.set()
    again.click()
    assert sight.answered("slow.png").locator(".label").first.inner_text() == "blue"
    assert card.get_attribute("aria-busy") == "false"
    assert sight.page.get_by_role("status").inner_text() == "slow.png: blue, 100.0 %"
    sight.expect_complaints("503")


def test_a_file_that_is_gone(open_page: Any, tmp_path: Path) -> None:
    model, file = Looking(), tmp_path / "a.png"
    file.write_bytes(picture())
    sight = open_page(model, limits={"timeout": 0.3})
    model.gate.clear()
    sight.page.locator("#choose").set_input_files(file)
    again = sight.card("a.png").get_by_role("button", name="Try again")
    again.wait_for()
    model.gate.set()
    file.unlink()
    again.click()
    sight.card("a.png").get_by_text("Cannot be read").wait_for()
    assert not again.is_visible()
    sight.expect_complaints("503")


def test_a_busy_server_is_asked_again(open_page: Any) -> None:
    model = Looking()
    sight = open_page(model, limits={"queue": 1, "max_files": 1})
    model.gate.clear()
    sight.choose(("a.png", picture("red")), ("b.png", picture("blue")))
    sight.page.get_by_text("The server is busy, trying again in 1 s").wait_for()
    model.gate.set()
    for name, colour in (("a.png", "red"), ("b.png", "blue")):
        assert sight.answered(name).locator(".label").first.inner_text() == colour
    sight.expect_complaints("429")


def test_by_the_keyboard_alone(open_page: Any) -> None:
    sight = open_page()
    for label in ("Skip to the answers", "API", "Choose pictures"):
        sight.page.keyboard.press("Tab")
        assert sight.focused() == label
    ring = "getComputedStyle(document.activeElement.closest('label')).outlineWidth"
    assert sight.page.evaluate(ring) == "3px"
    with sight.page.expect_file_chooser() as chosen:
        sight.page.keyboard.press("Enter")
    chosen.value.set_files([{"name": "a.png", "mimeType": "image/png", "buffer": picture("green")}])
    sight.answered("a.png").locator(".heat").wait_for()
    for label in ("Clear all", "Where it looked", "Strength of the map", "Remove a.png"):
        sight.page.keyboard.press("Tab")
        assert sight.focused() == label
    sight.page.keyboard.press("Shift+Tab")
    before = sight.page.get_by_role("slider").input_value()
    sight.page.keyboard.press("ArrowRight")
    assert int(sight.page.get_by_role("slider").input_value()) == int(before) + 1
    sight.page.keyboard.press("Shift+Tab")
    sight.page.keyboard.press("Space")
    assert not sight.card("a.png").locator(".heat").is_visible()
    sight.page.keyboard.press("Tab")  # the slider is off as well
    assert sight.focused() == "Remove a.png"
    sight.page.keyboard.press("Enter")
    assert sight.page.locator(".card").count() == 0
    assert sight.focused() == "Choose pictures"


@pytest.mark.parametrize(("scheme", "width"), [("light", 1200), ("dark", 1200), ("light", 360), ("dark", 360)])
def test_every_light_and_width(scheme: str, width: int, open_page: Any) -> None:
    sight = open_page(color_scheme=scheme, viewport={"width": width, "height": 740})
    assert not sight.overflows()
    long = "a-picture-with-a-name-that-is-much-longer-than-any-telephone-is-wide-and-has-no-spaces.png"
    sight.choose((long, picture("red", (300, 20))), ("tall.png", picture("blue", (20, 300))), ("a.png", picture()))
    for name in (long, "tall.png", "a.png"):
        sight.answered(name).locator(".heat").wait_for()
    assert not sight.overflows()
    ground = sight.page.evaluate("getComputedStyle(document.body).backgroundColor")
    light = sum(map(int, ground[4:-1].split(","))) / 3 > 128
    assert light == (scheme == "light")
    assert sight.card("tall.png").locator(".frame").bounding_box()["height"] <= 330


def test_the_documentation_of_the_api(open_page: Any) -> None:
    pytest.importorskip("fastapi_offline")
    sight = open_page()
    sight.page.goto(f"{sight.address}docs")
    sight.page.get_by_text("/predict", exact=True).click()
    sight.page.get_by_role("button", name="Try it out").wait_for()
