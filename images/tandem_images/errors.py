# SPDX-License-Identifier: Apache-2.0
"""What goes wrong on the way to an image, in words for the person who builds it."""


class BuildError(Exception):
    """An image cannot be built or loaded; the message says why and what to do."""
