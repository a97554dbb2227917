"""`convnext serve`."""

import sys

from tyro.conf import Positional

from convnext.cli.options import note
from convnext.errors import UsageError


def serve(
    run: Positional[str],
    host: str = "127.0.0.1",
    port: int = 8000,
    top: int = 5,
    device: str = "auto",
    max_batch: int = 16,
    max_wait_ms: float = 2,
    max_bytes: int = 32 * 2**20,
    max_pixels: int = 64_000_000,
    max_files: int = 32,
    queue: int = 128,
    timeout: float = 30,
    trust: bool = False,
) -> None:
    """Serve a trained model: a page to drop images on, and POST /predict for programs.

    The page is at /, the documentation of the API at /docs, metrics for Prometheus at /metrics. SIGTERM (status 0) and
    Ctrl-C (status 130) finish the requests in progress. Nothing that a client sends is written to a disk.

    Args:
        run: a run folder; an exported file; a weights file or folder of any layout; VARIANT or VARIANT.TAG for the
            authors' published weights (convnext_tiny.in22k_in1k); or torchvision/NAME, timm/NAME for a library's.
        host: the address to listen on; 0.0.0.0 for all of this machine's: everyone who can reach it may use it.
        port: the port to listen on; 0 for any free one.
        top: classes per image, unless a request says how many.
        device: auto (a GPU if there is one), cpu, cuda, mps or xpu.
        max_batch: images per batch.
        max_wait_ms: milliseconds that an image waits for others to form a batch.
        max_bytes: of a request's body; a larger one gets status 413.
        max_pixels: width times height of an image; a larger one gets status 422 before it is decoded.
        max_files: files per request; more get status 422.
        queue: images of all requests in progress; more get status 429.
        timeout: seconds per request; then it gets status 503.
        trust: also open a .pt2 file that was not exported here, though it can run any code.
    """
    try:
        import fastapi  # noqa: F401
        import httptools  # noqa: F401
        import prometheus_client  # noqa: F401
        import python_multipart  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise UsageError(f"serving needs {error.name}: pip install 'convnext[serve]'") from error
    from convnext.console import console_on, say_warnings
    from convnext.inference.classifier import open_classifier
    from convnext.serve.limits import Limits
    from convnext.serve.server import bind, browser_address, is_local, serve
    from convnext.serve.service import Service

    limits = Limits(max_batch, max_wait_ms, max_bytes, max_pixels, max_files, queue, timeout)
    listener = bind(host, port)
    try:
        classifier = open_classifier(run, device, trust)
        say_warnings(classifier.notes, console_on(sys.stderr))
        if not is_local(listener):
            say_warnings(
                [f"everyone who can reach {host} may use this server: it has no password"], console_on(sys.stderr)
            )
        service = Service(classifier, limits, top, note)
        serve(service, listener, lambda: note(f"Serving {run}: {browser_address(listener)}  (Ctrl-C stops)"))
    finally:
        listener.close()
