# SPDX-License-Identifier: Apache-2.0
"""The operator process: kopf's handlers, and how the parts are put together."""

import asyncio
import logging
import os
import socket
import sys
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, cast

import kopf
import structlog
import uvloop

from tandem_api import GROUP, VERSION, logs
from tandem_api.errors import Problem, TandemError, UserError
from tandem_operator.cluster import Cluster
from tandem_operator.configuration import CONFIG_FILE, IDENTITY, Configuration, etcd_credentials
from tandem_operator.controller import Controller
from tandem_operator.election import Elector
from tandem_operator.etcd_accounts import Accounts
from tandem_operator.server import Health, serve
from tandem_phases.store import Store

log = structlog.get_logger()

DEFAULT_CONFIG = "/etc/tandem-operator/operator.json"


def login() -> kopf.ConnectionInfo:
    """The pod's service account, or else the kubeconfig, which the kubernetes package reads with all its plugins.

    Raises:
        UserError: there is neither.
    """
    settings = kopf.OperatorSettings()
    try:
        found = kopf.login_with_service_account(settings=settings) or kopf.login_via_client(
            settings=settings, logger=logging.getLogger(__name__)
        )
    except kopf.LoginError as error:
        raise UserError(Problem("KUBECONFIG", f"leads to no cluster, and this is no pod: {error}")) from error
    if found is None:
        raise UserError(Problem("KUBECONFIG", "is not set, and this is no pod with a service account; set it"))
    return found


def handlers(controller: Controller, leave: Callable[[], Awaitable[None]]) -> kopf.OperatorRegistry:
    """kopf watches RLJobs and hands each change on; it writes nothing to them, no annotation and no finalizer.

    ``leave`` is awaited when kopf begins to stop.
    """
    registry = kopf.OperatorRegistry()

    @kopf.on.login(registry=registry)
    def on_login(**_: Any) -> kopf.ConnectionInfo:
        return login()

    @kopf.on.event(GROUP, VERSION, "rljobs", registry=registry)
    def on_rljob(event: kopf.RawEvent, **_: Any) -> None:
        raw = dict(event["object"])
        if event["type"] == "DELETED":
            controller.gone(raw)
        else:
            controller.seen(raw)

    @kopf.on.cleanup(registry=registry)
    async def on_cleanup(**_: Any) -> None:
        await leave()

    return registry


class _NoDiffs(kopf.DiffBaseStorage):
    """kopf compares objects for handlers of kinds that there are none of here; the copies would be half of its work."""

    def build(self, *, body: kopf.Body, extra_fields: Any = None) -> kopf.BodyEssence:
        return cast(kopf.BodyEssence, {})

    def fetch(self, *, body: kopf.Body) -> None:
        return None

    def store(self, *, body: kopf.Body, patch: kopf.Patch, essence: kopf.BodyEssence) -> None:
        raise AssertionError("kopf has nothing to store for handlers of events")


async def watch_rljobs(
    registry: kopf.OperatorRegistry, namespaces: tuple[str, ...], ready: asyncio.Event, stop: asyncio.Event
) -> None:
    """Run kopf until SIGTERM, SIGINT or ``stop``."""
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False
    settings.scanning.disabled = True
    settings.peering.standalone = True
    settings.persistence.diffbase_storage = _NoDiffs()
    await kopf.operator(
        registry=registry,
        settings=settings,
        clusterwide=not namespaces,
        namespaces=namespaces,
        ready_flag=ready,
        stop_flag=stop,
    )


async def lead_when_elected(controller: Controller, elector: Elector, workers: int, stop: asyncio.Event) -> None:
    """Act while holding the Lease. Once it is lost the process ends: a fresh one holds no stale thoughts."""
    await elector.acquire()
    leading = asyncio.create_task(controller.lead(workers), name="leading")
    keeping = asyncio.create_task(elector.keep(), name="lease")
    try:
        await asyncio.wait([leading, keeping], return_when=asyncio.FIRST_COMPLETED)
        if leading.done():
            leading.result()
    finally:
        leading.cancel()
        keeping.cancel()
        await asyncio.wait([leading, keeping])
        stop.set()


async def operate(configuration: Configuration, identity: str) -> int:
    """Run until told to stop; returns the exit code, 1 if the Lease was lost."""
    health, stop = Health(), asyncio.Event()
    credentials = etcd_credentials()
    async with AsyncExitStack() as stack:
        cluster = await stack.enter_async_context(Cluster(login))
        etcd = configuration.etcd
        username, password = credentials or (None, None)
        store = await stack.enter_async_context(
            Store(etcd.endpoints, username, password, authorities=etcd.authorities_file)
        )
        accounts = None
        if etcd.auth and credentials:
            accounts = await stack.enter_async_context(Accounts(etcd.endpoints, *credentials, etcd.authorities_file))
        platform = configuration.platform(await cluster.discover())
        log.info("knows the cluster", capabilities=str(platform.capabilities))
        controller = Controller(cluster, store, accounts, platform, configuration.namespaces)
        await stack.enter_async_context(serve(configuration.port, health, controller.count_phases))
        elector = Elector(cluster, configuration.leader_election, identity)
        leading = asyncio.create_task(
            lead_when_elected(controller, elector, configuration.workers, stop), name="leadership"
        )
        lost = False

        async def leave() -> None:
            """Another replica may lead at once, while this process still winds up."""
            nonlocal lost
            lost = stop.is_set()
            health.ready.clear()
            leading.cancel()
            await asyncio.wait([leading])
            await elector.release()

        await watch_rljobs(handlers(controller, leave), configuration.namespaces, health.ready, stop)
    if not leading.cancelled() and (error := leading.exception()) is not None:
        log.error("stopped by an error", exc_info=error)
        return 1
    log.info("stopped", lost_the_lease=lost)
    return 1 if lost else 0


class _ToStructlog(logging.Handler):
    """Libraries' own log lines in the format of ours."""

    def emit(self, record: logging.LogRecord) -> None:
        text = self.format(record)
        log.log(record.levelno, text, logger=record.name)


def run() -> None:
    """Console entry point."""
    logs.configure(program="operator")
    logging.basicConfig(level=logging.WARNING, handlers=[_ToStructlog()])
    identity = os.environ.get(IDENTITY) or socket.gethostname()
    try:
        configuration = Configuration.read(Path(os.environ.get(CONFIG_FILE, DEFAULT_CONFIG)))
        code = asyncio.run(operate(configuration, identity), loop_factory=uvloop.new_event_loop)
    except UserError as error:
        log.error("cannot start", problem=str(error))
        code = 2
    except TandemError as error:
        log.error("stopped by an error", problem=str(error))
        code = 1
    sys.exit(code)


if __name__ == "__main__":
    run()
