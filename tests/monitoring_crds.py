# SPDX-License-Identifier: Apache-2.0
"""The Prometheus operator's CustomResourceDefinitions, from its Go module."""

from pathlib import Path

from go_module import fetched

MODULE = "github.com/prometheus-operator/prometheus-operator@v0.85.0"
SUM = "h1:M5xLCLEoaW2IJfnuCwFzzpL+jSVQu3KGT84Pye+fW8s="
KINDS = ("podmonitors", "servicemonitors", "prometheusrules")
GROUP = "monitoring.coreos.com"


def definitions() -> dict[str, Path]:
    """The files of the kinds that Tandem makes, by the names of their definitions."""
    folder = fetched(MODULE, SUM) / "example" / "prometheus-operator-crd"
    return {f"{kind}.{GROUP}": folder / f"{GROUP}_{kind}.yaml" for kind in KINDS}
