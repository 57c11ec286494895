# SPDX-License-Identifier: Apache-2.0
"""What is wrong with the user's data is left where Kubernetes takes it from."""

from pathlib import Path

from tandem_orchestrator.main import say_last


def test_last_words_are_cut_to_what_kubernetes_takes(tmp_path: Path) -> None:
    log = tmp_path / "termination-log"
    log.touch()
    say_last("prompts.jsonl:3: é" + "x" * 9000, log)
    said = log.read_bytes()
    assert said.startswith("prompts.jsonl:3: é".encode())
    assert len(said) == 4096


def test_without_kubernetes_no_file_is_made(tmp_path: Path) -> None:
    say_last("wrong", tmp_path / "termination-log")
    assert list(tmp_path.iterdir()) == []
