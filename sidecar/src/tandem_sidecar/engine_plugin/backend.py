# SPDX-License-Identifier: Apache-2.0
"""The weight-transfer engine that each vLLM worker creates for `--weight-transfer-config '{"backend": "tandem"}'`."""

import gc
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from vllm.config import VllmConfig
from vllm.config.weight_transfer import WeightTransferConfig
from vllm.distributed.parallel_state import get_world_group
from vllm.distributed.weight_transfer.base import WeightTransferEngine, WeightTransferInitInfo, WeightTransferUpdateInfo
from vllm.logger import init_logger
from vllm.model_executor.layers.attention import is_deferred_attention_layer
from vllm.model_executor.layers.fused_moe import RoutedExperts
from vllm.model_executor.model_loader.mtp_validation import disable_mtp_completeness_check
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload
from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info

from tandem_handoff import Expected, HandoffError, Importer, Manifest, TensorRefusedError
from tandem_sidecar.engine_plugin.expectations import expected_tensors, tied_heads

log = init_logger(__name__)


@dataclass
class TandemInitInfo(WeightTransferInitInfo):
    """Where the trainer's ranks listen: `directory/handoff-<local rank>.sock`."""

    directory: str


@dataclass
class TandemUpdateInfo(WeightTransferUpdateInfo):
    """One handoff. `timeout` is in seconds for all of it; `expected_digest`, if given, must be that of the manifest."""

    version: int
    timeout: float
    expected_digest: str | None = None


class TandemWeightTransferEngine(WeightTransferEngine[TandemInitInfo, TandemUpdateInfo]):
    """Loads a trainer's weights from shared memory into this worker's part of the model.

    Life cycle: init_transfer_engine once, then for each handoff start_weight_update, update_weights (all buckets in
    one call), finish_weight_update. From start to finish the model is out of
    service: its layers are partly on the meta device, and a forward pass ends the engine. After a failure the same
    three calls repair it.
    """

    init_info_cls = TandemInitInfo
    update_info_cls = TandemUpdateInfo
    supports_draft_weight_update = False

    def __init__(
        self, config: WeightTransferConfig, vllm_config: VllmConfig, device: torch.device, model: torch.nn.Module
    ) -> None:
        super().__init__(config, vllm_config, device, model)
        self._importer: Importer | None = None
        self._expected: dict[str, Expected] | None = expected_tensors(model)
        self._tied_heads = tied_heads(model)
        self._manifest: Manifest | None = None
        self._in_service = False
        self._error: str | None = None
        self._seconds: dict[str, float] = {}

    def init_transfer_engine(self, init_info: TandemInitInfo) -> None:
        """Connects this worker to the exporter of the trainer rank on the same device, at the first update."""
        if self._importer is not None:
            self._importer.close()
        socket_path = Path(init_info.directory) / f"handoff-{get_world_group().local_rank}.sock"
        self._importer = Importer(socket_path, self.device)

    def start_weight_update(self) -> None:
        """Takes the model out of service and prepares its layers for loading."""
        self._in_service, self._error = False, "a weight update has begun and is not finished"
        self._manifest, self._seconds = None, {}
        _undo_unfinished_update(self.model, self.model_config)
        initialize_layerwise_reload(self.model)

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Receives all of one handoff.

        Raises:
            HandoffError: it was refused or did not complete; the message names the tensor or the reason.
        """
        try:
            self.receive_weights(self.parse_update_info(update_info))
            if self.device.type != "cpu":
                torch.accelerator.synchronize(self.device)
        except Exception as error:
            self._error = f"{type(error).__name__}: {error}"
            log.error("The handoff failed; the engine is out of service until a complete one: %s", self._error)
            raise

    def receive_weights(self, update_info: TandemUpdateInfo) -> None:
        """Loads each bucket as it comes and checks that the model is complete at the end."""
        if self._importer is None:
            raise HandoffError("no exporter is known; call init_weight_transfer_engine first")
        began = time.monotonic()
        loading = 0.0
        try:
            for tensors in self._importer.receive(
                update_info.version,
                update_info.timeout,
                self._expected,
                accept=lambda manifest: self._check_complete(manifest, update_info),
            ):
                started = time.monotonic()
                self._load(tensors)
                loading += time.monotonic() - started
        except BaseException as error:
            self._importer.abort(f"{type(error).__name__}: {error}")
            raise
        self._manifest = self._importer.manifest
        self._seconds = {"receive": time.monotonic() - began, "load": loading}

    def finish_weight_update(self) -> None:
        """Finishes layers that wait for it and puts the model into service."""
        if self._manifest is None:
            raise HandoffError(f"there is no complete handoff to finish: {self._error}")
        started = time.monotonic()
        finalize_layerwise_reload(self.model, self.model_config)
        self._repack()
        self._seconds["finish"] = time.monotonic() - started
        self._in_service, self._error = True, None

    def _repack(self) -> None:
        """A CPU multiplies by repacked copies. vLLM makes them anew but for two: of a head that shares the embedding's
        parameter, which the embedding's load does not touch, and of experts, which it repacks at the first load only.
        """
        for head in self._tied_heads.values():
            head.quant_method.process_weights_after_loading(head)
        for layer in self.model.modules():
            if isinstance(layer, RoutedExperts) and self.device.type == "cpu":
                layer.quant_method.moe_kernel.fused_experts.process_weights_after_loading(layer)

    def report(self) -> dict[str, Any]:
        """See `HandoffReporter.handoff_report`."""
        manifest = self._manifest
        return {
            "in_service": self._in_service,
            "version": manifest.version if manifest else None,
            "digest": manifest.digest if manifest else None,
            "tensors": manifest.tensors if manifest else 0,
            "bytes": manifest.nbytes if manifest else 0,
            "seconds": self._seconds,
            "error": self._error,
        }

    def shutdown(self) -> None:
        """Lets go of the trainer's memory."""
        if self._importer is not None:
            self._importer.close()

    def _load(self, tensors: list[tuple[str, torch.Tensor]]) -> None:
        """Loads one bucket and leaves no reference to its memory behind, as the trainer overwrites it next."""
        current = _Current()
        tied = {f"{name}.weight" for name in self._tied_heads}
        try:
            with disable_mtp_completeness_check():
                self.model.load_weights(current.follow((name, tensor) for name, tensor in tensors if name not in tied))
        except Exception as error:
            raise TensorRefusedError(
                current.name, f"vLLM's loader for it failed: {type(error).__name__}: {error}"
            ) from error
        if tensors:
            _own_pending_tensors(self.model, tensors[0][1].untyped_storage().data_ptr())
        tensors.clear()
        assert self._importer is not None
        if self._importer.views_alive() and gc.collect() >= 0 and self._importer.views_alive():
            raise HandoffError(
                f"{type(self.model).__name__} keeps references to loaded tensors, which the next bucket would overwrite"
            )

    def _check_complete(self, manifest: Manifest, update_info: TandemUpdateInfo) -> None:
        if update_info.expected_digest not in (None, manifest.digest):
            raise HandoffError(f"the digest is {manifest.digest}, expected {update_info.expected_digest}")
        for name, layer in self.model.named_modules():
            info = get_layerwise_info(layer)
            waits = info.can_load() and info.restore_metadata[0] and not info.load_numel
            if waits and name not in self._tied_heads and not is_deferred_attention_layer(layer):
                raise TensorRefusedError(name, "nothing was loaded into this layer")
            if isinstance(layer, RoutedExperts) and info.can_load() and info.load_numel:  # else it is loaded by now
                missing = info.load_numel_total - info.load_numel
                raise TensorRefusedError(name, f"{missing} of its {info.load_numel_total} elements did not come")


class _Current:
    """Remembers which tensor a loader that failed was working on."""

    name = "(none)"

    def follow(self, tensors: Iterator[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
        for name, tensor in tensors:
            self.name = name
            yield name, tensor


def _own_pending_tensors(model: torch.nn.Module, bucket_address: int) -> None:
    """Copies what vLLM has put aside of a bucket for layers that are not complete yet.

    vLLM loads a layer once all of its tensors have come, from references that it keeps until then
    (LayerReloadingInfo.loaded_weights). A layer whose tensors lie in two buckets would be loaded from memory that the
    trainer has overwritten.
    """
    for layer in model.modules():
        for _, call in get_layerwise_info(layer).loaded_weights:
            for argument, value in call.arguments.items():
                if (
                    isinstance(value, torch.Tensor)
                    and not value.is_meta
                    and value.untyped_storage().data_ptr() == bucket_address
                ):
                    owned = value.clone()
                    owned.__dict__.update(value.__dict__)  # vLLM hangs the shard's id on the tensor
                    call.arguments[argument] = owned


def _undo_unfinished_update(model: torch.nn.Module, model_config: Any) -> None:
    """Puts back what an update that failed has left open.

    initialize_layerwise_reload skips layers that are being loaded, so the count of elements from the failed update
    would go on, and a layer would be taken for complete before it is.
    """
    infos = [get_layerwise_info(layer) for layer in model.modules()]
    if any(info.can_load() for info in infos):
        for info in infos:
            info.load_numel = 0
            info.loaded_weights.clear()
        finalize_layerwise_reload(model, model_config)
