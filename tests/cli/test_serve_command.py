"""`convnext serve` as a user types it: what it says, and how it ends."""

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from convnext.cli import main
from convnext.serve.server import bind
from tests.conftest import MakeFolder
from tests.runs import MakeRun
from tests.serve.conftest import picture

Capture = pytest.CaptureFixture[str]


@pytest.mark.parametrize(
    ("option", "value", "part"),
    [
        ("--max-batch", "0", "1 or more"),
        ("--max-bytes", "-1", "1 or more"),
        ("--max-files", "200", "--queue 128"),
        ("--max-pixels", "1000000000", "89478485"),
        ("--timeout", "0", "seconds"),
        ("--timeout", "nan", "seconds"),
        ("--max-wait-ms", "-1", "10000"),
        ("--port", "-1", "65535"),
        ("--host", "192.0.2.1", "127.0.0.1"),
    ],
)
def test_invalid_options(option: str, value: str, part: str, capsys: Capture) -> None:
    assert main(["serve", "nowhere", option, value]) == 2
    output = capsys.readouterr()
    assert f"{option} " in output.err
    assert part in output.err
    assert not output.out


def test_a_busy_port_is_reported_before_the_model_is_loaded(capsys: Capture) -> None:
    with bind("127.0.0.1", 0) as taken:
        taken.listen()
        assert main(["serve", "nowhere", "--port", str(taken.getsockname()[1])]) == 1
    assert "--port" in capsys.readouterr().err
    assert main(["serve", "nowhere", "--port", "0"]) == 2
    assert "nowhere" in capsys.readouterr().err


def test_without_the_extra(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    assert main(["serve", "nowhere"]) == 2
    assert "pip install 'convnext[serve]'" in capsys.readouterr().err


@pytest.fixture
def served(make_folder: MakeFolder, make_run: MakeRun) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server as a process, and its address."""
    run = make_run(make_folder({"cat": 2, "dog": 2}))
    words = [sys.executable, "-m", "convnext", "serve", str(run), "--port", "0", "--device", "cpu"]
    with subprocess.Popen(words, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            line = ""
            while "Serving" not in line:
                line = process.stderr.readline()
                assert line, "it ended"
            (address,) = re.findall(r"http://127\.0\.0\.1:\d+", line)
            yield process, address
        finally:
            process.kill()


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_signal_ends_it_in_good_order(
    number: signal.Signals, status: int, served: tuple[subprocess.Popen[str], str]
) -> None:
    process, address = served
    files = [("f", (str(number), picture(size=(600, 500), kind="jpeg"))) for number in range(32)]
    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(httpx.post, f"{address}/predict", files=files, timeout=60) for _ in range(4)]
        with httpx.Client(base_url=address, timeout=60) as client:
            while 'convnext_seconds_count{part="receive"} 4.0' not in client.get("/metrics").text:
                assert not any(request.done() and request.exception() for request in asked)
        assert not all(request.done() for request in asked)
        process.send_signal(number)
        answers = [request.result() for request in asked]
    assert [answer.status_code for answer in answers] == [200] * 4
    assert all(len(answer.json()) == 32 for answer in answers)
    out, err = process.communicate(timeout=60)
    assert process.returncode == status
    assert not out
    assert "Traceback" not in err
    assert ("were answered" in err) == (number == signal.SIGINT)
