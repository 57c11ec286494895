# SPDX-License-Identifier: Apache-2.0
"""Who has done its part of a phase, and who cannot (phases.md, rules 3, 4 and 8). Pure."""

from collections.abc import Mapping

from tandem_api.keys import JobKeys
from tandem_api.messages.phases import Ack, Outcome, PhaseName, PhaseRecord
from tandem_phases.membership import acks, members
from tandem_phases.store import Entry

World = Mapping[int, str]
"""The processes that a phase was begun with: incarnation by member index."""


def world_of(entries: Mapping[str, Entry], keys: JobKeys) -> dict[int, str]:
    """The processes that are members now."""
    return {index: member.incarnation for index, member in members(entries, keys).items()}


def counted(entries: Mapping[str, Entry], keys: JobKeys, record: PhaseRecord) -> dict[int, Ack]:
    """The acks of a phase that count: each by the process that is the member now, not by one that it replaced.

    After the end of a run members may leave, so the acks of Succeeded count whoever is still there.
    """
    return _counted(entries, keys, record, world_of(entries, keys))


def _counted(entries: Mapping[str, Entry], keys: JobKeys, record: PhaseRecord, now: World) -> dict[int, Ack]:
    reported = acks(entries, keys, record.epoch)
    if record.name is PhaseName.SUCCEEDED:
        return reported
    return {index: ack for index, ack in reported.items() if now.get(index) == ack.incarnation}


def losses(record: PhaseRecord, world: World, entries: Mapping[str, Entry], keys: JobKeys) -> dict[int, str]:
    """Members that will not do their part of ``record``, begun with ``world``: the reason by index.

    A member that went missing in the Rollout is waited for in the Release that follows: it need not be in ``world``.
    """
    now = world_of(entries, keys)
    found = {
        index: f"member {index}: {ack.error}"
        for index, ack in _counted(entries, keys, record, now).items()
        if ack.outcome is Outcome.FAILED
    }
    if record.name is PhaseName.SUCCEEDED:
        return found
    for index in set(record.members) - set(found):
        awaited = record.name is PhaseName.RELEASE and index not in world
        if not awaited and (index not in now or now[index] != world.get(index, now[index])):
            found[index] = f"member {index} was lost during {record.name}"
    return found
