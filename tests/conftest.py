# SPDX-License-Identifier: Apache-2.0
"""Property tests draw the same examples in every run, so that a failure is of the change; `make soak` draws others.

Programs buffer what they print, whatever this machine's environment says: where a log must be whole, the product sees
to it.
"""

import os

from hypothesis import HealthCheck, settings

os.environ.pop("PYTHONUNBUFFERED", None)
_PATIENT = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("same", derandomize=True, **_PATIENT)
settings.register_profile("fresh", max_examples=1000, print_blob=True, **_PATIENT)
settings.load_profile("same")
