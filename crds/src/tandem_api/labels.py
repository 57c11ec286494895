# SPDX-License-Identifier: Apache-2.0
"""By what the objects of a job are found in a cluster: labels that the operator writes and ``kubectl tandem`` reads."""

from tandem_api import GROUP

JOB_LABEL = f"{GROUP}/job"
COMPONENT_LABEL = "app.kubernetes.io/component"
ORCHESTRATOR, HYBRID = "orchestrator", "hybrid"
"""The components: one pod of the one, any number of the other."""
