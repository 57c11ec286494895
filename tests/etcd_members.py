# SPDX-License-Identifier: Apache-2.0
"""An etcd of three members for tests, whose leader can be changed."""

import json
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from etcd_server import EtcdServer
from waiting import DEADLINE, until

_NAMES = ("a", "b", "c")
_ANSWER_SECONDS = 2.0


class EtcdMembers:
    """Three members of one etcd. Each alone is an :class:`EtcdServer`, which can be killed, frozen and started."""

    def __init__(self, directory: Path) -> None:
        self.members = tuple(EtcdServer(directory / name, name=name) for name in _NAMES)
        for member in self.members:
            (directory / member.name).mkdir()
            member.founders = self.members

    @property
    def endpoints(self) -> tuple[str, ...]:
        return tuple(endpoint for member in self.members for endpoint in member.endpoints)

    def start(self) -> None:
        for member in self.members:
            member.launch()
        for member in self.members:
            member.wait_until_healthy()

    def stop(self) -> None:
        for member in self.members:
            member.stop()

    def leader(self, without: EtcdServer | None = None) -> EtcdServer:
        """The leader on which all members agree, ``without`` one, as soon as it is among them."""
        return until(lambda: self._agreed(without), DEADLINE, "a leader of etcd")

    def _agreed(self, without: EtcdServer | None) -> EtcdServer | None:
        numbers, leaders = dict[str, EtcdServer](), set[str]()
        for member in self.members:
            if member is not without:
                status = _asked(member, "status")
                numbers[status.get("header", {}).get("member_id", "")] = member
                leaders.add(status.get("leader", "none"))
        (leader, *others) = leaders
        return None if others else numbers.get(leader)

    def hand_over(self) -> None:
        """Have the leader make another member the leader."""
        before = self.leader()
        heir = next(member for member in self.members if member is not before)
        _asked(before, "transfer-leadership", targetID=_asked(heir, "status")["header"]["member_id"])
        until(lambda: self.leader() is heir, DEADLINE, "another leader of etcd")


@contextmanager
def etcd_members(directory: Path) -> Iterator[EtcdMembers]:
    etcd = EtcdMembers(directory)
    try:
        etcd.start()
        yield etcd
    finally:
        etcd.stop()


def _asked(member: EtcdServer, call: str, **body: str) -> dict[str, Any]:
    """What it answers to a call of its maintenance; nothing if it does not answer."""
    url = f"http://{member.endpoints[0]}/v3/maintenance/{call}"
    request = urllib.request.Request(url, data=json.dumps(body).encode(), method="POST")
    try:
        with urllib.request.urlopen(request, timeout=_ANSWER_SECONDS) as reply:
            answer: dict[str, Any] = json.load(reply)
            return answer
    except OSError:
        return {}
