# SPDX-License-Identifier: Apache-2.0
"""The life of one pod: sidecars and init containers first, then the main containers, then the sidecars' end."""

import asyncio
import time
from collections.abc import Callable, Mapping

from tandem_api.errors import Problem, UserError
from tandem_cli.local.container import Container, launch
from tandem_cli.local.environment import PodFacts
from tandem_cli.local.manifests import Manifest, Manifests, dig
from tandem_cli.local.node import Node
from tandem_cli.local.volumes import Volumes

_RESTARTS: Mapping[str, Callable[[int], bool]] = {
    "Always": lambda _: True,
    "OnFailure": lambda status: status != 0,
    "Never": lambda _: False,
}
_DEFAULT_GRACE = 30
# What a kubelet leaves a sidecar when the main containers have used up the pod's grace period.
_LEAST_GRACE = 2.0


class Pod:
    """One pod, from its template.

    Init containers run in order: a plain one to its end, one with ``restartPolicy: Always`` (a sidecar) until its
    startup probe passes, and on beside the main containers. Each container restarts by itself. When the main
    containers have ended, or :meth:`stop` was called, what still runs gets SIGTERM, sidecars last and in reverse order.

    >>> pod = Pod(template, facts, 0, node, objects, hosts)
    >>> succeeded = await pod.run()
    """

    def __init__(
        self,
        template: Manifest,
        facts: PodFacts,
        number: int,
        node: Node,
        objects: Manifests,
        hosts: Mapping[str, str],
    ) -> None:
        spec: Manifest = template["spec"]
        self.facts = facts
        self._grace = float(dig(spec, "terminationGracePeriodSeconds", default=_DEFAULT_GRACE))
        policy = spec.get("restartPolicy", "Always")
        if policy not in _RESTARTS:
            raise UserError(Problem("restartPolicy", f"must be one of {', '.join(_RESTARTS)}; found {policy}"))
        volumes = Volumes(spec, number, node, objects)

        def build(item: Manifest, policy: str) -> Container:
            return Container(item, facts, launch(item, facts, volumes, objects, hosts), node, _RESTARTS[policy])

        to_the_end = "Never" if policy == "Never" else "OnFailure"
        self._inits = [
            (build(item, item.get("restartPolicy", to_the_end)), item.get("restartPolicy") == "Always")
            for item in spec.get("initContainers") or []
        ]
        self._mains = [build(item, policy) for item in spec["containers"]]
        self._stop = asyncio.Event()
        self._succeeded: bool | None = None

    @property
    def containers(self) -> list[Container]:
        """All containers, in the order they start."""
        return [container for container, _ in self._inits] + self._mains

    @property
    def manifest(self) -> Manifest:
        """The pod as the API server would return it: metadata and status."""
        inits = [container.status for container, _ in self._inits]
        mains = [container.status for container in self._mains]
        lasting = [container for container, is_sidecar in self._inits if is_sidecar] + self._mains
        ready = self._succeeded is None and all(container.status["ready"] for container in lasting)
        return {
            "kind": "Pod",
            "metadata": {
                "name": self.facts.name,
                "namespace": self.facts.namespace,
                "uid": self.facts.uid,
                "labels": dict(self.facts.labels),
                "annotations": dict(self.facts.annotations),
            },
            "status": {
                "phase": self._phase(inits + mains),
                "podIP": self.facts.address,
                "conditions": [
                    {"type": "PodScheduled", "status": "True"},
                    {"type": "Ready", "status": str(ready)},
                ],
                "initContainerStatuses": inits,
                "containerStatuses": mains,
            },
        }

    def _phase(self, statuses: list[Manifest]) -> str:
        if self._succeeded is not None:
            return "Succeeded" if self._succeeded else "Failed"
        return "Running" if any("running" in status["state"] for status in statuses) else "Pending"

    async def run(self) -> bool:
        """Run to the end; whether every main container succeeded."""
        stopping = asyncio.create_task(self._stop.wait())
        sidecars: dict[Container, asyncio.Task[int]] = {}
        working = asyncio.create_task(self._work(sidecars))
        try:
            await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
            await self._wind_down()
            self._succeeded = await working
            return self._succeeded
        except BaseException:
            for container in self.containers:
                container.kill()
            raise
        finally:
            stopping.cancel()
            await asyncio.gather(working, *sidecars.values(), return_exceptions=True)

    def stop(self) -> None:
        """Begin to end the pod; :meth:`run` returns when it has ended."""
        self._stop.set()

    async def _work(self, sidecars: dict[Container, asyncio.Task[int]]) -> bool:
        for container, is_sidecar in self._inits:
            if self._stop.is_set():
                return False
            if not is_sidecar:
                if await container.run() != 0:
                    return False
                continue
            sidecars[container] = asyncio.create_task(container.run())
            if not await self._came_up(container, sidecars[container]):
                return False
        if self._stop.is_set():
            return False
        statuses = await asyncio.gather(*(container.run() for container in self._mains))
        return not any(statuses)

    async def _came_up(self, container: Container, running: asyncio.Task[int]) -> bool:
        up = asyncio.create_task(container.started.wait())
        await asyncio.wait({up, running}, return_when=asyncio.FIRST_COMPLETED)
        up.cancel()
        return not running.done()

    async def _wind_down(self) -> None:
        """End what still runs within one grace period for all."""
        end = time.monotonic() + self._grace
        await asyncio.gather(*(container.stop(end - time.monotonic()) for container in self._mains))
        for container, _ in reversed(self._inits):
            await container.stop(max(end - time.monotonic(), _LEAST_GRACE))
