# SPDX-License-Identifier: Apache-2.0
"""Where the ranks of a world meet: at a port of rank 0."""

import os
import socket

_MOST_RANKS = 4096
"""That may come before rank 0 meets them."""


def meeting_point() -> socket.socket | None:
    """Rank 0 takes the port that torchrun has told all ranks; the others have none. None also if torchrun serves it.

    torchrun finds a free one and lets go of it, and torch takes it when the ranks meet. That is minutes later, when
    engines have started: any connection of this machine's may have been given it by then.

    Raises:
        OSError: somebody was faster. torchrun starts the ranks anew, with another port.
    """
    if os.environ["RANK"] != "0" or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == str(True):
        return None
    address = ("", int(os.environ["MASTER_PORT"]))
    if socket.has_dualstack_ipv6():
        return socket.create_server(address, family=socket.AF_INET6, backlog=_MOST_RANKS, dualstack_ipv6=True)
    return socket.create_server(address, backlog=_MOST_RANKS)
