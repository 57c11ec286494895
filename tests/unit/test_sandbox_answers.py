# SPDX-License-Identifier: Apache-2.0
"""Which text of a response is the program, and when two outputs are the same."""

import pytest

from tandem_orchestrator.rewards.code import program_of
from tandem_orchestrator.sandbox import kernel, seccomp
from tandem_orchestrator.sandbox.runs import same_output


@pytest.mark.parametrize(
    ("response", "program"),
    [
        ("print(1)", "print(1)"),
        ("So:\n```python\nprint(1)\n```\ndone", "print(1)\n"),
        ("```\nprint(1)\n```\nbetter:\n```py\nprint(2)\n```\n", "print(2)\n"),
        ("~~~\nprint('```')\n~~~\n", "print('```')\n"),
        ("````\nprint('''\n```\n''')\n````", "print('''\n```\n''')\n"),
        ("cut off:\n```python\nprint(1)", "print(1)"),
        ("```python\n```", ""),
        ("use ```inline``` only", "use ```inline``` only"),
    ],
)
def test_the_program_is_the_last_fenced_block_or_all_of_the_response(response: str, program: str):
    assert program_of(response) == program


@pytest.mark.parametrize("found", [b"1 2\n3\n", b"1 2\n3", b"1 2 \r\n3\n\n\n"])
def test_blanks_at_line_ends_and_empty_lines_at_the_end_do_not_matter(found: bytes):
    assert same_output(found, b"1 2\n3\n")


@pytest.mark.parametrize("found", [b"", b"1  2\n3", b"1 2\n\n3", b" 1 2\n3", b"1 2 3"])
def test_other_blanks_matter(found: bytes):
    assert not same_output(found, b"1 2\n3\n")


def test_every_call_under_a_rule_has_a_number_and_only_one_rule():
    names = [name for listed in seccomp.RULES.values() for name in listed.split()]
    assert len(names) == len(set(names))
    assert {name for name in names if name not in kernel.NUMBERS} <= {"fork", "vfork", "iopl", "ioperm"}
