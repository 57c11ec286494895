# SPDX-License-Identifier: Apache-2.0
"""Programs that nobody trusts, run without privileges.

``client`` is what the orchestrator uses. It starts one ``zygote``, a process that holds nothing worth stealing; for
each run that forks a ``warden``, which forks the program and outlives it. ``confinement`` is what the program's process
does to itself before the first line of the program: ``namespaces`` where the machine allows them, ``landlock`` where
the kernel has it, ``seccomp`` always. ``guarantees`` finds out, by trying, which of it holds here.
"""
