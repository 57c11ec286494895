# SPDX-License-Identifier: Apache-2.0
"""The process that all runs are forked from; ``python -m tandem_orchestrator.sandbox.zygote DIRECTORY WEAKENED``.

It is started with an empty environment, imports what most programs import, moves out of sight of the machine where
that is allowed, says on standard output what it is like, and forks a warden for each connection. When its standard
input ends it ends all of them, and takes DIRECTORY with it. DIRECTORY is empty and in memory; WEAKENED names means to
do without, for tests: ``namespaces``, ``landlock``, ``ask``, with commas between.
"""

import contextlib
import gc
import json
import os
import select
import shutil
import signal
import socket
import sys
from dataclasses import asdict
from pathlib import Path
from typing import NoReturn

from tandem_orchestrator.sandbox import kernel, landlock, namespaces, seccomp, wire
from tandem_orchestrator.sandbox.confinement import House, Isolation, address_space, visible
from tandem_orchestrator.sandbox.processes import Processes
from tandem_orchestrator.sandbox.runs import Limits
from tandem_orchestrator.sandbox.warden import Warden

_BACKLOG = 256
_LIKELY_VICTIM = "500"
"""Among the pod's processes, the one to kill when memory runs out (proc(5), oom_score_adj)."""
_OFTEN_IMPORTED = (
    "array bisect collections copy dataclasses datetime decimal enum fractions functools heapq io itertools "
    "json math operator random re statistics string struct threading time typing"
)
SOCKET = "socket"
WORK = "work"


def main(directory: str, weakened: str) -> None:
    """Serve until standard input ends."""
    os.environ.clear()
    for name in _OFTEN_IMPORTED.split():
        __import__(name)
    base, without = Path(directory), set(weakened.split(","))
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(base / SOCKET))
    listening.listen(_BACKLOG)
    Path("/proc/self/oom_score_adj").write_text(_LIKELY_VICTIM)
    # Both are out of sight later.
    proc = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY)
    above = os.open(base.parent, os.O_RDONLY | os.O_DIRECTORY)
    (base / WORK).mkdir(mode=0o700)
    house, reason = _settle(base, without)
    _silence_standard(
        described={**asdict(house), "landlock": landlock.abi() if house.landlock else 0, "reason": reason}
    )
    gc.collect()
    gc.freeze()
    _serve(listening, house, base / WORK, proc)
    Processes(proc).end(os.getpid())
    shutil.rmtree(base.name, ignore_errors=True, dir_fd=above)


def _settle(base: Path, without: set[str]) -> tuple[House, str | None]:
    """Move into namespaces if that works here; why it does not otherwise."""
    root = base / "root"
    root.mkdir()
    reason = "not tried" if "namespaces" in without else namespaces.refusal(lambda: _try_namespaces(root))
    asks = "ask" not in without and namespaces.refusal(_try_asking) is None
    interpreter = address_space()
    if reason is None:
        namespaces.enter(root, visible())
    isolation = Isolation.LANDLOCK if reason else Isolation.NAMESPACES
    return House(isolation, asks, "landlock" not in without and landlock.abi() > 0, interpreter), reason


def _try_namespaces(root: Path) -> None:
    namespaces.enter(root, visible())
    namespaces.enter_own()
    namespaces.mount_work(2**20, 16)


def _try_asking() -> None:
    kernel.drop_capabilities()
    seccomp.install(os.getpid(), ask=True)


def _silence_standard(described: dict[str, object]) -> None:
    """Say what this zygote is like, then leave nothing on the standard descriptors but the end of input."""
    print(json.dumps(described), flush=True)
    nothing = os.open("/dev/null", os.O_RDWR)
    os.dup2(nothing, 1)
    os.close(nothing)


def _serve(listening: socket.socket, house: House, work: Path, proc: int) -> None:
    wardens: set[int] = set()
    ended, wake = socket.socketpair()
    ended.setblocking(False)
    wake.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
    # What a warden that was killed leaves behind comes here.
    kernel.prctl(kernel.PR_SET_CHILD_SUBREAPER, 1)
    poll = select.poll()
    for source in (listening, ended, sys.stdin):
        poll.register(source, select.POLLIN)
    while True:
        ready = {descriptor for descriptor, _ in poll.poll()}
        if sys.stdin.fileno() in ready:
            return
        if ended.fileno() in ready:
            ended.recv(4096)
            _reap(wardens, house, work, proc)
        if listening.fileno() in ready:
            connection, _ = listening.accept()
            if (pid := os.fork()) == 0:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                listening.close()
                _answer(connection, house, work / str(os.getpid()), proc)
            wardens.add(pid)
            connection.close()


def _reap(wardens: set[int], house: House, work: Path, proc: int) -> None:
    """Bury dead children, and do what a warden that did not end by itself could not do any more."""
    with contextlib.suppress(ChildProcessError):
        while (found := os.waitpid(-1, os.WNOHANG))[0] > 0:
            pid, status = found
            wardens.discard(pid)
            if status != 0 and house.isolation is Isolation.LANDLOCK:
                for orphan in set(Processes(proc).children(os.getpid())) - wardens:
                    os.kill(orphan, signal.SIGKILL)
                shutil.rmtree(work / str(pid), ignore_errors=True)


def _answer(connection: socket.socket, house: House, work: Path, proc: int) -> NoReturn:
    """Do one run, as its warden. A status other than 0 has the zygote look for what the warden left behind."""
    status = 1
    try:
        limits, source, given = wire.receive(connection)
        outcome = Warden(house, Limits(**limits), work, proc, connection).run(source, given)
        connection.sendall(wire.packed(outcome.header(), outcome.output))
        status = 0
    except EOFError:
        status = 0  # Whoever asked went before there was a question: nothing was begun.
    except Exception as error:  # noqa: BLE001 - whoever asked must hear of any, since this process ends without a trace
        with contextlib.suppress(OSError):  # unless they went
            connection.sendall(wire.packed({"failed": f"{type(error).__name__}: {error}"}))
    finally:
        os._exit(status)


if __name__ == "__main__":
    main(*sys.argv[1:])
