# SPDX-License-Identifier: Apache-2.0
"""What a hybrid pod tells Prometheus."""

from prometheus_client import CollectorRegistry

from tandem_api import metrics as declared
from tandem_api.exposition import counter, gauge
from tandem_api.messages.phases import PhaseName
from tandem_api.messages.work import Segment


class MemberMetrics:
    """The listener of one sidecar: its parts tell it what they do."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._activity = gauge(declared.ACTIVITY, registry)
        self._tokens = counter(declared.TOKENS, registry)
        self._segments = counter(declared.SEGMENTS, registry)
        self._requests = gauge(declared.ENGINE_REQUESTS, registry)
        self._up = gauge(declared.ENGINE_UP, registry)
        self._restarts = counter(declared.ENGINE_RESTARTS, registry)

    def works_on(self, phase: PhaseName) -> None:
        """This pod does its part of the phase."""
        self._activity.set(declared.ACTIVITIES.index(phase))

    def waits(self) -> None:
        """This pod has done its part."""
        self._activity.set(0)

    def generates(self, requests: int) -> None:
        """So many trajectories are in the engine."""
        self._requests.set(requests)

    def generated(self, segment: Segment) -> None:
        """The engine is through with a lease."""
        self._tokens.inc(len(segment.tokens))
        self._segments.labels(segment.finish).inc()

    def engine_started(self, again: bool) -> None:
        self._up.set(1)
        self._restarts.inc(again)

    def engine_gone(self) -> None:
        self._up.set(0)
