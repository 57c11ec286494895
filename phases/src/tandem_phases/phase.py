# SPDX-License-Identifier: Apache-2.0
"""The phase record: read by all, moved by the leader alone."""

from collections.abc import Mapping
from dataclasses import dataclass

from tandem_api.errors import Fenced
from tandem_api.keys import JobKeys
from tandem_api.messages.phases import PhaseRecord
from tandem_phases.leadership import Leadership
from tandem_phases.store import Entry, Store, Unchanged


@dataclass(frozen=True, slots=True)
class SeenPhase:
    """A phase record and the fence that writes based on it must carry."""

    record: PhaseRecord
    fence: Unchanged


def current(entries: Mapping[str, Entry], keys: JobKeys) -> SeenPhase | None:
    """The phase in a mirror's entries."""
    entry = entries.get(keys.phase)
    if entry is None:
        return None
    return SeenPhase(entry.read(PhaseRecord), Unchanged(keys.phase, entry.modified))


async def move(
    store: Store,
    keys: JobKeys,
    leadership: Leadership,
    previous: SeenPhase | None,
    record: PhaseRecord,
    *,
    again: bool = False,
) -> SeenPhase:
    """Write the next phase, if we still lead and nobody moved it since ``previous``.

    After TryAgain the same record may be moved to ``again``: if it was written after all, nothing more is.

    Raises:
        Fenced: we do not lead any more, or the phase is another one.
        TryAgain: etcd is away.
    """
    expected = previous.fence if previous else Unchanged(keys.phase, 0)
    try:
        written = await store.commit((leadership.fence, expected), {keys.phase: record.wire()})
    except Fenced:
        found = await store.get(keys.phase) if again else None
        if found is None or found.value != record.wire():
            raise
        written = found.modified
    return SeenPhase(record, Unchanged(keys.phase, written))
