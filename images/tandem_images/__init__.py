# SPDX-License-Identifier: Apache-2.0
"""Builds Tandem's images with buildah or docker. ../build.py is the program."""
