# SPDX-License-Identifier: Apache-2.0
"""The system calls of a program: a list of those allowed, and rules that end the run when one of theirs is made.

Written as classic BPF. Where the kernel can ask (user notification, Linux 5.5), a call under a rule stops until the
warden has looked at it, so the verdict can name the rule and begun tasks can be counted. Elsewhere it kills.
"""

import ctypes
import struct
from collections.abc import Iterable, Mapping, Sequence

from tandem_orchestrator.sandbox import kernel

_ALLOWED = """
    read write readv writev pread64 pwrite64 preadv pwritev lseek close close_range fstat newfstatat stat lstat statx
    fstatfs access faccessat faccessat2 readlink readlinkat getdents64 getcwd chdir fchdir mkdir mkdirat rmdir unlink
    unlinkat rename renameat renameat2 ftruncate fallocate fsync fdatasync flock umask copy_file_range sendfile symlink
    symlinkat creat mmap mprotect munmap mremap brk madvise msync futex rt_sigaction rt_sigprocmask rt_sigreturn
    rt_sigpending rt_sigsuspend rt_sigtimedwait sigaltstack nanosleep clock_nanosleep clock_gettime clock_getres
    gettimeofday time getrandom getpid getppid gettid getuid geteuid getgid getegid getresuid getresgid getgroups
    getpgrp getpgid getsid setsid setpgid uname sysinfo sched_yield sched_getaffinity sched_getparam sched_getscheduler
    sched_get_priority_max sched_get_priority_min set_robust_list rseq set_tid_address exit exit_group wait4 waitid pipe
    pipe2 dup dup2 dup3 poll ppoll select pselect6 epoll_create epoll_create1 epoll_ctl epoll_wait epoll_pwait eventfd2
    eventfd getrlimit setrlimit getrusage times arch_prctl membarrier sendmsg recvmsg sendto recvfrom shutdown
    getsockopt setsockopt getsockname getpeername getitimer setitimer alarm pause restart_syscall timerfd_create
    timerfd_settime getcpu capget getpriority
"""

RULES: Mapping[str, str] = {
    "network": "socket connect bind listen accept accept4",
    "tracing": "ptrace process_vm_readv process_vm_writev process_madvise kcmp perf_event_open pidfd_getfd",
    "io_uring": "io_uring_setup io_uring_enter io_uring_register",
    "namespaces": "unshare setns",
    "mounts": "mount umount2 pivot_root chroot open_tree move_mount fsopen fsconfig fsmount fspick mount_setattr "
    "swapon swapoff quotactl acct open_by_handle_at name_to_handle_at fanotify_init",
    "keyrings": "add_key request_key keyctl",
    "kernel": "bpf userfaultfd init_module finit_module delete_module kexec_load kexec_file_load reboot iopl ioperm "
    "settimeofday clock_settime sethostname setdomainname syslog memfd_secret",
    "programs": "execve execveat",
    "signals": "tkill rt_sigqueueinfo rt_tgsigqueueinfo pidfd_send_signal pidfd_open",
    "shared memory": "shmget shmat semget msgget mq_open",
    "identity": "setuid setgid setreuid setregid setresuid setresgid setgroups setfsuid setfsgid capset",
    "processes": "fork vfork clone",
}
_CHECKED_RULES = {"kill": "signals", "tgkill": "signals", "socketpair": "network"}

# struct seccomp_data
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16
_LOAD, _RETURN = 0x20, 0x06
_EQUAL, _AT_LEAST, _ANY_BIT = 0x15, 0x35, 0x45

_KILL = 0x80000000
_ASK = 0x7FC00000
_ALLOW = 0x7FFF0000
_ERRNO = 0x00050000
_EPERM, _EAGAIN, _ENOTTY, _ENOSYS, _EOPNOTSUPP = 1, 11, 25, 38, 95

_AUDIT = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_X32 = 0x40000000

NEW_NAMESPACES = 0x7E020000
"""Flags of ``clone`` that make namespaces."""
_THREAD = 0x10000
_TEMPORARY = 0o20000000
_AF_UNIX = 1
# Setting the owner of a descriptor is a way to send signals; a wider pipe is memory that no limit counts.
_FCNTL_DENIED = (8, 10, 15, 1031)
_IOCTL_ALLOWED = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)
# PR_SET_NAME, PR_GET_NAME, PR_GET_DUMPABLE, PR_SET_VMA (the allocator names its memory)
_PRCTL_ALLOWED = (15, 16, 3, 0x53564D41)

_SET_FILTER, _NEW_LISTENER = 1, 8

Instructions = list[tuple[int, int, int, int]]


def rule_of(number: int, first_argument: int) -> str:
    """The rule that a call under watch falls under."""
    if number == kernel.NUMBERS["clone"] and first_argument & NEW_NAMESPACES:
        return "namespaces"
    return _RULE_OF_NUMBER[number]


def install(own_pid: int, *, ask: bool) -> int | None:
    """Filter this thread's calls from now on. With ``ask`` the descriptor that notifications are read from.

    ``own_pid`` is the one process that it may send signals to. The process must have ``no_new_privs`` set.

    Raises:
        OSError: the kernel has no seccomp filters, or cannot ask.
    """
    code = b"".join(struct.pack("=HBBI", *step) for step in _program(own_pid, ask=ask))
    buffer = ctypes.create_string_buffer(code, len(code))
    described = struct.pack("@HxxxxxxP", len(code) // 8, ctypes.addressof(buffer))
    found = kernel.call("seccomp", _SET_FILTER, _NEW_LISTENER if ask else 0, described)
    return found if ask else None


def _program(own_pid: int, *, ask: bool) -> Instructions:
    stop = _ASK if ask else _KILL
    steps: Instructions = [(_LOAD, 0, 0, _ARCHITECTURE), *_unless(_EQUAL, _AUDIT[kernel.machine()], _KILL)]
    steps.append((_LOAD, 0, 0, _NUMBER))
    if kernel.machine() == "x86_64":
        steps += _if(_AT_LEAST, _X32, _KILL)
    checks = {
        "clone": _clone(ask=ask),
        "kill": _argument(0, [own_pid], _ALLOW, stop),
        "tgkill": _argument(0, [own_pid], _ALLOW, stop),
        "socketpair": _argument(0, [_AF_UNIX], _ALLOW, stop),
        "prlimit64": _argument(0, [0, own_pid], _ALLOW, _ERRNO | _EPERM),
        "fcntl": _argument(1, _FCNTL_DENIED, _ERRNO | _EPERM, _ALLOW),
        "ioctl": _argument(1, _IOCTL_ALLOWED, _ALLOW, _ERRNO | _ENOTTY),
        "prctl": _argument(0, _PRCTL_ALLOWED, _ALLOW, _ERRNO | _EPERM),
        "openat": _without_bit(2, _TEMPORARY),
        "open": _without_bit(1, _TEMPORARY),
    }
    for name, check in checks.items():
        if name in kernel.NUMBERS:
            steps += [(_EQUAL, 0, len(check), kernel.NUMBERS[name]), *check]
    return steps + _verdicts(stop)


def _verdicts(stop: int) -> Instructions:
    """What is decided by the number alone. Calls of no list do not exist: libraries then take an older way."""
    steps: Instructions = []
    for number in _numbers(_ALLOWED.split()):
        steps += _if(_EQUAL, number, _ALLOW)
    for number in _RULE_OF_NUMBER:
        steps += _if(_EQUAL, number, stop)
    return [*steps, (_RETURN, 0, 0, _ERRNO | _ENOSYS)]


def _clone(*, ask: bool) -> Instructions:
    if ask:
        return [(_RETURN, 0, 0, _ASK)]
    load = (_LOAD, 0, 0, _ARGUMENTS)
    return [
        load,
        *_if(_ANY_BIT, NEW_NAMESPACES, _KILL),
        *_if(_ANY_BIT, _THREAD, _ALLOW),
        (_RETURN, 0, 0, _ERRNO | _EAGAIN),
    ]


def _argument(index: int, values: Sequence[int], then: int, otherwise: int) -> Instructions:
    """Compares the low half: all of these arguments are 32 bits wide."""
    steps: Instructions = [(_LOAD, 0, 0, _ARGUMENTS + 8 * index)]
    for value in values:
        steps += _if(_EQUAL, value, then)
    return [*steps, (_RETURN, 0, 0, otherwise)]


def _without_bit(index: int, bit: int) -> Instructions:
    load = (_LOAD, 0, 0, _ARGUMENTS + 8 * index)
    return [load, *_if(_ANY_BIT, bit, _ERRNO | _EOPNOTSUPP), (_RETURN, 0, 0, _ALLOW)]


def _if(test: int, value: int, verdict: int) -> Instructions:
    return [(test, 0, 1, value), (_RETURN, 0, 0, verdict)]


def _unless(test: int, value: int, verdict: int) -> Instructions:
    return [(test, 1, 0, value), (_RETURN, 0, 0, verdict)]


def _numbers(names: Iterable[str]) -> list[int]:
    return [kernel.NUMBERS[name] for name in names if name in kernel.NUMBERS]


_RULE_OF_NUMBER = {number: rule for rule, names in RULES.items() for number in _numbers(names.split())} | {
    kernel.NUMBERS[name]: rule for name, rule in _CHECKED_RULES.items()
}
