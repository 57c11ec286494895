# SPDX-License-Identifier: Apache-2.0
"""What the watches told of each job: pods, workloads, warnings, disruptions. The API server has the truth."""

import re
import time
from collections import defaultdict

from tandem_api.labels import HYBRID, JOB_LABEL
from tandem_operator import observed
from tandem_operator.observed import Observed, Pod, Warning, Workload
from tandem_operator.plan.identity import Manifest
from tandem_operator.times import unix
from tandem_operator.workqueue import Key

PLAN_ANNOTATION = "tandem-rl.dev/plan"
_WARNING_SECONDS = 600.0
_LOOKED_TOO_SOON = re.compile(r"failed to sync \w+ cache|object \S+ not registered")
"""The kubelet of a new pod has not heard yet of its ConfigMap or Secret, which may well exist; it looks again."""
_SUMMARY = "Unable to attach or mount volumes"
"""What the kubelet adds every two minutes to the warnings that say why."""


class Observations:
    """Each method takes an object as watched and returns the job that it belongs to, or None."""

    def __init__(self) -> None:
        self._pods: dict[Key, dict[str, Pod]] = defaultdict(dict)
        self._workloads: dict[Key, dict[str, Workload]] = defaultdict(dict)
        self._claims: dict[Key, set[str]] = defaultdict(set)
        self._warnings: dict[tuple[str, str], dict[str, Warning]] = defaultdict(dict)
        self._owners: dict[tuple[str, str], Key] = {}
        self._disruptions: dict[Key, str] = {}

    def pod_changed(self, raw: Manifest) -> Key | None:
        key = owner(raw)
        if key is None:
            return None
        pod = observed.pod(raw)
        self._pods[key][pod.name] = pod
        self._owners[key[0], pod.name] = key
        if pod.component == HYBRID:
            self._note_disruption(key, pod)
        return key

    def pod_gone(self, raw: Manifest) -> Key | None:
        key = owner(raw)
        if key is not None:
            name = raw["metadata"]["name"]
            self._pods[key].pop(name, None)
            self._owners.pop((key[0], name), None)
            self._warnings.pop((key[0], name), None)
        return key

    def workload_changed(self, raw: Manifest) -> Key | None:
        key = owner(raw)
        if key is not None:
            found = observed.workload(raw, PLAN_ANNOTATION)
            self._workloads[key][found.name] = found
            self._owners[key[0], found.name] = key
        return key

    def workload_gone(self, raw: Manifest) -> Key | None:
        key = owner(raw)
        if key is not None:
            self._workloads[key].pop(raw["metadata"]["name"], None)
        return key

    def claim_changed(self, raw: Manifest) -> Key | None:
        """A volume claim: of interest only for the warnings about it."""
        key = owner(raw)
        if key is not None:
            self._claims[key].add(raw["metadata"]["name"])
            self._owners[key[0], raw["metadata"]["name"]] = key
        return None

    def warned(self, raw: Manifest) -> Key | None:
        """A Kubernetes Event of type Warning; only those about objects of jobs are kept."""
        about = raw["involvedObject"]
        place = about.get("namespace", ""), about.get("name", "")
        if place not in self._owners:
            return None
        seen = unix(raw.get("lastTimestamp") or raw.get("eventTime") or raw["metadata"].get("creationTimestamp"))
        reason, message = raw.get("reason", ""), raw.get("message", "")
        if _LOOKED_TOO_SOON.search(message) or (message.startswith(_SUMMARY) and reason in self._warnings[place]):
            return None
        self._warnings[place][reason] = Warning(place[1], reason, message, seen)
        return self._owners[place]

    def _note_disruption(self, key: Key, pod: Pod) -> None:
        if pod.disruption:
            self._disruptions[key] = pod.disruption
        elif pod.unheard:
            self._disruptions[key] = "NodeLost"
        elif pod.deleting and pod.phase == "Running" and not self._suspended(key):
            self._disruptions[key] = "Deleted"

    def _suspended(self, key: Key) -> bool:
        return any(work.component == HYBRID and work.suspended for work in self._workloads[key].values())

    def booked(self, key: Key) -> None:
        """The disruption was counted; the next new start needs another excuse."""
        self._disruptions.pop(key, None)

    def forget(self, key: Key) -> None:
        """The job is gone."""
        for name in (*self._pods.pop(key, {}), *self._workloads.pop(key, {}), *self._claims.pop(key, ())):
            self._owners.pop((key[0], name), None)
            self._warnings.pop((key[0], name), None)
        self._disruptions.pop(key, None)

    def workload(self, key: Key, component: str) -> Workload | None:
        return next((work for work in self._workloads[key].values() if work.component == component), None)

    def of(self, key: Key) -> Observed:
        """What Kubernetes says of a job."""
        pods, workloads = self._pods.get(key, {}), self._workloads.get(key, {})
        recent = time.time() - _WARNING_SECONDS
        warnings = [
            warning
            for name in {*pods, *workloads, *self._claims.get(key, ())}
            for warning in self._warnings.get((key[0], name), {}).values()
            if warning.seen >= recent
        ]
        return Observed(
            pods=tuple(pods.values()),
            workloads=tuple(workloads.values()),
            warnings=tuple(warnings),
            disruption=self._disruptions.get(key),
        )


def owner(raw: Manifest) -> Key | None:
    """The job that an object says it belongs to."""
    metadata = raw["metadata"]
    job = metadata.get("labels", {}).get(JOB_LABEL)
    return (metadata["namespace"], job) if job else None
