# SPDX-License-Identifier: Apache-2.0
"""`tandem bench handoff` measures this machine."""

import re

import pytest
from typer.testing import CliRunner

from tandem_api.errors import UserError
from tandem_cli.bench.handoff import row
from tandem_cli.main import app

SMALL = ["bench", "handoff", "--mib", "50", "--bucket", "8", "--rounds", "1"]


def test_every_step_is_shown_with_its_rate_beside_the_limit() -> None:
    shown = CliRunner(env={"COLUMNS": "160"}).invoke(app, [*SMALL, "--device", "cpu"])
    assert shown.exit_code == 0, shown.output
    table = [line for line in shown.output.splitlines() if re.search(r"\d+\.\d GB/s", line)]
    for step in ("one copy within", "handoff ", "handoff, checksums", "receiver copies too"):
        assert any(step in line for line in table), shown.output
    assert len(re.findall(r"\d+ %", shown.output)) == 3


def test_a_device_that_is_not_there_is_refused_with_its_reason() -> None:
    shown = CliRunner().invoke(app, [*SMALL, "--device", "cuda:99"])
    assert isinstance(shown.exception, UserError)
    assert "tandem_handoff.bench" in str(shown.exception)


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        ({"name": "a", "seconds": 0.5, "nbytes": 10**9, "of_limit": 0.815}, ("a", "500.0 ms", "2.0 GB/s", "82 %")),
        ({"name": "b", "seconds": 2.0, "nbytes": 0, "of_limit": None}, ("b", "2.00 s", "", "")),
    ],
)
def test_a_step_that_moves_nothing_has_no_rate(step: dict[str, object], expected: tuple[str, ...]) -> None:
    assert row(step) == expected
