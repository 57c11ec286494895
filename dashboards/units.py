# SPDX-License-Identifier: Apache-2.0
"""What an expression measures, from the declared units of its metrics: as much of PromQL as our panels use."""

import re
from collections import Counter
from dataclasses import dataclass, replace

from tandem_api import metrics as declared
from tandem_api.metrics import Kind, Metric, Process, Unit

_EXTERNAL = (
    Metric("etcd_disk_wal_fsync_duration_seconds", Kind.HISTOGRAM, Unit.SECONDS, Process.OPERATOR, "Of etcd."),
    Metric("ALERTS", Kind.GAUGE, Unit.NUMBER, Process.OPERATOR, "Of Prometheus."),
)
METRICS = {metric.name: metric for metric in (*declared.ALL, *_EXTERNAL)}
TARGET_LABELS = frozenset({"namespace", "pod", "tandem_rl_dev_job"})
"""Labels that Prometheus adds to every series of a job's pods."""

_TOKEN = re.compile(r'\s*(?:(\d[\d.]*)|([a-zA-Z_]\w*)|("(?:[^"\\]|\\.)*")|(\{[^}]*\})|(\[[^\]]*\])|([-/(),]))')
_AGGREGATIONS = ("sum", "max", "min", "avg", "count")
_DIMENSIONS = {Unit.SECONDS: "s", Unit.TIMESTAMP: "s", Unit.BYTES: "B", Unit.TOKENS: "tok"}
_SHOWN_AS: dict[tuple[tuple[str, int], ...], tuple[str, ...]] = {
    (): ("short",),
    (("s", 1),): ("s",),
    (("B", 1),): ("bytes",),
    (("tok", 1),): ("suffix: tok",),
    (("s", -1), ("tok", 1)): ("suffix: tok/s",),
    (("s", -1),): ("ops", "reqps"),
}


class Mistake(ValueError):
    """An expression that does not fit its metrics."""


@dataclass(frozen=True, slots=True)
class Value:
    """What a part of an expression is.

    ``powers`` of s, B and tok; ``share`` where they cancelled out, or the metric is a ratio. ``raw`` names a counter
    that was not put under rate or increase yet, ``buckets`` a histogram that wants histogram_quantile.
    """

    powers: tuple[tuple[str, int], ...] = ()
    share: bool = False
    labels: frozenset[str] = frozenset()
    raw: str | None = None
    buckets: bool = False

    @property
    def units(self) -> tuple[str, ...]:
        """Grafana's units in which it may be shown."""
        return ("percentunit",) if self.share and not self.powers else _SHOWN_AS.get(self.powers, ())


def value_of(expression: str) -> Value:
    """What an expression measures.

    Raises:
        Mistake: a metric is not declared, a counter is read as a gauge or the other way round, a histogram without
            histogram_quantile, or quantities are subtracted that differ.
    """
    reader = _Reader(expression)
    value = reader.expression()
    if reader.rest:
        raise Mistake(f"cannot read {expression!r} from {reader.rest[0]!r} on")
    return _finished(value)


class _Reader:
    """A recursive descent over the words of one expression."""

    def __init__(self, expression: str) -> None:
        self.rest = [match[0].strip() for match in _TOKEN.finditer(expression)]

    def expression(self) -> Value:
        value = self.term()
        while self.rest and self.rest[0] in ("/", "-", "or"):
            operator, other = self.rest.pop(0), None
            other = _finished(self.term())
            value = _finished(value)
            if operator == "/":
                value = _divided(value, other)
            elif operator == "-" and value.powers != other.powers:
                raise Mistake(f"{value.powers} less {other.powers}")
            value = replace(value, labels=value.labels or other.labels)
        return value

    def term(self) -> Value:
        word = self.rest.pop(0)
        if word[0].isdigit():
            return Value()
        if word == "(":
            return self._closed(self.expression())
        if word in _AGGREGATIONS:
            return self._aggregated(word)
        if self.rest and self.rest[0] == "(":
            return self._called(word)
        return self._selected(word)

    def _aggregated(self, name: str) -> Value:
        labels: frozenset[str] = frozenset()
        if self.rest[0] == "by":
            del self.rest[:2]
            end = self.rest.index(")")
            labels = frozenset(self.rest[:end]) - {","}
            del self.rest[: end + 1]
        self._expect("(")
        value = self._closed(self.expression())
        if value.raw is not None:
            raise Mistake(f"{value.raw} is a counter and not under rate or increase")
        if strange := labels - value.labels - {"le"}:
            raise Mistake(f"by ({', '.join(sorted(strange))}): no such label; there are {sorted(value.labels)}")
        return Value(labels=labels) if name == "count" else replace(value, labels=labels)

    def _called(self, name: str) -> Value:
        self._expect("(")
        if name == "time":
            return self._closed(Value((("s", 1),)))
        if name == "vector":
            return self._closed(self.expression())
        if name == "histogram_quantile":
            self.expression()
            self._expect(",")
            value = self._closed(self.expression())
            if not value.buckets:
                raise Mistake("histogram_quantile needs the buckets of a histogram")
            return replace(value, buckets=False, labels=value.labels - {"le"})
        if name not in ("rate", "increase"):
            raise Mistake(f"{name} is not a function that our panels use")
        value = self._closed(self.expression())
        if value.raw is None:
            raise Mistake(f"{name} of something that is no counter")
        changed = replace(value, raw=None)
        return changed if name == "increase" or value.buckets else _divided(changed, Value((("s", 1),)))

    def _selected(self, name: str) -> Value:
        for kind in ("{", "["):
            if self.rest and self.rest[0].startswith(kind):
                self.rest.pop(0)
        suffix = next((s for s in ("_bucket", "_sum", "_count") if name.endswith(s) and name not in METRICS), "")
        metric = METRICS.get(name.removesuffix(suffix))
        if metric is None:
            raise Mistake(f"{name} is not declared")
        if (metric.kind is Kind.HISTOGRAM) != bool(suffix):
            raise Mistake(f"{name}: {metric.name} is a {metric.kind}")
        dimension = _DIMENSIONS.get(metric.unit) if suffix != "_count" else None
        return Value(
            ((dimension, 1),) if dimension else (),
            metric.unit is Unit.RATIO,
            frozenset(label.name for label in metric.labels) | TARGET_LABELS,
            None if metric.kind is Kind.GAUGE else name,
            suffix == "_bucket",
        )

    def _closed(self, value: Value) -> Value:
        self._expect(")")
        return value

    def _expect(self, word: str) -> None:
        if not self.rest or self.rest[0] != word:
            raise Mistake(f"expected {word!r} before {self.rest[:1]}")
        self.rest.pop(0)


def _finished(value: Value) -> Value:
    if value.raw is not None:
        raise Mistake(f"{value.raw} is a counter and not under rate or increase")
    if value.buckets:
        raise Mistake("the buckets of a histogram need histogram_quantile")
    return value


def _divided(value: Value, other: Value) -> Value:
    powers = Counter(dict(value.powers))
    powers.subtract(dict(other.powers))
    left = tuple(sorted((name, power) for name, power in powers.items() if power))
    cancelled = not left and (bool(value.powers) or not other.powers)
    return replace(value, powers=left, share=value.share or cancelled)
