# SPDX-License-Identifier: Apache-2.0
"""Puts the sidecar together from its environment: ``python -m tandem_sidecar``."""

import asyncio
import sys
import uuid
from contextlib import AsyncExitStack

import structlog
from aiohttp import web

from tandem_api import environment as names
from tandem_api import tls
from tandem_api.environment import Environment
from tandem_api.errors import TandemError
from tandem_api.exposition import registry, served
from tandem_api.keys import JobKeys
from tandem_api.logs import configure
from tandem_api.messages.phases import Member
from tandem_api.model_source import model_directory
from tandem_api.termination import until_terminated
from tandem_phases.store import Store
from tandem_sidecar.engine import Engine
from tandem_sidecar.memory import DeviceMemory
from tandem_sidecar.metrics import MemberMetrics
from tandem_sidecar.processes import adopt_orphans
from tandem_sidecar.rollouts import Rollouts
from tandem_sidecar.switch import Switch
from tandem_sidecar.trainer_client import TrainerClient
from tandem_sidecar.work_client import WorkClient
from tandem_sidecar.worker import Worker

log = structlog.get_logger()


async def serve_health(address: str) -> web.AppRunner:
    """``GET /healthz``: this process is up. It answers long before vLLM does, so that the trainer starts beside it."""

    async def healthz(_: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    app = web.Application(client_max_size=1024)
    app.router.add_get("/healthz", healthz)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, address, names.SIDECAR_PORT).start()
    return runner


def member_of(env: Environment) -> Member:
    """This process as a member of its job; the next one of the same pod is another."""
    return Member(
        index=env.number(names.COMPLETION_INDEX),
        pod=env.text(names.POD_NAME),
        uid=env.text(names.POD_UID),
        incarnation=uuid.uuid4().hex,
        address=env.text(names.POD_IP),
    )


async def sidecar(env: Environment) -> None:
    """Run until SIGTERM: join the job, take part in its phases, end the engine."""
    job, secrets = env.job(), env.secrets()
    member = member_of(env)
    run_dir = env.path(names.RUN_DIR)
    async with AsyncExitStack() as stack:
        runner = await serve_health(member.address)
        stack.push_async_callback(runner.cleanup)
        model = await asyncio.to_thread(model_directory, job.spec.model, run_dir / "model")
        collected = registry()
        metrics = MemberMetrics(collected)
        stack.enter_context(served(member.address, collected))
        credentials = secrets.etcd_username, secrets.etcd_password
        store = await stack.enter_async_context(
            Store(env.etcd_endpoints(), *credentials, authorities=env.etcd_authorities())
        )
        context = tls.member_context(env.tls_directory())
        work = await stack.enter_async_context(WorkClient(env.text(names.ORCHESTRATOR_URL), secrets.token, context))
        engine = Engine(job, model, run_dir, metrics)
        stack.push_async_callback(engine.close)
        most, repetition = job.spec.engine.max_concurrent, job.spec.rollout.repetition
        rollouts = Rollouts(member.index, member.incarnation, engine.client, work, most, metrics, repetition)
        memory = DeviceMemory() if job.spec.hybrid.accelerators else None
        trainer = TrainerClient(run_dir, job.spec.ranks_per_pod)
        switch = Switch(job, run_dir, model, engine, trainer, rollouts, memory)
        worker = Worker(store, JobKeys(job.namespace, job.name, job.uid), member, switch, metrics)
        await until_terminated(worker.run())
        await switch.drain_if_alive()


def run() -> None:
    env = Environment()
    configure(process="sidecar", pod=env.text(names.POD_NAME))
    adopt_orphans()
    try:
        asyncio.run(sidecar(env))
    except TandemError as error:
        log.error("the sidecar ends", error=str(error))
        sys.exit(1)
