# SPDX-License-Identifier: Apache-2.0
"""tandem run, validate, report; kubectl tandem."""
