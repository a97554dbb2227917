"""What is shown of a training under way."""

import dataclasses

import pytest

from convnext.training.progress import Progress, describe, show_training

UNDER_WAY = Progress(
    epoch=4,
    epochs=30,
    step=10,
    steps=120,
    lr=3e-4,
    loss=1.25,
    top1=87.5,
    images_per_second=1234,
    data_wait=0.25,
    seconds_left=75,
)


def test_a_line_has_all_there_is() -> None:
    expected = "epoch 5/30  step 10/120  1,234 images/s  loss 1.250  top-1 87.5 %  lr 0.0003  data wait 25 %"
    assert describe(UNDER_WAY) == f"{expected}  1:15 min left"


@pytest.mark.parametrize("width", [110, 90, 75, 62])
def test_a_narrow_line_keeps_what_matters(width: int) -> None:
    line = describe(UNDER_WAY, width)
    assert len(line) <= width
    assert all(part in line for part in ("epoch 5/30", "loss 1.250", "top-1 87.5 %", "1:15 min left"))


def test_plain_output_names_the_training_and_says_notes_once(capsys: pytest.CaptureFixture[str]) -> None:
    begun = dataclasses.replace(UNDER_WAY, notes=("starting from x.pth",), warnings=("skipped, cannot be read: a.jpg",))
    ended = dataclasses.replace(UNDER_WAY, epoch=30, step=0)
    show_training([begun, UNDER_WAY, ended], "tiny on photos", opening="Recipe small: why.")
    said = capsys.readouterr().err.splitlines()
    assert said[:3] == ["Recipe small: why.", "starting from x.pth", "warning: skipped, cannot be read: a.jpg"]
    assert said[3].startswith("tiny on photos: epoch 30/30")
    assert len(said) == 4
