# SPDX-License-Identifier: Apache-2.0
"""Logs of a job's containers: one stream in the order of time, readable, with what is not ours left as it is."""

import json
from typing import Any

from click import unstyle
from hypothesis import given
from hypothesis import strategies as st
from operator_fixture import manifest

from tandem_cli.cluster.lines import Line, Source, rendered
from tandem_cli.cluster.logs import interleaved, sources
from tandem_cli.cluster.objects import Job, Pod

SOURCE = Source("sums-orchestrator-x", "orchestrator", "orchestrator", 0)
JOB = Job.of(manifest() | {"status": {}})


def line(text: str, time: str = "2026-11-22T07:00:01.5Z", source: Source = SOURCE) -> Line:
    return Line.of(f"{time} {text}".encode(), source)


def shown(text: str) -> str:
    return unstyle(rendered(line(text), len(SOURCE.label)))


def pod(name: str, component: str, index: int | None, containers: tuple[str, ...]) -> Pod:
    raw: dict[str, Any] = {
        "metadata": {
            "name": name,
            "creationTimestamp": "2026-11-22T07:00:00Z",
            "labels": {"app.kubernetes.io/component": component},
        },
        "spec": {"containers": [{"name": one} for one in containers]},
    }
    if index is not None:
        raw["metadata"]["labels"]["batch.kubernetes.io/job-completion-index"] = str(index)
    return Pod.of(raw)


def test_a_structured_line_is_a_sentence_with_its_fields() -> None:
    fields = {
        "event": "engine is ready",
        "seconds": 3.21234567,
        "why": "a b",
        "error": None,
        "level": "info",
        "timestamp": "t",
    }
    assert shown(json.dumps(fields)) == '07:00:01.500 orchestrator engine is ready  seconds=3.21235 why="a b"'


def test_an_exception_stands_below_its_line() -> None:
    first, second, third = shown(json.dumps({"event": "failed", "exception": "Traceback\n  boom"})).splitlines()
    assert first.endswith("orchestrator failed")
    assert second.strip() == "Traceback"
    assert third.index("boom") == second.index("Traceback") + 2


def test_what_is_no_structured_line_stays_as_it_is() -> None:
    for text in ("step 1 of 8", "[1, 2]", '{"loss": 1}', "{broken", ""):
        assert shown(text) == f"07:00:01.500 orchestrator {text}"


times = st.integers(0, 10**12)


@given(st.lists(st.lists(times), min_size=1, max_size=5))
def test_interleaving_loses_nothing_and_keeps_each_logs_own_order(logs: list[list[int]]) -> None:
    def read(number: int, log: list[int]) -> list[Line]:
        source = Source(f"pod-{number}", "c", f"pod-{number}", number)
        stamps = (f"2026-11-22T07:00:{at // 10**11:02}.{at % 10**9:09}Z" for at in log)
        return [line(str(place), stamp, source) for place, stamp in enumerate(stamps)]

    found = list(interleaved([read(number, log) for number, log in enumerate(logs)]))
    assert [one.time for one in found] == sorted(one.time for one in found)
    for number, log in enumerate(logs):
        assert [one.text for one in found if one.source.number == number] == [str(place) for place in range(len(log))]


def test_times_with_and_without_fractions_sort_as_times_do() -> None:
    ordered = ["2026-11-22T07:00:01Z", "2026-11-22T07:00:01.05Z", "2026-11-22T07:00:01.5Z", "2026-11-22T07:00:02Z"]
    read = [line("", time).time for time in ordered]
    assert read == sorted(read)


def test_labels_are_as_short_as_tells_containers_apart() -> None:
    orchestrator = pod("sums-orchestrator-abcde", "orchestrator", None, ("orchestrator",))
    first, again = (pod(f"sums-hybrid-0-{suffix}", "hybrid", 0, ("engine", "trainer")) for suffix in ("aaaaa", "bbbbb"))
    labels = [source.label for source in sources(JOB, [orchestrator, first], None)]
    assert labels == ["orchestrator", "hybrid-0/engine", "hybrid-0/trainer"]
    both = [source.label for source in sources(JOB, [first, again], "trainer")]
    assert both == ["hybrid-0-aaaaa/trainer", "hybrid-0-bbbbb/trainer"]
