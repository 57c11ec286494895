# SPDX-License-Identifier: Apache-2.0
"""report.html: one self-contained page of a run, or of two side by side."""
