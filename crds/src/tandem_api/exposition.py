# SPDX-License-Identifier: Apache-2.0
"""From the declared metrics to what prometheus-client collects and serves."""

from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import (
    REGISTRY,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    start_http_server,
)

from tandem_api.environment import METRICS_PORT
from tandem_api.metrics import Kind, Metric

# A second series for each counter, which nobody asks for.
disable_created_metrics()  # type: ignore[no-untyped-call]


def counter(metric: Metric, registry: CollectorRegistry = REGISTRY) -> Counter:
    _expect(metric, Kind.COUNTER)
    return Counter(metric.name, metric.help, _labels(metric), registry=registry)


def gauge(metric: Metric, registry: CollectorRegistry = REGISTRY) -> Gauge:
    _expect(metric, Kind.GAUGE)
    return Gauge(metric.name, metric.help, _labels(metric), registry=registry)


def histogram(metric: Metric, registry: CollectorRegistry = REGISTRY) -> Histogram:
    _expect(metric, Kind.HISTOGRAM)
    return Histogram(metric.name, metric.help, _labels(metric), buckets=metric.buckets, registry=registry)


def registry() -> CollectorRegistry:
    """A registry that holds, to begin with, the CPU and memory of this process."""
    made = CollectorRegistry()
    ProcessCollector(registry=made)
    return made


@contextmanager
def served(address: str, registry: CollectorRegistry, port: int = METRICS_PORT) -> Iterator[None]:
    """Serve ``/metrics`` on this address from a thread of its own, until the block is left."""
    server, thread = start_http_server(port, address, registry)
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _labels(metric: Metric) -> tuple[str, ...]:
    return tuple(label.name for label in metric.labels)


def _expect(metric: Metric, kind: Kind) -> None:
    if metric.kind is not kind:
        raise TypeError(f"{metric.name} is declared as a {metric.kind}, and made as a {kind}")
