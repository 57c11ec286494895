# SPDX-License-Identifier: Apache-2.0
"""Whatever comes in is a value of the contract, or is refused by an error that the reader expects."""

import contextlib
import json
import struct
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import yaml
from hostile import LEASE_REQUEST, SEGMENT_BATCH, VALUES, bodies, mutants
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from tandem_api import manifest
from tandem_api.errors import UserError
from tandem_api.messages import phases, trainer, work
from tandem_api.records import parse_record
from tandem_handoff.errors import HandoffError
from tandem_handoff.manifest import TensorEntry
from tandem_trainer.batch import Batch, MalformedBatch

LEASE = {
    "trajectory": "t",
    "tokens": [1, 2],
    "offset": 0,
    "maxNewTokens": 4,
    "sampling": {"temperature": 1.0, "topP": 1.0, "seed": 3, "stopTokenIds": [1]},
    "expires": 30.0,
}
EXAMPLES: list[tuple[Any, dict[str, Any]]] = [
    (work.LeaseRequest, {**LEASE_REQUEST, "wait": 1.5}),
    (work.LeaseGrant, {"epoch": 1, "leases": [LEASE]}),
    (work.SegmentBatch, SEGMENT_BATCH),
    (work.SegmentReceipt, {"stored": ["t"], "refused": {"u": "why"}}),
    (phases.Member, {"index": 0, "pod": "p", "uid": "u", "incarnation": "i", "address": "127.0.0.1"}),
    (phases.Desired, {"state": "Running"}),
    (trainer.trainer_command, {"command": "step", "epoch": 1, "iteration": 2, "weightVersion": 2, "save": True}),
    (trainer.trainer_command, {"command": "export", "epoch": 1, "weightVersion": 2, "timeout": 3.0, "probe": [1]}),
    (trainer.TrainerReply, {"measured": {"loss": 1.0}, "seconds": {"a": 1.0}, "digest": "d", "probeLogprobs": [0.5]}),
]
FUZZED = settings(deadline=None, max_examples=60, suppress_health_check=list(HealthCheck))


@pytest.mark.parametrize(
    ("kind", "example"),
    EXAMPLES,
    ids=[next(iter(e.values())) if isinstance(k, TypeAdapter) else k.__name__ for k, e in EXAMPLES],
)
@FUZZED
@given(data=st.data())
def test_a_message_is_read_or_refused(kind: Any, example: dict[str, Any], data: st.DataObject) -> None:
    adapter = kind if isinstance(kind, TypeAdapter) else TypeAdapter(kind)
    assert adapter.validate_python(example)
    body = data.draw(bodies(example))
    try:
        message = adapter.validate_json(body)
    except ValidationError:
        return
    assert adapter.validate_json(message.wire()).wire() == message.wire()


@FUZZED
@given(line=bodies({"id": "a", "prompt": "1 + 1 =", "answer": "2", "domain": "sum"}))
def test_a_line_of_a_prompt_file_is_a_record_or_one_problem(line: bytes) -> None:
    assert parse_record(line, "file:1")


EXAMPLE = yaml.safe_load((Path(__file__).parents[2] / "examples" / "chain-sum.yaml").read_text())


@FUZZED
@given(text=mutants(EXAMPLE).map(json.dumps) | VALUES.map(json.dumps) | st.text(max_size=200))
def test_a_manifest_is_loaded_or_its_problems_are_told(text: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "hostile.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with contextlib.suppress(UserError):
        assert manifest.load(path).spec


ENTRY = {"name": "w", "dtype": "float32", "shape": [2, 3], "offset": 0, "nbytes": 24, "checksum": 5}


@FUZZED
@given(entry=mutants(ENTRY) | st.dictionaries(st.text(max_size=8), VALUES))
def test_a_tensors_entry_is_read_or_refused(entry: Any) -> None:
    with contextlib.suppress(HandoffError):
        assert TensorEntry.from_json(entry).nbytes >= 0


def batch_body(**replaced: torch.Tensor) -> bytes:
    tensors = {
        "tokens": torch.arange(5, dtype=torch.int32),
        "offsets": torch.tensor([0, 2, 5]),
        "promptLengths": torch.tensor([1, 1], dtype=torch.int32),
        "lossMask": torch.tensor([0, 1, 0, 1, 1], dtype=torch.uint8),
        "engineLogprobs": torch.tensor([0.0, -1.0, 0.0, -1.0, -1.0]),
        "versions": torch.tensor([-1, 0, -1, 0, 0], dtype=torch.int32),
        "rewards": torch.tensor([0.0, 1.0]),
        "groups": torch.tensor([0, 0], dtype=torch.int32),
    }
    return safetensors.torch.save(tensors | replaced, {"iteration": "3", "digest": "d"})


@FUZZED
@given(data=st.data())
def test_a_batch_is_read_or_refused(data: st.DataObject) -> None:
    body = bytearray(batch_body())
    (header,) = struct.unpack("<Q", body[:8])
    for _ in range(data.draw(st.integers(0, 3))):
        # Bytes of the header, mostly: there the lengths, offsets and dtypes lie.
        place = data.draw(st.integers(0, 8 + header - 1) | st.integers(0, len(body) - 1))
        body[place] = data.draw(st.integers(0, 255))
    cut = data.draw(st.just(len(body)) | st.integers(0, len(body)))
    try:
        batch = Batch.parse(bytes(body[:cut]), 3)
    except MalformedBatch:
        return
    assert len(batch.tokens) == len(batch.loss_mask) == int(batch.offsets[-1])
