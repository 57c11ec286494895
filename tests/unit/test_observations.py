# SPDX-License-Identifier: Apache-2.0
"""Of the warnings about a pod, the operator tells the one that says what is wrong."""

import time
from datetime import UTC, datetime
from typing import Any

import pytest

from tandem_api.labels import COMPONENT_LABEL, HYBRID, JOB_LABEL
from tandem_operator.observations import Observations

KEY = "research", "sums"
POD = "sums-hybrid-0"
CAUSE = 'MountVolume.SetUp failed for volume "mine" : configmap "prompts" not found'
SUMMARY = "Unable to attach or mount volumes: unmounted volumes=[mine]: timed out waiting for the condition"
TOO_SOON = tuple(
    f'MountVolume.SetUp failed for volume "mine" : {why}'
    for why in (
        "failed to sync configmap cache: timed out waiting for the condition",
        "failed to sync secret cache: timed out waiting for the condition",
        'object "research"/"prompts" not registered',
    )
)


@pytest.fixture
def seen() -> Observations:
    """It knows of one pod that waits for a volume."""
    observations = Observations()
    metadata = {"namespace": KEY[0], "name": POD, "uid": "1", "labels": {JOB_LABEL: KEY[1]}}
    observations.pod_changed({"metadata": metadata, "spec": {"containers": []}, "status": {"phase": "Pending"}})
    return observations


def warning(message: str) -> dict[str, Any]:
    return {
        "metadata": {},
        "involvedObject": {"namespace": KEY[0], "name": POD},
        "reason": "FailedMount",
        "message": message,
        "lastTimestamp": datetime.fromtimestamp(time.time(), UTC).isoformat(),
    }


def messages(seen: Observations) -> list[str]:
    return [warning.message for warning in seen.of(KEY).warnings]


@pytest.mark.parametrize("message", TOO_SOON)
def test_a_kubelet_that_looked_before_it_had_heard_of_an_object_says_nothing_of_it(
    seen: Observations, message: str
) -> None:
    assert seen.warned(warning(message)) is None
    assert messages(seen) == []


@pytest.mark.parametrize("later", [SUMMARY, *TOO_SOON])
def test_a_warning_that_names_the_cause_outlives_those_that_do_not(seen: Observations, later: str) -> None:
    assert seen.warned(warning(CAUSE)) == KEY
    assert seen.warned(warning(later)) is None
    assert messages(seen) == [CAUSE]


def test_a_summary_is_told_where_nothing_better_is_known_and_gives_way_to_the_cause(seen: Observations) -> None:
    assert seen.warned(warning(SUMMARY)) == KEY
    assert messages(seen) == [SUMMARY]
    seen.warned(warning(CAUSE))
    assert messages(seen) == [CAUSE]


def test_a_node_that_is_not_heard_of_is_no_failure_of_the_job(seen: Observations) -> None:
    metadata = {"namespace": KEY[0], "name": POD, "labels": {JOB_LABEL: KEY[1], COMPONENT_LABEL: HYBRID}}
    conditions = [{"type": "ContainersReady", "status": "True"}, {"type": "Ready", "status": "False"}]
    seen.pod_changed({"metadata": metadata, "spec": {"nodeName": "gpu-7"}, "status": {"conditions": conditions}})
    assert seen.of(KEY).disruption == "NodeLost"
    seen.pod_gone({"metadata": metadata})
    assert seen.of(KEY).disruption == "NodeLost"
    seen.booked(KEY)
    assert seen.of(KEY).disruption is None
