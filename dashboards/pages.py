# SPDX-License-Identifier: Apache-2.0
"""The three dashboards."""

from dashboards.fleet import FLEET
from dashboards.operators import OPERATOR
from dashboards.run import RUN

PAGES = (FLEET, RUN, OPERATOR)
