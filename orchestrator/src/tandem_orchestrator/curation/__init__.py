# SPDX-License-Identifier: Apache-2.0
"""Making prompt sets before a run: each module is a program, which ``tandem curate`` starts."""
