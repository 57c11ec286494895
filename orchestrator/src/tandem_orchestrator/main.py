# SPDX-License-Identifier: Apache-2.0
"""Puts the orchestrator together from its environment: ``python -m tandem_orchestrator``."""

import asyncio
import sys
import uuid
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import structlog
from aiohttp import web

from tandem_api import environment as names
from tandem_api import tls
from tandem_api.environment import Environment, Job
from tandem_api.errors import TandemError, UserError
from tandem_api.exposition import registry, served
from tandem_api.logs import configure
from tandem_api.messages.phases import PhaseName, PhaseRecord
from tandem_api.termination import until_terminated
from tandem_orchestrator.driver import Driver
from tandem_orchestrator.http import server
from tandem_orchestrator.metrics import RunMetrics
from tandem_orchestrator.run import Run
from tandem_phases.store import Store

if TYPE_CHECKING:
    from tandem_orchestrator.traces import Traces

log = structlog.get_logger()

EXIT_FAILED = 1
EXIT_TERMINATED = 143
"""As a shell says it of SIGTERM. With 0 the Job of an orchestrator whose pod was evicted would be complete."""
_MOST_LAST_WORDS = 4096


async def orchestrator(env: Environment) -> PhaseRecord | None:
    """Drive the job to its end; ``None`` if SIGTERM came first. What was acknowledged is on disk either way."""
    job, secrets = env.job(), env.secrets()
    async with AsyncExitStack() as stack:
        run = Run(job, env.path(names.STATE_DIR))
        await run.prepare()
        collected = registry()
        metrics = RunMetrics(job.spec, env.path(names.STATE_DIR), collected)
        stack.enter_context(served(env.text(names.POD_IP), collected))
        stack.push_async_callback(run.stop)
        runner = server(run, secrets.token)
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        context = tls.server_context(env.tls_directory())
        await web.TCPSite(runner, env.text(names.POD_IP), names.ORCHESTRATOR_PORT, ssl_context=context).start()
        credentials = secrets.etcd_username, secrets.etcd_password
        store = await stack.enter_async_context(
            Store(env.etcd_endpoints(), *credentials, authorities=env.etcd_authorities())
        )
        identity = f"{env.text(names.POD_NAME)}/{uuid.uuid4().hex}"
        traces = await traced(job, env, stack)
        return await until_terminated(Driver(job, run, store, identity, metrics, traces).drive())


async def traced(job: Job, env: Environment, stack: AsyncExitStack) -> "Traces | None":
    """Traces for the collector that the environment names, if it does."""
    if not env.collector_named:
        return None
    from tandem_orchestrator import traces

    made = traces.collected(job, env.path(names.STATE_DIR))
    stack.push_async_callback(asyncio.to_thread, made.close)
    return made


def run() -> None:
    env = Environment()
    configure(process="orchestrator", pod=env.text(names.POD_NAME))
    try:
        last = asyncio.run(orchestrator(env))
    except TandemError as error:
        log.error("the orchestrator ends", error=str(error))
        if not isinstance(error, UserError):
            sys.exit(EXIT_FAILED)
        say_last(str(error), names.TERMINATION_LOG)
        sys.exit(names.EXIT_USER_ERROR)
    if last is None:
        sys.exit(EXIT_TERMINATED)
    if last.name is PhaseName.FAILED:
        log.error("the run failed", reason=last.reason)
        sys.exit(EXIT_FAILED)


def say_last(message: str, termination_log: Path) -> None:
    """Leave ``message`` for the operator, who fails the job with it. The log has all of it."""
    if termination_log.exists():
        termination_log.write_bytes(message.encode()[:_MOST_LAST_WORDS])
