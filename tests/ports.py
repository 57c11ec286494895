# SPDX-License-Identifier: Apache-2.0
"""Ports on which nobody listens."""

import itertools
import os
import socket

_FIRST, _BLOCKS, _BLOCK = 10_000, 190, 100
_numbers = itertools.count(os.getpid() % _BLOCKS * _BLOCK)


def free_port() -> int:
    """A TCP port of 127.0.0.1 that is free and stays so until it is used.

    It is not one that the kernel gives to connections and to who asks for any port; processes side by side begin to
    look at different places.
    """
    return next(filter(_is_free, (_FIRST + number % (_BLOCKS * _BLOCK) for number in _numbers)))


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
