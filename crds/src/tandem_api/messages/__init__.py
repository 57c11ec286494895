# SPDX-License-Identifier: Apache-2.0
"""What Tandem's processes say to each other. Each module is one conversation and names who speaks in it."""
