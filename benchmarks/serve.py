"""Does ``convnext serve`` hold under load, and how fast is it beside ``convnext predict`` on the same files?

A server of a network with random weights, and JPEG photographs of 500 x 375. Round by round, in turns: predict answers
a thousand from files; then 32 clients send a quarter of all requests to the server, a photograph in each, and the next
as soon as they have an answer. The clients are one process of their own that does as little as can be; it shares the
processor's cores with the server all the same, so that what it costs counts against the server.

Prints errors, rates, the times of an answer and the server's memory; writes ``results/serve-PROCESSOR.csv``. Usage:
``python benchmarks/serve.py [--network convnext_atto] [--requests 10000] [--clients 32] [--rounds 4]``.
"""

import argparse
import asyncio
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import cycle, islice
from multiprocessing import get_context
from pathlib import Path
from urllib.parse import urlsplit

PHOTOGRAPHS = 256
PREDICTED = 1000  # images of predict in a round
TARGET = 0.9  # of predict's rate


@dataclass
class Load:
    """What the clients met with in a round."""

    seconds: float = 0
    times: list[float] = field(default_factory=list)  # seconds from a request to its answer
    errors: int = 0  # answers other than 200


def predict_rate(run: str, paths: list[str]) -> float:
    """Images a second of predict, without the time that it takes to load."""
    from convnext.inference.classifier import open_classifier

    classifier = open_classifier(run, "cpu")
    start = time.perf_counter()
    answered = sum(prediction.error is None for prediction in classifier.stream(paths, count=len(paths)))
    assert answered == len(paths)
    return len(paths) / (time.perf_counter() - start)


def send_all(address: str, paths: list[str], count: int, clients: int) -> Load:
    """Send requests from several clients at once."""
    parts = urlsplit(address)
    assert parts.hostname is not None
    assert parts.port is not None
    requests = [request_with(Path(path)) for path in paths]
    return asyncio.run(all_clients(parts.hostname, parts.port, islice(cycle(requests), count), clients))


def request_with(path: Path) -> bytes:
    """A whole request with a photograph in it."""
    begin = f'--b\r\nContent-Disposition: form-data; name="files"; filename="{path.name}"\r\n\r\n'.encode()
    body = begin + path.read_bytes() + b"\r\n--b--\r\n"
    head = (
        "POST /predict HTTP/1.1\r\nHost: server\r\nContent-Type: multipart/form-data; boundary=b\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


async def all_clients(host: str, port: int, requests: Iterator[bytes], clients: int) -> Load:
    """Clients that take the next request as soon as they have an answer."""
    load, start = Load(), time.perf_counter()

    async def client() -> None:
        reader, writer = await asyncio.open_connection(host, port)
        for request in requests:
            begin = time.perf_counter()
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"content-length: (\d+)", head)
            assert length is not None
            await reader.readexactly(int(length[1]))
            load.times.append(time.perf_counter() - begin)
            load.errors += not head.startswith(b"HTTP/1.1 200 ")
        writer.close()

    await asyncio.gather(*(client() for _ in range(clients)))
    load.seconds = time.perf_counter() - start
    return load


@contextmanager
def served(run: Path) -> Iterator[tuple[str, int]]:
    """A server: its address and its process."""
    words = [sys.executable, "-m", "convnext", "serve", str(run), "--port", "0", "--device", "cpu"]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            for line in process.stderr:
                if found := re.search(r"http://\S+", line):
                    yield found[0], process.pid
                    break
            else:
                raise RuntimeError("the server did not start")
        finally:
            process.terminate()
        assert process.wait() == 0


def megabytes(process: int, line: str) -> float:
    """A process's memory by Linux's account: ``VmRSS`` now, ``VmHWM`` at most until now."""
    text = Path(f"/proc/{process}/status").read_text()
    found = re.search(rf"{line}:\s+(\d+) kB", text)
    assert found is not None
    return int(found[1]) / 1024


def main() -> None:
    """Measure, print, write."""
    from cold_start import write_run
    from photographs import make_photographs
    from result_files import processor_kind, write_rows

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="convnext_atto")
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=4)
    options = parser.parse_args()
    each = -(-options.requests // options.rounds)
    predicted, loads, memory = list[float](), list[Load](), list[float]()
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder, "run")
        write_run(run, options.network)
        paths = [str(path) for path in make_photographs(Path(folder, "photographs"), PHOTOGRAPHS)]
        files = list(islice(cycle(paths), min(each, PREDICTED)))
        with served(run) as (address, process):
            memory.append(megabytes(process, "VmRSS"))
            for _ in range(options.rounds):
                for rates, work, words in (
                    (predicted, predict_rate, (str(run), files)),
                    (loads, send_all, (address, paths, each, options.clients)),
                ):
                    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
                        rates.append(pool.submit(work, *words).result())  # pyright: ignore
                memory.append(megabytes(process, "VmRSS"))
                print(f"predict {predicted[-1]:.1f}, serve {each / loads[-1].seconds:.1f} images/s", flush=True)
            highest = megabytes(process, "VmHWM")
    rates = [each / load.seconds for load in loads]
    ratios = [served / alone for served, alone in zip(rates, predicted, strict=True)]
    ratio = statistics.median(ratios)
    cuts = statistics.quantiles([1000 * seconds for load in loads for seconds in load.times], n=100)
    errors = sum(load.errors for load in loads)
    row = {
        "network": options.network,
        "requests": each * options.rounds,
        "clients": options.clients,
        "errors": errors,
        "images_per_second": f"{statistics.median(rates):.1f}",
        "predict_images_per_second": f"{statistics.median(predicted):.1f}",
        "ratio": f"{ratio:.2f}",
        "ratios_of_rounds": " ".join(f"{one:.2f}" for one in ratios),
        **{f"p{percent}_ms": f"{cuts[percent - 1]:.0f}" for percent in (50, 95, 99)},
        "memory_mb": " ".join(f"{value:.0f}" for value in memory),
        "highest_memory_mb": f"{highest:.0f}",
    }
    print(*(f"{name}: {value}" for name, value in row.items()), sep="\n")
    print(f"ratio to predict {ratio:.2f}, target {TARGET}, {'reached' if ratio >= TARGET else 'NOT reached'}")
    write_rows(f"serve-{processor_kind()}", [row], ("pillow", "uvicorn", "fastapi"))


if __name__ == "__main__":
    main()
