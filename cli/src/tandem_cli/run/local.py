# SPDX-License-Identifier: Apache-2.0
"""Puts a run together: addresses, etcd, the plan's objects, their pods, and the driver."""

import os
import secrets
from collections.abc import Sequence
from pathlib import Path

from tandem_api.environment import COLLECTOR, Secrets
from tandem_api.rljob import RLJobObject
from tandem_cli.local.etcd import embedded_etcd
from tandem_cli.local.kubelet import Kubelet
from tandem_cli.local.manifests import Manifest, Manifests
from tandem_cli.local.network import Subnet
from tandem_cli.local.node import Node, Scratch
from tandem_cli.run.directory import RunDirectory
from tandem_cli.run.display import Display
from tandem_cli.run.driver import Driver, Ending
from tandem_cli.run.interrupts import Interrupts
from tandem_operator.plan import Etcd, Images, Platform, identity, plan
from tandem_operator.plan.storage import checkpoint_claim
from tandem_phases.store import Store

_GRACE_SECONDS = 30


async def run_locally(
    job: RLJobObject, others: Sequence[Manifest], directory: RunDirectory, display: Display
) -> Ending:
    """Run a job in ``directory``, whose lock is held, to its end. ``others`` are the further objects of its file.

    Raises:
        UserError: an object refers to something that is not there.
        RunFailed: this machine cannot run it.
    """
    interrupts = Interrupts()
    driver = Driver(job, directory, display, interrupts)
    with Subnet() as subnet, Scratch() as scratch, interrupts.heard(driver.changed.set):
        node = _node(job, directory, subnet, scratch, driver)
        async with embedded_etcd(node, directory.etcd) as endpoint:
            objects = Manifests([*others, *plan(job, _platform(endpoint), Secrets(secrets.token_urlsafe(32)))])
            async with Kubelet(node, objects) as kubelet, Store((endpoint,)) as store:
                return await driver.run(kubelet, store)


def _node(job: RLJobObject, directory: RunDirectory, subnet: Subnet, scratch: Scratch, driver: Driver) -> Node:
    return Node(
        subnet,
        scratch,
        logs=directory.logs,
        volumes=directory.volumes,
        claims={
            identity.orchestrator_name(job.metadata.name): directory.path,
            checkpoint_claim(job): directory.checkpoints,
        },
        environment={
            # As in the images: what a program has printed is in its log when it is killed.
            "PYTHONUNBUFFERED": "1",
            # Every pod has a loopback address; collective libraries look for an interface.
            "GLOO_SOCKET_IFNAME": "lo",
            "NCCL_SOCKET_IFNAME": "lo",
            # Containers have a HOME of their own; what this user downloaded already is not fetched again.
            "HF_HOME": os.environ.get("HF_HOME", str(Path.home() / ".cache" / "huggingface")),
        },
        keep_open=(directory.lock,),
        on_exit=driver.on_exit,
        on_change=driver.changed.set,
    )


def _platform(endpoint: str) -> Platform:
    # Images name nothing here: a container's command is run by this interpreter.
    images = Images("local", "local", "local")
    collector = os.environ.get(COLLECTOR)
    return Platform(images, Etcd((endpoint,)), trace_collector=collector, termination_grace_seconds=_GRACE_SECONDS)
