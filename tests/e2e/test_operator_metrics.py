# SPDX-License-Identifier: Apache-2.0
"""The dashboard Operator on what a real Prometheus scraped of a real operator, at work before a real API server."""

import asyncio
import time
from pathlib import Path

from dashboards.query import Answer, answers
from etcd_server import EtcdServer
from operator_process import OperatorProcess, World
from prometheus_server import prometheus
from waiting import eventually

SECONDS = 240.0
EMPTY = {"Tandem / Operator / Failed API requests", "Tandem / Operator / etcd's disk"}
"""Nothing need fail, and the tests' etcd does not sync to disk."""


async def test_every_panel_of_the_operator_has_data(
    world: World, operator: OperatorProcess, etcd: EtcdServer, tmp_path: Path
) -> None:
    directory = tmp_path / "prometheus"
    await asyncio.to_thread(directory.mkdir)
    with prometheus(directory) as server:
        labels = {"namespace": world.namespace}
        server.target({operator.address: labels | {"pod": "operator"}, etcd.endpoints[0]: labels | {"pod": "etcd"}})
        await world.submit()
        await world.planned()

        def ask() -> list[Answer]:
            every = answers(server.url, world.namespace, "sums", time.time())
            return [
                answer for answer in every if answer.where.startswith(("Tandem / Operator", "alert TandemOperator"))
            ]

        async def all_have_data() -> bool:
            panels = [answer for answer in await asyncio.to_thread(ask) if not answer.is_alert]
            assert [answer for answer in panels if answer.error] == []
            return all(answer.series for answer in panels if answer.where not in EMPTY)

        await eventually(all_have_data, SECONDS)
        assert [answer.where for answer in ask() if answer.is_alert and answer.series] == []
