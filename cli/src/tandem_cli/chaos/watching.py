# SPDX-License-Identifier: Apache-2.0
"""Runs inside a job's container: ``python -c SOURCE``, SOURCE being this file. Writes the job's phase and leader, a
line of JSON whenever one of them changes, and takes a lease away for each line that it reads: ``leader``, or the index
of a member. Its first line says that it watches. It ends with its standard input.

Etcd lets a job's own processes in and nobody else, so what is to be read there is read with their credentials.
"""

import asyncio
import json
import sys
from collections.abc import Mapping
from typing import Any

import structlog

from tandem_api.environment import Environment
from tandem_api.keys import JobKeys
from tandem_phases.mirror import Mirror
from tandem_phases.store import Entry, Store


async def tell(mirror: Mirror, keys: JobKeys) -> None:
    said = None

    def news(entries: Mapping[str, Entry]) -> tuple[str, int | None] | None:
        phase, leader = entries.get(keys.phase), entries.get(keys.leader)
        now = (phase.value, leader.created if leader else None) if phase else None
        return now if now != said else None

    while True:
        said = await mirror.until(news)
        say(record=json.loads(said[0]), leader=said[1])


async def obey(store: Store, mirror: Mirror, keys: JobKeys) -> None:
    while line := (await asyncio.to_thread(sys.stdin.readline)).strip():
        entry = mirror.entries.get(keys.leader if line == "leader" else keys.member(int(line)))
        if entry is None or not entry.lease:
            say(refused="nobody leads" if line == "leader" else f"pod {line} is no member")
        else:
            await store.revoke(entry.lease)
            say(revoked=line)


def say(**said: Any) -> None:
    sys.stdout.write(json.dumps(said) + "\n")
    sys.stdout.flush()


async def main() -> None:
    # Standard output is for what is said here.
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    env = Environment()
    job, secrets = env.job(), env.secrets()
    keys = JobKeys(job.namespace, job.name, job.uid)
    credentials = secrets.etcd_username, secrets.etcd_password
    async with (
        Store(env.etcd_endpoints(), *credentials, authorities=env.etcd_authorities()) as store,
        Mirror(store, keys.phase, keys.leader, keys.members) as mirror,
    ):
        say(watching=keys.prefix)
        telling = asyncio.create_task(tell(mirror, keys))
        await obey(store, mirror, keys)
        telling.cancel()


if __name__ == "__main__":
    asyncio.run(main())
