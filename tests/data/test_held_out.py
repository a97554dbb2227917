"""Images to evaluate on, from folders of every kind."""

from pathlib import Path

import pytest

from convnext.data.held_out import load_held_out
from convnext.errors import UsageError
from tests.conftest import MakeFolder


@pytest.mark.parametrize(
    ("folders", "part", "images"),
    [
        ({"train/a": 3, "train/b": 3, "val/a": 1, "val/b": 1, "test/a": 5}, "images of val/", 2),
        ({"train/a": 3, "train/b": 3, "test/a": 2, "test/b": 2}, "images of test/", 4),
        ({"validation/a": 1, "validation/b": 4}, "images of validation/", 5),
        ({"train/a": 3, "train/b": 4}, "images of train/", 7),
        ({"a": 1, "b": 1}, "all its images", 2),
        ({"a": 3}, "all its images", 3),
        ({"a": 3, "b": 0}, "all its images", 3),
    ],
)
def test_the_part_that_is_evaluated(make_folder: MakeFolder, folders: dict[str, int], part: str, images: int) -> None:
    found = load_held_out(str(make_folder(folders)))
    assert (found.part, len(found.images)) == (part, images)


def test_an_imagenet_folder_needs_no_training_part(make_folder: MakeFolder) -> None:
    found = load_held_out(f"imagenet:{make_folder({'val/n01440764': 2, 'val/n01443537': 1})}")
    assert (found.classes, len(found.images)) == (("n01440764", "n01443537"), 3)


def test_embedded_data() -> None:
    found = load_held_out("digits")
    assert (len(found.images), found.part) == (360, "held-out images")


def test_what_there_is_no_image_in(make_folder: MakeFolder, tmp_path: Path) -> None:
    empty, nowhere = make_folder({"a": 0, "b": 0}), tmp_path / "nowhere"
    for name, message in (
        (empty, "no images"),
        (nowhere, "nowhere"),
        (f"imagenet:{nowhere}", "nowhere"),
        ("", "no data"),
    ):
        with pytest.raises(UsageError, match=message):
            load_held_out(str(name))
