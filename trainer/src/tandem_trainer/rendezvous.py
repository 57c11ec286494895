# SPDX-License-Identifier: Apache-2.0
"""Where the ranks of a world meet: at a port of rank 0."""

import os
import socket


def meeting_point() -> socket.socket | None:
    """Rank 0 takes the port that torchrun has told all ranks; the others have none.

    torchrun finds a free one and lets go of it, and torch takes it when the ranks meet. That is minutes later, when
    engines have started: any connection of this machine's may have been given it by then.

    Raises:
        OSError: somebody was faster. torchrun starts the ranks anew, with another port.
    """
    if os.environ["RANK"] != "0":
        return None
    address = ("", int(os.environ["MASTER_PORT"]))
    if socket.has_dualstack_ipv6():
        return socket.create_server(address, family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(address)
