"""The one progress display: a bar on a terminal, plain lines elsewhere."""

import io
import sys

import pytest
from rich.console import Console

from convnext import console
from convnext.console import ProgressDisplay, image_progress


def test_a_terminal_shows_title_bar_and_state_and_leaves_stdout_alone(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "REFRESH_SECONDS", 0)
    terminal = Console(file=io.StringIO(), force_terminal=True, width=80)
    with ProgressDisplay("tiny on [photos]", terminal) as display:
        assert display.state_width == 80 - console.BAR_WIDTH - 1
        display.update("step 1/2", 0.5)
        print("a result", file=sys.stdout)  # redirected into a file: it is not the terminal's
        display.warn(["a.jpg is damaged"])
        display.update("step 2/2", None, heading=lambda: "a table")
    shown = terminal.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    assert all(text in shown for text in ("tiny on [photos]", "━", "step 1/2", "a.jpg is damaged", "a table", "step 2"))
    assert capsys.readouterr().out == "a result\n"


def test_plain_lines_come_at_intervals(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with ProgressDisplay("job") as display:
        display.update("soon", 0.1)
        display.update("end", 1.0, is_last=True)
        display.note("a note")
    assert capsys.readouterr().err.splitlines() == ["job: end", "a note"]
    monkeypatch.setattr(console, "PLAIN_SECONDS", 0)
    for title, total in (("run", 6), ("run", None), ("", 6)):
        with image_progress(title, total) as show:
            show(2)
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(" images  ")[0] for line in lines] == ["run: 2 of 6", "run: 2"]
    assert all(line.endswith(" images/s") for line in lines)
