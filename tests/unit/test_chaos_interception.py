# SPDX-License-Identifier: Apache-2.0
"""What a handoff of weights comes to while something stands between trainer and engine."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from handoff_peers import contents, counting, exchange, open_descriptors
from waiting import DEADLINE, until

from tandem_cli.chaos.interception import intercepted
from tandem_handoff import Exporter, Importer, PeerRefusedError, TensorRefusedError, Verify

TENSORS = [(f"t{index}", counting(100)) for index in range(8)]
BUCKET = 1024
"""Of two tensors, so that each segment is used twice."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "handoff-0.sock"


@pytest.fixture
def exporter(path: Path) -> Iterator[Exporter]:
    with Exporter(path, BUCKET, verify=Verify.CHECKSUMS) as exporter:
        yield exporter


def flip_first_bit(bucket: dict[str, Any], descriptors: list[int]) -> None:
    for segment in descriptors:
        (byte,) = os.pread(segment, 1, bucket["entries"][0]["offset"])
        os.pwrite(segment, bytes([byte ^ 1]), bucket["entries"][0]["offset"])


def test_every_handoff_within_it_is_as_it_would_be_without(path: Path, exporter: Exporter) -> None:
    importer, buckets = Importer(path), []
    exchange(exporter, importer, TENSORS, version=1, wanted=1)
    before = open_descriptors()
    with intercepted(path, lambda bucket, descriptors: buckets.append((bucket["index"], len(descriptors)))):
        for version in (2, 3):
            sent, received = exchange(exporter, importer, TENSORS, version=version, wanted=version)
            assert sent == importer.manifest
            assert received == contents(TENSORS)
    assert buckets == [(0, 1), (1, 1), (2, 0), (3, 0)] * 2
    until(lambda: open_descriptors() <= before, DEADLINE, "its descriptors are closed")


def test_what_is_damaged_before_a_bucket_is_announced_is_refused_whatever_the_engine_does(
    path: Path, exporter: Exporter
) -> None:
    importer = Importer(path)
    with intercepted(path, flip_first_bit):
        sent, received = exchange(exporter, importer, TENSORS)
    assert isinstance(received, TensorRefusedError)
    assert received.tensor == "t0"
    assert isinstance(sent, PeerRefusedError)
    assert exchange(exporter, importer, TENSORS)[1] == contents(TENSORS)


def test_the_socket_is_its_owners_again_afterwards(path: Path, exporter: Exporter) -> None:
    owner = path.stat().st_ino
    with intercepted(path, flip_first_bit):
        assert path.stat().st_ino != owner
    assert path.stat().st_ino == owner
    assert list(path.parent.iterdir()) == [path]


def test_a_trainer_that_starts_meanwhile_is_the_one_that_hands_over(path: Path, exporter: Exporter) -> None:
    with intercepted(path, flip_first_bit), Exporter(path, BUCKET, verify=Verify.CHECKSUMS) as successor:
        assert exchange(successor, Importer(path), TENSORS)[1] == contents(TENSORS)
    assert list(path.parent.iterdir()) == []


def test_an_engine_hears_why_a_trainer_gives_up(path: Path, exporter: Exporter) -> None:
    tensors = [*TENSORS[:3], TENSORS[0]]
    with intercepted(path, lambda *_: None):
        sent, received = exchange(exporter, Importer(path), tensors)
    assert isinstance(sent, TensorRefusedError)
    assert isinstance(received, PeerRefusedError)
    assert "yields it twice" in str(received)


def test_without_a_trainer_there_is_nothing_to_intercept(path: Path) -> None:
    with pytest.raises(FileNotFoundError), intercepted(path, flip_first_bit):
        pass
