# SPDX-License-Identifier: Apache-2.0
"""What can go wrong with a handoff. Each error tells the caller what to do next: every one of them leaves both ends
reusable.
"""


class HandoffError(Exception):
    """A handoff did not complete. Start a new one from the first bucket."""


class DeadlineExceededError(HandoffError):
    """The other side did not answer in time."""


class PeerLostError(HandoffError):
    """The other process closed its end or died."""


class PeerRefusedError(HandoffError):
    """The other side refused the handoff; the message is its reason."""


class ProtocolError(HandoffError):
    """The other side sent something that is no valid message; it is another release, or no peer of ours."""


class VersionMismatchError(HandoffError):
    """The two sides were asked for different weight versions."""

    def __init__(self, wanted: int, offered: int) -> None:
        super().__init__(f"weight version {wanted} was asked for, but the exporter offers version {offered}")
        self.wanted = wanted
        self.offered = offered


class StaleStreamError(HandoffError):
    """The stream answers an earlier handoff, not this one."""


class TensorRefusedError(HandoffError):
    """One tensor is not what it should be.

    Attributes:
        tensor: its Hugging Face name.
    """

    def __init__(self, tensor: str, reason: str) -> None:
        super().__init__(f"tensor {tensor!r} is refused: {reason}")
        self.tensor = tensor


class ResourceLimitError(HandoffError):
    """The kernel gave no memory or no file descriptor. Raise the limit; the message names it."""
