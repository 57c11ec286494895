# SPDX-License-Identifier: Apache-2.0
"""Faults on purpose: ``tandem chaos`` breaks a running job in ways that a long run meets, and sees whether it recovers.

``plan`` is the file that a user writes and the faults that it comes to. ``deeds`` is what is done to processes, which
``targets`` finds: a small program of its own, which puts right what it did even where whoever started it is gone;
``program`` makes one text of it for a container, ``confinement`` adds what takes root on this machine. A place
(``local``, ``cluster``) finds the job and starts deeds beside it. ``injector`` waits for the moment, has it done, and
judges by the phase protocol (``recovery``) when the job works again.
"""
