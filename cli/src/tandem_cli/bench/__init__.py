# SPDX-License-Identifier: Apache-2.0
"""``tandem bench``: what a user's machine or pod can do, each step beside the limit that it could reach."""
