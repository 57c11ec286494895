# SPDX-License-Identifier: Apache-2.0
"""Where a job's keys lie in etcd (phases.md). Only these functions spell a key."""

from dataclasses import dataclass

ROOT = "/tandem/v1/"


@dataclass(frozen=True, slots=True)
class JobKeys:
    """The keys of one job. ``uid`` keeps a job that was deleted and created again apart from its namesake."""

    namespace: str
    name: str
    uid: str

    @property
    def prefix(self) -> str:
        return f"{ROOT}{self.namespace}/{self.name}/{self.uid}/"

    @property
    def desired(self) -> str:
        return self.prefix + "desired"

    @property
    def leader(self) -> str:
        return self.prefix + "leader"

    @property
    def phase(self) -> str:
        return self.prefix + "phase"

    @property
    def progress(self) -> str:
        return self.prefix + "progress"

    @property
    def members(self) -> str:
        """Prefix of all members."""
        return self.prefix + "members/"

    def member(self, index: int) -> str:
        return f"{self.members}{index:06d}"

    def acks(self, epoch: int) -> str:
        """Prefix of all acks of one epoch."""
        return f"{self.prefix}acks/{epoch:012d}/"

    def ack(self, epoch: int, index: int) -> str:
        return f"{self.acks(epoch)}{index:06d}"

    def weights(self, version: int) -> str:
        return f"{self.prefix}weights/{version:08d}"

    @staticmethod
    def of(key: str) -> "tuple[JobKeys, str] | None":
        """The job and the rest of a key under the root; ``None`` if it is no key of a job."""
        parts = key.removeprefix(ROOT).split("/", 3)
        if not key.startswith(ROOT) or len(parts) != 4:
            return None
        return JobKeys(*parts[:3]), parts[3]
