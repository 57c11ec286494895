# SPDX-License-Identifier: Apache-2.0
"""The operator and a real etcd: accounts that reach one job each, and one watch over all jobs."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme
from etcd_server import EtcdServer, etcd_server
from structlog.testing import capture_logs
from waiting import DEADLINE, reached

from tandem_api.errors import TryAgain
from tandem_api.keys import JobKeys
from tandem_api.messages.phases import Desired, DesiredState, PhaseName, PhaseRecord, Progress
from tandem_operator import etcd
from tandem_operator.etcd import JobStates
from tandem_operator.etcd_accounts import AccountError, Accounts, Protection, account_name
from tandem_phases.store import Store

ROOT = ("root", "r00t")
MINE, THEIRS = JobKeys("team", "mine", "uid-1"), JobKeys("team", "theirs", "uid-2")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EtcdServer]:
    with etcd_server(tmp_path) as running:
        yield running


async def test_a_new_etcd_asks_for_passwords_once_the_operator_has_seen_to_it(server: EtcdServer) -> None:
    async with Accounts(server.endpoints, *ROOT) as accounts:
        await accounts.enable()
        await accounts.enable()
    async with Store(server.endpoints) as anonymous:
        with pytest.raises(TryAgain):
            await anonymous.get(MINE.phase)
    async with Accounts(server.endpoints, "root", "wrong") as intruder:
        with pytest.raises(AccountError):
            await intruder.enable()


async def test_a_jobs_user_reaches_its_own_keys_and_no_others(server: EtcdServer) -> None:
    async with Accounts(server.endpoints, *ROOT) as accounts:
        await accounts.enable()
        await accounts.add(MINE, "secret")
        await accounts.add(MINE, "secret")
        async with Store(server.endpoints, account_name(MINE.uid), "secret") as store:
            await store.put(MINE.member(0), "here")
            found, revision = await store.list(MINE.prefix)
            assert [entry.value for entry in found.values()] == ["here"]
            async with store.watch(MINE.prefix, revision) as changes:
                await store.put(MINE.phase, "{}")
                assert (await anext(changes)).key == MINE.phase
            for forbidden in (THEIRS.phase, MINE.prefix[:-1] + "0", "/tandem/v1/"):
                with pytest.raises(TryAgain, match="permission denied"):
                    await store.put(forbidden, "x")
                with pytest.raises(TryAgain, match="permission denied"):
                    await store.list(forbidden)


async def test_a_removed_account_is_gone_and_removing_it_again_is_fine(server: EtcdServer) -> None:
    async with Accounts(server.endpoints, *ROOT) as accounts:
        await accounts.enable()
        await accounts.add(MINE, "secret")
        await accounts.remove(MINE.uid)
        await accounts.remove(MINE.uid)
        async with Store(server.endpoints, account_name(MINE.uid), "secret") as store:
            with pytest.raises(TryAgain):
                await store.get(MINE.phase)


async def test_over_tls_an_etcd_is_believed_only_by_those_who_trust_its_authority(tmp_path: Path) -> None:
    authority, stranger = trustme.CA(), trustme.CA()
    certificate, trusted, mistaken = (tmp_path / name for name in ("server.pem", "ca.pem", "stranger.pem"))
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(certificate))
    authority.cert_pem.write_to_path(str(trusted))
    stranger.cert_pem.write_to_path(str(mistaken))
    with etcd_server(tmp_path, certificate) as server:
        async with Accounts(server.endpoints, *ROOT, authorities=trusted) as accounts:
            await accounts.enable()
            await accounts.add(MINE, "secret")
        user = account_name(MINE.uid), "secret"
        async with Store(server.endpoints, *user, authorities=trusted) as store:
            await store.put(MINE.phase, "{}")
            async with store.watch(MINE.prefix, 0) as changes:
                assert (await anext(changes)).key == MINE.phase
            lease = await store.lease(60.0)
            assert await store.renew(lease.id) == 60
            await lease.revoke()
        for authorities in (mistaken, None):
            async with Store(server.endpoints, *user, timeout=1.0, authorities=authorities) as store:
                with pytest.raises(TryAgain):
                    await store.get(MINE.phase)
            async with Accounts(server.endpoints, *ROOT, authorities=authorities) as accounts:
                with pytest.raises(TryAgain):
                    await accounts.enable()


class Listener:
    """Runs JobStates and remembers what it says."""

    def __init__(self, store: Store) -> None:
        self.changes: list[tuple[JobKeys, str]] = []
        self.came_or_went = 0
        self.states = JobStates(store, lambda keys, what: self.changes.append((keys, what)), self._came_or_went)
        self._task: asyncio.Task[None] | None = None

    def _came_or_went(self) -> None:
        self.came_or_went += 1

    async def __aenter__(self) -> JobStates:
        self._task = asyncio.create_task(self.states.run())
        await asyncio.wait_for(self.states.synced.wait(), DEADLINE)
        return self.states

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.wait([self._task])


class Protected:
    """JobStates and Protection together, as the controller runs them; ``known`` holds what users were found."""

    def __init__(self, server: EtcdServer, accounts: Accounts) -> None:
        self.known: list[frozenset[str]] = []
        self._store = Store(server.endpoints, *ROOT)
        protection = Protection(accounts, self.known.append)
        self.states = JobStates(self._store, lambda *_: None, protection.doubt, protection.doubt)
        self._tasks = [asyncio.create_task(protection.run()), asyncio.create_task(self.states.run())]

    async def __aenter__(self) -> "Protected":
        await asyncio.wait_for(self.states.synced.wait(), DEADLINE)
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks)
        await self._store.__aexit__(None, None, None)


async def test_a_new_etcd_is_no_trouble_while_the_operator_turns_authentication_on(server: EtcdServer) -> None:
    with capture_logs() as said:
        async with Accounts(server.endpoints, *ROOT) as accounts, Protected(server, accounts) as protected:
            await reached(lambda: protected.known, DEADLINE, "etcd's users")
            assert protected.known[0] == {"root"}
    assert [entry for entry in said if entry["log_level"] == "warning"] == []


async def test_an_etcd_that_comes_back_empty_asks_for_passwords_again_and_lacks_the_jobs_accounts(
    server: EtcdServer,
) -> None:
    async with Accounts(server.endpoints, *ROOT) as accounts, Protected(server, accounts) as protected:
        await accounts.add(MINE, "secret")
        await protected.states.set_desired(MINE, Desired(state=DesiredState.RUNNING))
        server.stop()
        server.wipe()
        protected.known.clear()
        server.start()
        await reached(
            # What the old etcd had answered may come first.
            lambda: (
                protected.known != []
                and account_name(MINE.uid) not in protected.known[-1]
                and set(protected.states.known()) == set()
            ),
            DEADLINE,
            "an empty watch and no account of the job after the loss",
        )
        await accounts.add(MINE, "secret")
        async with Store(server.endpoints, account_name(MINE.uid), "secret") as store:
            await store.put(MINE.phase, phase(1).wire())
        await reached(lambda: protected.states.of(MINE).phase == phase(1), DEADLINE, "the new phase")
    async with Store(server.endpoints) as anonymous:
        with pytest.raises(TryAgain):
            await anonymous.get(MINE.phase)


def phase(epoch: int) -> PhaseRecord:
    return PhaseRecord(
        epoch=epoch, iteration=1, name=PhaseName.TRAIN, weight_version=1, world=1, members=(0,), started=1.0
    )


async def test_one_watch_tells_phase_and_progress_of_every_job(server: EtcdServer) -> None:
    async with Store(server.endpoints) as store:
        await store.put(MINE.phase, phase(1).wire())
        listener = Listener(store)
        async with listener as states:
            assert states.of(MINE).phase == phase(1)
            await store.put(MINE.phase, phase(2).wire())
            await store.put(THEIRS.progress, Progress(reward=0.5).wire())
            await store.put(THEIRS.ack(1, 0), "{}")
            await reached(
                lambda: states.of(THEIRS).progress == Progress(reward=0.5), DEADLINE, "the other job's progress"
            )
            assert states.of(MINE).phase == phase(2)
            assert listener.changes == [(MINE, "phase"), (MINE, "phase"), (THEIRS, "progress")]
            assert set(states.known()) == {MINE, THEIRS}


async def test_desired_is_written_once_and_everything_of_a_job_can_be_forgotten(server: EtcdServer) -> None:
    async with Store(server.endpoints) as store, Listener(store) as states:
        wanted = Desired(state=DesiredState.SUSPENDED, generation=2)
        await states.set_desired(MINE, wanted)
        first = await store.get(MINE.desired)
        await states.set_desired(MINE, wanted)
        again = await store.get(MINE.desired)
        assert first is not None
        assert again == first
        assert Desired.model_validate_json(first.value) == wanted
        await store.put(MINE.ack(1, 0), "{}")
        await states.forget(MINE)
        assert (await store.list(MINE.prefix))[0] == {}
        await reached(lambda: set(states.known()) == set(), DEADLINE, "the job forgotten")


async def test_garbage_in_one_jobs_keys_leaves_the_others_alone(server: EtcdServer) -> None:
    async with Store(server.endpoints) as store, Listener(store) as states:
        await store.put(MINE.phase, "no json")
        await store.put(THEIRS.phase, phase(1).wire())
        await reached(lambda: states.of(THEIRS).phase == phase(1), DEADLINE, "the other job's phase")
        assert states.of(MINE).phase is None


async def test_etcd_away_is_told_and_what_changed_meanwhile_is_seen_afterwards(
    server: EtcdServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(etcd, "HICCUP_SECONDS", 0.1)
    async with Store(server.endpoints) as store:
        await store.put(MINE.phase, phase(1).wire())
        listener = Listener(store)
        async with listener as states:
            server.stop()
            await reached(lambda: states.error is not None and listener.came_or_went > 0, DEADLINE, "the loss of etcd")
            assert states.of(MINE).phase == phase(1)
            server.start()
            async with Store(server.endpoints) as other:
                await other.put(MINE.phase, phase(2).wire())
            await reached(lambda: states.of(MINE).phase == phase(2), DEADLINE, "the phase written meanwhile")
            assert states.error is None
