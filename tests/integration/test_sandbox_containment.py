# SPDX-License-Identifier: Apache-2.0
"""Nothing that a program does reaches further than its run: real processes, real kernel."""

import asyncio
import gc
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import sandbox_attacks
from waiting import reached, until

from tandem_api.errors import UserError
from tandem_api.spec.rewards import CodeReward
from tandem_orchestrator.rewards.code import CodeScorer
from tandem_orchestrator.sandbox.client import Sandbox, SandboxError
from tandem_orchestrator.sandbox.guarantees import ATTEMPTS, find_out
from tandem_orchestrator.sandbox.processes import Processes
from tandem_orchestrator.sandbox.runs import Limits, Verdict

TESTS = Path(sandbox_attacks.__file__).parent
RUN_ATTACKS = (sys.executable, str(TESTS / "sandbox_attacks.py"))
POD = (sys.executable, str(TESTS / "restricted_pod.py"))
KINDS = pytest.mark.parametrize(
    "without", [(), ("namespaces",), ("namespaces", "ask")], ids=["all", "landlock", "mute"]
)

SOON = 60.0
PATIENT = Limits(seconds=SOON)
LIMITLESS = "import os, time\nfor _ in range(3):\n    os.fork()\ntime.sleep(600)"


@pytest.mark.parametrize(
    ("command", "isolation"),
    [
        (RUN_ATTACKS, "namespaces"),
        ((*RUN_ATTACKS, "namespaces"), "landlock"),
        ((*POD, "user-namespaces", *RUN_ATTACKS), "namespaces"),
        ((*POD, "default-profile", *RUN_ATTACKS), "landlock"),
    ],
    ids=["namespaces", "landlock", "non-root with namespaces", "restricted pod"],
)
def test_every_attack_is_contained_with_its_verdict_and_leaves_nothing(command: tuple[str, ...], isolation: str):
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["wrong"] == []
    assert told["described"]["isolation"] == isolation
    assert (told["user"] != 0) is (command[:2] == POD or os.getuid() != 0)


def test_the_corpus_has_at_least_sixty_attacks_of_different_names():
    names = [attack.name for attack in sandbox_attacks.corpus()]
    assert len(set(names)) == len(names) >= 60


@pytest.mark.parametrize("without", [(), ("namespaces",)], ids=["all", "landlock"])
def test_every_guarantee_holds_with_either_isolation(without: tuple[str, ...]):
    assert find_out(without).lacking == []


def test_threads_are_not_bounded_where_the_kernel_cannot_ask():
    found = find_out(("namespaces", "ask"))
    assert found.lacking == ["tasks"]
    assert found.fatal == []


def test_code_rewards_are_refused_where_nothing_holds_files_apart():
    with pytest.raises(UserError, match=r"spec\.rewards\[0\]\.code: the sandbox does not hold here: reads nothing but"):
        CodeScorer(CodeReward(), "spec.rewards[0].code", without=("namespaces", "landlock"))


def test_what_the_self_test_tries_works_outside_of_the_sandbox(tmp_path: Path):
    (tmp_path / "canary").write_text("secret")
    names = {
        "network",
        "files",
        "writes",
        "processes",
        "signals",
        "programs",
        "environment",
        "memory",
        "disk",
        "output",
    }
    failed = []
    for attempt in ATTEMPTS:
        if attempt.name in names:
            command = [sys.executable, "-c", attempt.source(tmp_path / "canary")]
            if subprocess.run(command, cwd=tmp_path, capture_output=True).returncode != 0:
                failed.append(attempt.name)
    assert failed == []


@KINDS
async def test_cancelling_a_run_ends_its_processes(without: tuple[str, ...]):
    with Sandbox(1, without) as sandbox:
        running = asyncio.create_task(
            sandbox.run(LIMITLESS if "ask" not in without else "import time; time.sleep(600)", limits=PATIENT)
        )
        await reached(lambda: len(below(sandbox)) >= 2, SOON, "the program's start")
        running.cancel()
        await asyncio.wait([running])
        assert await asyncio.to_thread(sandbox.left_behind) == []


@pytest.mark.parametrize("without", [(), ("namespaces",)], ids=["all", "landlock"])
async def test_killing_a_warden_ends_what_it_watched(without: tuple[str, ...]):
    with Sandbox(1, without) as sandbox:
        running = asyncio.create_task(sandbox.run(LIMITLESS, limits=PATIENT))
        await reached(lambda: len(below(sandbox)) >= 9, SOON, "the program's processes")
        there = below(sandbox)
        os.kill(there[0], signal.SIGKILL)
        await reached(lambda: not any(Path(f"/proc/{pid}").exists() for pid in there), SOON, "their end")
        running.cancel()
        await asyncio.wait([running])
        assert await asyncio.to_thread(sandbox.left_behind) == []


@pytest.mark.parametrize("without", [(), ("namespaces",)], ids=["all", "landlock"])
async def test_a_program_that_ends_too_late_has_timed_out_even_if_it_is_looked_at_later_still(without: tuple[str, ...]):
    with Sandbox(1, without) as sandbox:
        running = asyncio.create_task(
            sandbox.run("import os, time\nos.fork()\ntime.sleep(6)", limits=Limits(seconds=5.0))
        )
        await reached(lambda: len(below(sandbox)) >= 3, SOON, "the program's second process")
        warden, program, _ = below(sandbox)
        os.kill(warden, signal.SIGSTOP)
        await reached(lambda: state(program) == "Z", SOON, "the program's end")
        os.kill(warden, signal.SIGCONT)
        assert (await running).verdict is Verdict.TIMEOUT


@KINDS
async def test_a_fault_of_the_sandbox_itself_is_told_and_leaves_nothing(without: tuple[str, ...]):
    with Sandbox(1, without) as sandbox:
        with pytest.raises(SandboxError, match="TypeError"):
            await sandbox.run("import time; time.sleep(600)", limits=Limits(seconds="soon"))  # type: ignore[arg-type]
        assert await asyncio.to_thread(sandbox.left_behind) == []


@KINDS
async def test_a_hundred_runs_leave_no_descriptor_process_or_file(without: tuple[str, ...]):
    with Sandbox(4, without) as sandbox:
        assert (await sandbox.run("print(1)", expected="1")).verdict is Verdict.PASSED
        gc.collect()  # What earlier tests left would close its files in between.
        before = descriptors(os.getpid()), descriptors(pid_of(sandbox))
        runs = (sandbox.run(f"print({n})", expected=str(n), limits=PATIENT) for n in range(100))
        outcomes = await asyncio.gather(*runs)
        assert {outcome.verdict for outcome in outcomes} == {Verdict.PASSED}
        assert sandbox.left_behind() == []
        # Each closes its end of a connection when it gets to it.
        await reached(
            lambda: (descriptors(os.getpid()), descriptors(pid_of(sandbox))) == before, SOON, "as many descriptors"
        )
        directory = sandbox._directory
    assert not directory.exists()


@pytest.mark.parametrize("without", ["", "namespaces"], ids=["all", "landlock"])
def test_killing_the_orchestrator_ends_what_it_ran(without: str):
    program = (
        "import asyncio, sys; from tandem_orchestrator.sandbox.client import Sandbox\n"
        "from tandem_orchestrator.sandbox.runs import Limits\n"
        f"sandbox = Sandbox(1, {without!r}.split(',')); sandbox.start()\n"
        "print(sandbox._zygote.pid, sandbox._directory, flush=True)\n"
        f"asyncio.run(sandbox.run({LIMITLESS!r}, limits=Limits(seconds={SOON})))"
    )
    owner = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    first, directory = next(line.split() for line in owner.stdout if line[0].isdigit() and "/" in line.split()[1])
    zygote = int(first)
    until(lambda: len(descendants(zygote)) >= 9, SOON, "the program's processes")
    there = [zygote, *descendants(zygote)]
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    owner.stdout.close()
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in there), SOON, "their end")
    until(lambda: not Path(directory).exists(), SOON, "the end of the directory")


async def test_large_inputs_and_outputs_pass_whole():
    text = "".join(f"{n}\n" for n in range(10**6))
    with Sandbox(1) as sandbox:
        outcome = await sandbox.run(
            "import sys\nsys.stdout.write(sys.stdin.read())", text, expected=text, limits=PATIENT
        )
    assert outcome.verdict is Verdict.PASSED


async def test_libraries_beside_the_interpreter_can_be_imported():
    with Sandbox(1) as sandbox:
        outcome = await sandbox.run(
            "import numpy\nprint(numpy.arange(5).sum())", expected="10", limits=Limits(seconds=SOON, memory=2**30)
        )
    assert outcome.verdict is Verdict.PASSED, outcome.complaint


async def test_the_end_of_standard_error_is_kept_and_is_as_an_interpreter_says_it():
    with Sandbox(1) as sandbox:
        outcome = await sandbox.run("import sys\nprint('x' * 10**5, file=sys.stderr)\n1 / 0", limits=PATIENT)
    assert outcome.verdict is Verdict.CRASHED
    assert outcome.exit_code == 1
    assert len(outcome.complaint) <= 4096
    assert outcome.complaint.endswith('  File "program.py", line 3, in <module>\nZeroDivisionError: division by zero\n')


def pid_of(sandbox: Sandbox) -> int:
    assert sandbox._zygote is not None
    return sandbox._zygote.pid


def descriptors(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]


def below(sandbox: Sandbox) -> list[int]:
    return descendants(pid_of(sandbox))


def descendants(pid: int) -> list[int]:
    proc = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY)
    try:
        return list(Processes(proc).below(pid))
    finally:
        os.close(proc)
