"""The page's files: complete, readable for everybody, and in need of nothing from elsewhere."""

import re
from itertools import product

import pytest

from convnext.serve.pages import ASSETS
from tests.serve.conftest import Client

CSS = ASSETS["/page.css"].content.decode()


def test_every_file_is_served(client: Client) -> None:
    for path, asset in ASSETS.items():
        answer = client.get(path)
        assert (answer.status_code, answer.content) == (200, asset.content)
        assert answer.headers["content-type"].startswith(asset.media_type)
        assert client.request("HEAD", path).status_code == 200


def test_nothing_comes_from_elsewhere_and_no_script_stands_in_the_page(client: Client) -> None:
    for path in ASSETS:
        text = client.get(path).text.replace("http://www.w3.org/2000/svg", "")
        assert "//" not in re.sub(r"^\s*//.*$|(?<=;) //.*$|(?<=,) //.*$", "", text, flags=re.MULTILINE), path
    page = client.get("/").text
    assert not re.search(r"<style|style=|<script(?! src=)|\son\w+=", page)
    links = set(re.findall(r'(?:src|href)="([^"#]+)"', page))  # relative, as a proxy may add a prefix
    assert links <= {*(path[1:] for path in ASSETS), "docs"}


def test_the_documentation_is_served_from_here(client: Client) -> None:
    pytest.importorskip("fastapi_offline")
    answer = client.get("/docs")
    links = re.findall(r'(?:src|href)="([^"]+)"|url: \'(.*?)\'', answer.text)
    assert [client.get(f"/{one or other}").status_code for one, other in links] == [200] * 4
    assert "'unsafe-inline'" not in answer.headers["content-security-policy"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast(scheme: str) -> None:
    """WCAG AA: 4.5 for words, 3 for the parts of controls and bars."""
    light, dark = re.findall(r":root \{(.*?)\}", CSS, re.DOTALL)
    text = light if scheme == "light" else light + dark
    colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", text))
    words = [*product(("ink", "soft"), ("ground", "surface", "raised")), ("accent", "ground"), ("bad", "bad-soft")]
    for front, back in [*words, ("accent-ink", "accent"), ("ink", "accent-soft")]:
        assert contrast(colours[front], colours[back]) >= 4.5, (front, back)
    for front, back in [("control", "surface"), ("first", "raised"), ("other", "raised"), ("accent", "surface")]:
        assert contrast(colours[front], colours[back]) >= 3, (front, back)


def contrast(one: str, other: str) -> float:
    """The ratio of two colours' luminances, as WCAG 2 has it."""
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def luminance(colour: str) -> float:
    """Of a colour ``#rrggbb``, from 0 to 1."""
    levels = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [level / 12.92 if level <= 0.04045 else ((level + 0.055) / 1.055) ** 2.4 for level in levels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
