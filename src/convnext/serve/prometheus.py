"""Metrics of the server, for Prometheus."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import perf_counter

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from convnext.serve.batcher import BatchReport

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)
PARTS = ("receive", "decode", "wait", "network", "map", "request")


class Metrics:
    """Metrics of one server, in a registry of their own."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        self.requests = Counter(
            "convnext_requests", "Requests by path and status.", ["path", "status"], registry=registry
        )
        self.images = Counter("convnext_images", "Images by outcome.", ["outcome"], registry=registry)
        self.batches = Histogram("convnext_batch_images", "Images per batch.", registry=registry, buckets=BATCHES)
        seconds = Histogram(
            "convnext_seconds",
            "Seconds by part: receive (the body), decode and wait (an image), network (a batch), map (an image), "
            "request (to /predict, in all).",
            ["part"],
            registry=registry,
            buckets=SECONDS,
        )
        self.seconds = {part: seconds.labels(part) for part in PARTS}
        self.answered, self.unreadable = (self.images.labels(outcome) for outcome in ("answered", "unreadable"))
        self.seconds_per_image = 0.0  # of the model, exponential moving average
        ProcessCollector(registry=registry)

    def gauge(self, name: str, text: str, value: Callable[[], float]) -> None:
        """Add a value that is read at every scrape."""
        Gauge(name, text, registry=self.registry).set_function(value)

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Time a part of the work, whether it fails or not."""
        start = perf_counter()
        try:
            yield
        finally:
            self.seconds[part].observe(perf_counter() - start)

    def count(self, batch: BatchReport) -> None:
        """Record a batch of the model."""
        self.batches.observe(batch.size)
        self.seconds["network"].observe(batch.seconds)
        for seconds in batch.waits:
            self.seconds["wait"].observe(seconds)
        each = batch.seconds / batch.size
        self.seconds_per_image = 0.9 * self.seconds_per_image + 0.1 * each if self.seconds_per_image else each

    def text(self) -> bytes:
        """Return all metrics in Prometheus's text format."""
        return generate_latest(self.registry)
