"""`convnext serve`."""

from convnext.cli.options import Device, ModelName, Trust, note, warn
from convnext.environment import import_extra


def serve(
    model: ModelName,
    host: str = "127.0.0.1",
    port: int = 8000,
    top: int = 5,
    device: Device = "auto",
    max_batch: int = 16,
    max_wait_ms: float = 2,
    max_bytes: int = 32 * 2**20,
    max_pixels: int = 64_000_000,
    max_files: int = 32,
    queue: int = 128,
    timeout: float = 30,
    trust: Trust = False,
) -> None:
    """Serve a trained model: a page to drop images on, and POST /predict for programs.

    The page is at /, the documentation of the API at /docs, metrics for Prometheus at /metrics. SIGTERM (status 0) and
    Ctrl-C (status 130) finish the requests in progress. Nothing that a client sends is written to a disk.

    Args:
        host: the address to listen on; 0.0.0.0 for all of this machine's: everyone who can reach it may use it.
        port: the port to listen on; 0 for any free one.
        top: classes per image, unless a request says how many.
        max_batch: images per batch.
        max_wait_ms: milliseconds that an image waits for others to form a batch.
        max_bytes: of a request's body; a larger one gets status 413.
        max_pixels: width times height of an image; a larger one gets status 422 before it is decoded.
        max_files: files per request; more get status 422.
        queue: images of all requests in progress; more get status 429.
        timeout: seconds per request; then it gets status 503.
    """
    for package in ("fastapi", "httptools", "prometheus_client", "python_multipart", "uvicorn"):
        import_extra(package, "serve")
    from convnext.inference.classifier import open_classifier
    from convnext.serve.limits import Limits
    from convnext.serve.server import bind, browser_address, is_local, serve
    from convnext.serve.service import Service

    limits = Limits(max_batch, max_wait_ms, max_bytes, max_pixels, max_files, queue, timeout)
    listener = bind(host, port)
    try:
        classifier = open_classifier(model, device, trust)
        warn(classifier.notes)
        if not is_local(listener):
            warn([f"everyone who can reach {host} may use this server: it has no password"])
        service = Service(classifier, limits, top, note)
        serve(service, listener, lambda: note(f"Serving {model}: {browser_address(listener)}  (Ctrl-C stops)"))
    finally:
        listener.close()
