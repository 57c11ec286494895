# SPDX-License-Identifier: Apache-2.0
"""How a worker tells the sidecar what it serves."""

from typing import Any


class HandoffReporter:
    """A vLLM worker extension (`--worker-extension-cls tandem_sidecar.engine_plugin.report.HandoffReporter`), called
    by `POST /collective_rpc`.
    """

    weight_transfer_engine: Any
    _weight_update_active: bool

    def handoff_abandon(self) -> None:
        """Forgets an update that was begun and will not be finished, so that a new one can start.

        A worker ends its update when it fails, but not when only another worker fails, or when whoever drove it is
        gone: then its start_weight_update would be refused for ever. The model stays out of service.
        """
        if self._weight_update_active:
            self.weight_transfer_engine.reset_weight_update_target()
            self._weight_update_active = False

    def handoff_report(self) -> dict[str, Any]:
        """The last handoff of this worker.

        Returns:
            `in_service` (whether the model holds a complete handoff), `version`, `digest`, `tensors`, `bytes`,
            `seconds` by step, and `error` (why the last one failed, or None).
        """
        return dict(self.weight_transfer_engine.report())
