# SPDX-License-Identifier: Apache-2.0
"""Runs a Python program in this very process, as an interpreter that has just started would."""

import atexit
import os
import sys
import threading
import traceback
import types
from os import _exit
from typing import NoReturn

OUT_OF_MEMORY = 97
"""Exit code of a program that died of MemoryError."""

_FRAMES = 20


def become(source: bytes) -> NoReturn:
    """Run ``source`` as ``__main__`` on descriptors 0 to 2, then end this process."""
    _standard_streams()
    main = types.ModuleType("__main__")
    sys.modules["__main__"] = main
    sys.argv = ["program.py"]
    code = 1
    try:
        code = _run(source, main)
        # What the interpreter does at its end: wait for threads, then run what was registered.
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:  # noqa: BLE001 - whatever a program does at its end, it ends
        code = code or 1
    finally:
        _exit(code)


def _run(source: bytes, main: types.ModuleType) -> int:
    try:
        exec(compile(source, "program.py", "exec", dont_inherit=True), main.__dict__)  # noqa: S102 - what it is for
    except SystemExit as end:
        return _exit_code(end)
    except MemoryError:
        return OUT_OF_MEMORY
    except BaseException as error:  # noqa: BLE001 - the program's own, told as the interpreter would
        return _told(error)
    return 0


def _told(error: BaseException) -> int:
    try:
        # The first frame is of this module.
        trace = error.__traceback__ and error.__traceback__.tb_next
        traceback.print_exception(error.with_traceback(trace), limit=-_FRAMES)
    except MemoryError:
        return OUT_OF_MEMORY
    except BaseException:  # noqa: BLE001 - an exception can be made to fail when shown
        return 1
    return 1


def _exit_code(end: SystemExit) -> int:
    if end.code is None:
        return 0
    if isinstance(end.code, int):
        return end.code & 0xFF
    print(end.code, file=sys.stderr)
    return 1


def _standard_streams() -> None:
    sys.stdin = os.fdopen(0, encoding="utf-8", closefd=False)
    sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = os.fdopen(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)
    vars(sys).update(__stdin__=sys.stdin, __stdout__=sys.stdout, __stderr__=sys.stderr)
