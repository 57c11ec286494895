# SPDX-License-Identifier: Apache-2.0
"""Names for the shared memory through which vLLM's processes talk: who frees it knows whose it was.

A process that is killed frees none of what it has made, and Python's names for it (``/dev/shm/psm_...``) say nothing.
"""

import os
from multiprocessing import shared_memory

from tandem_api.environment import ENGINE_MEMORY


def name_segments() -> None:
    """Have the names of what this process makes from now on begin as the environment says: Python has room for nine
    characters.
    """
    if prefix := os.environ.get(ENGINE_MEMORY):
        shared_memory._SHM_NAME_PREFIX = f"/{prefix}"  # type: ignore[attr-defined]
