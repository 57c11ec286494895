# SPDX-License-Identifier: Apache-2.0
"""``python -m tandem_operator``."""

from tandem_operator.main import run

run()
