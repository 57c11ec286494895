# SPDX-License-Identifier: Apache-2.0
"""``tandem curate``: prompt sets for runs."""
