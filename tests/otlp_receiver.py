# SPDX-License-Identifier: Apache-2.0
"""An OpenTelemetry collector as far as tests need one: takes OTLP over HTTP and keeps the spans."""

import gzip
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)


@dataclass(frozen=True)
class Span:
    """Times in Unix seconds; ``parent`` is empty for the root of a trace."""

    trace: str
    id: str
    parent: str
    name: str
    start: float
    end: float
    attributes: dict[str, str | int | float]
    error: str
    resource: dict[str, str | int | float]


@dataclass
class Receiver:
    """``endpoint`` is what OTEL_EXPORTER_OTLP_ENDPOINT is set to; ``spans`` are in the order in which they came."""

    endpoint: str = ""
    spans: list[Span] = field(default_factory=list)

    def take(self, body: bytes) -> None:
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            about = _values(resource.resource.attributes)
            for scope in resource.scope_spans:
                self.spans += [_span(made, about) for made in scope.spans]


@contextmanager
def receiving() -> Iterator[Receiver]:
    """A receiver on a free port of 127.0.0.1, until the block is left."""
    receiver = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            packed = self.headers.get("Content-Encoding") == "gzip"
            receiver.take(gzip.decompress(body) if packed else body)
            answer = ExportTraceServiceResponse().SerializeToString()
            self.send_response(200)
            self.send_header("Content-Type", "application/x-protobuf")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, format: str, *args: object) -> None:
            """Nothing: requests are not worth a line."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        receiver.endpoint = f"http://127.0.0.1:{server.server_port}"
        try:
            yield receiver
        finally:
            server.shutdown()
            thread.join()


def _span(made, about: dict[str, str | int | float]) -> Span:  # type: ignore[no-untyped-def]
    return Span(
        made.trace_id.hex(),
        made.span_id.hex(),
        made.parent_span_id.hex(),
        made.name,
        made.start_time_unix_nano / 1e9,
        made.end_time_unix_nano / 1e9,
        _values(made.attributes),
        made.status.message if made.status.code == made.status.STATUS_CODE_ERROR else "",
        about,
    )


def _values(attributes) -> dict[str, str | int | float]:  # type: ignore[no-untyped-def]
    return {item.key: getattr(item.value, item.value.WhichOneof("value")) for item in attributes}
