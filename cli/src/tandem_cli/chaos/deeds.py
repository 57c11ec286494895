# SPDX-License-Identifier: Apache-2.0
"""What is done to processes, by a process of its own beside them: ``python deeds.py ORDER``, ORDER being JSON.

It looks for its targets and writes ``{"armed": …}``; at a line on its standard input it does the deed at once and
writes ``{"struck": Unix seconds}``; when the deed's time is over, nothing of the targets is left, or its standard input
ends, it puts everything right and writes ``{"over": true}``. So a fault ends with whoever started it, even by SIGKILL.

Needs nothing but Python, since it is also sent as source text into containers (:mod:`.program`).
"""

import contextlib
import json
import os
import random
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from pathlib import Path
from typing import Any

from tandem_cli.chaos.interception import intercepted
from tandem_cli.chaos.targets import LOOK_SECONDS, Order, Process, Refused, Targets

_PERIOD_SECONDS = 0.2
_HANDOFF_SECONDS = 600.0
"""How long a handoff may take until its first bucket."""
_BALLOON_STEP = 2**20

type Deed = Generator[float, None, None]
"""Done up to its first ``yield``, which it gives the seconds to its next look; closing it puts everything right."""


def kill(targets: Targets) -> Deed:
    """SIGKILL for the component's first process: of a trainer the first rank, of a pod each container's."""
    targets.demand()
    for process in targets.first if targets.order["component"] != "trainer" else targets.first[:1]:
        process.signal(signal.SIGKILL)
    yield 0.0


def stop(targets: Targets) -> Deed:
    """SIGSTOP for all of it, SIGCONT at the end."""
    targets.demand()
    try:
        targets.signal(signal.SIGSTOP)
        while targets.alive:
            yield LOOK_SECONDS
    finally:
        targets.signal(signal.SIGCONT)


def slow_down(targets: Targets) -> Deed:
    """Stopped for all but 1/``factor`` of each fifth of a second."""
    targets.demand()
    running = _PERIOD_SECONDS / float(targets.order["factor"])
    try:
        while targets.alive:
            targets.signal(signal.SIGSTOP)
            yield _PERIOD_SECONDS - running
            targets.signal(signal.SIGCONT)
            yield running
    finally:
        targets.signal(signal.SIGCONT)


def fill_disk(targets: Targets) -> Deed:
    """Take all that is free on the file system of ``directory``, and what becomes free meanwhile."""
    directory = Path(targets.order["directory"])
    check_own_file_system(directory)
    file = directory / ".tandem-chaos"
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        while True:
            _take_all(descriptor)
            yield LOOK_SECONDS
    finally:
        os.close(descriptor)
        file.unlink()


def check_own_file_system(directory: Path) -> None:
    """Raise Refused if filling it would fill more than the job's own."""
    device = directory.stat().st_dev
    shared = ("/", "/tmp", "/var", "/home", "/dev/shm", "/etc/hosts", "/dev/termination-log")  # noqa: S108
    for other in shared:
        with contextlib.suppress(OSError):
            if Path(other).stat().st_dev == device:
                raise Refused(
                    f"{directory} is on the file system of {other}, so that others' disk would be full as well; give "
                    "the job a file system of its own"
                )


def _take_all(descriptor: int) -> None:
    size, step = os.fstat(descriptor).st_size, 2**30
    while step >= 4096:
        try:
            os.posix_fallocate(descriptor, size, step)
            size += step
        except OSError:
            step //= 2


def corrupt_segment(targets: Targets) -> Deed:
    """Flip a bit in the weights that the first rank hands over, in the first bucket of each segment, once the trainer
    has written it and before the engine reads it; in the next handoff if this one has come too far.
    """
    targets.demand()
    directory = targets.variable("TANDEM_RUN_DIR")
    if directory is None:
        raise Refused("the trainer does not say in TANDEM_RUN_DIR where it hands over weights")
    chance, damaged = random.Random(0), threading.Event()

    def damage(bucket: Mapping[str, Any], descriptors: list[int]) -> None:
        for segment in descriptors:
            _flip_bit(bucket, segment, chance)
            damaged.set()

    with intercepted(Path(directory) / "handoff-0.sock", damage):
        until = time.monotonic() + _HANDOFF_SECONDS
        while not damaged.wait(LOOK_SECONDS):
            if _ended(0.0):
                return
            if not targets.alive or time.monotonic() > until:
                raise Refused(f"the trainer handed no weights over in {_HANDOFF_SECONDS:.0f} s, or has ended")
        while targets.alive:
            yield LOOK_SECONDS


def _flip_bit(bucket: Mapping[str, Any], segment: int, chance: random.Random) -> None:
    """In one of the bucket's tensors: what is between them is never read."""
    tensor = chance.choice([entry for entry in bucket["entries"] if entry["nbytes"]])
    place = tensor["offset"] + chance.randrange(tensor["nbytes"])
    (byte,) = os.pread(segment, 1, place)
    os.pwrite(segment, bytes([byte ^ 1 << chance.randrange(8)]), place)


def out_of_memory(targets: Targets) -> Deed:
    """Take memory of this container until the kernel kills for it, having told it to begin with the target."""
    limit = _memory_limit()
    targets.demand()
    with first_victims(targets.all):
        yield from until_one_is_killed(targets, limit)
    if targets.whole:
        raise Refused("the kernel killed something else for it")


def until_one_is_killed(targets: Targets, nbytes: int, first: Callable[[], object] = lambda: None) -> Deed:
    """Have a child take so much memory, after it has called ``first``, as long as all targets and itself live."""
    balloon = _inflated(nbytes, first)
    try:
        while targets.whole and os.waitpid(balloon, os.WNOHANG) == (0, 0):
            yield 0.01
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(balloon, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(balloon, 0)


@contextlib.contextmanager
def first_victims(processes: list[Process]) -> Iterator[None]:
    """Have the kernel begin with these where it has to kill."""
    files = [Path(f"/proc/{process.pid}/oom_score_adj") for process in processes]
    before = [file.read_text() for file in files]
    try:
        for file in files:
            file.write_text("1000")
        yield
    finally:
        for file, score in zip(files, before, strict=True):
            with contextlib.suppress(OSError):
                file.write_text(score)


def _memory_limit() -> int:
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):
            limit = int(Path(file).read_text())
            if limit < 2**50:
                return limit
    raise Refused("the container has no memory limit, so that it is the node that would run out of memory")


def _inflated(nbytes: int, first: Callable[[], object]) -> int:
    parent = os.getpid()
    if (child := os.fork()) != 0:
        return child
    try:
        first()
        # A file in memory counts for the group, but nobody's size: the kernel does not take us for the biggest.
        file = os.memfd_create("tandem-chaos")
        for _ in range(nbytes // _BALLOON_STEP + 1):
            os.write(file, bytes(_BALLOON_STEP))
        while os.getppid() == parent:
            time.sleep(LOOK_SECONDS)
    finally:
        os._exit(0)


DEEDS: dict[str, Callable[[Targets], Deed]] = {
    "Kill": kill,
    "Stop": stop,
    "SlowDown": slow_down,
    "FillDisk": fill_disk,
    "CorruptSegment": corrupt_segment,
    "OutOfMemory": out_of_memory,
}


def main(order: Order, deeds: Mapping[str, Callable[[Targets], Deed]]) -> None:
    """Arm, wait for the word, do it, and put everything right at the end."""
    # Whoever started us hears of these, and our standard input then ends.
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    targets = Targets(order)
    _say(armed=len(targets.first))
    if not os.read(sys.stdin.fileno(), 4096):
        return
    deed = deeds[order["deed"]](targets)
    try:
        pause = next(deed, None)
        struck = time.time()
        until = time.monotonic() + float(order["seconds"])
        _say(struck=struck)
        while pause is not None and (left := until - time.monotonic()) > 0 and not _ended(min(pause, left)):
            pause = next(deed, None)
    except (Refused, OSError) as error:
        _say(refused=str(error))
        return
    finally:
        deed.close()
    _say(over=True)


def _ended(seconds: float) -> bool:
    """Whether our standard input ends within so many seconds."""
    readable = select.select([sys.stdin], [], [], seconds)[0]
    return bool(readable) and not os.read(sys.stdin.fileno(), 4096)


def _say(**said: Any) -> None:
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.write(json.dumps(said) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), DEEDS)
