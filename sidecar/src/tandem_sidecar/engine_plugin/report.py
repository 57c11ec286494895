# SPDX-License-Identifier: Apache-2.0
"""How a worker tells the sidecar what it serves."""

from typing import Any


class HandoffReporter:
    """A vLLM worker extension (`--worker-extension-cls tandem_sidecar.engine_plugin.report.HandoffReporter`), called
    by `POST /collective_rpc`.
    """

    weight_transfer_engine: Any

    def handoff_report(self) -> dict[str, Any]:
        """The last handoff of this worker.

        Returns:
            `in_service` (whether the model holds a complete handoff), `version`, `digest`, `tensors`, `bytes`,
            `seconds` by step, and `error` (why the last one failed, or None).
        """
        return dict(self.weight_transfer_engine.report())
