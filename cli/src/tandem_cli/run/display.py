# SPDX-License-Identifier: Apache-2.0
"""The progress of a run: a live panel on a terminal, a few plain lines elsewhere."""

import time
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from tandem_api.status import JobPhase
from tandem_cli.run.view import View, clock, percent, rate

_DOING = {
    JobPhase.PENDING: "starting etcd",
    JobPhase.STARTING: "starting engine and trainer",
    JobPhase.WARMUP: "supervised warm-up",
    JobPhase.ROLLOUT: "generating and scoring responses",
    JobPhase.RELEASE: "the engine lets go of its memory",
    JobPhase.TRAIN: "updating the policy",
    JobPhase.HANDOFF: "handing the new weights to the engine",
    JobPhase.RECOVERING: "starting again from the last checkpoint",
    JobPhase.SUSPENDED: "saved",
    JobPhase.SUCCEEDED: "done",
    JobPhase.FAILED: "failed",
}
_REMARKABLE = (JobPhase.STARTING, JobPhase.WARMUP, JobPhase.RECOVERING, JobPhase.SUSPENDED)


class Display(Protocol):
    """Shows views as they come, and notes that stay."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def show(self, view: View) -> None: ...

    def note(self, text: str) -> None: ...


def display_for(console: Console, title: str) -> Display:
    """The display that fits the console."""
    return LivePanel(console, title) if console.is_terminal else PlainLines(console, title)


class LivePanel:
    """A panel that is redrawn in place."""

    def __init__(self, console: Console, title: str) -> None:
        self._title = title
        self._spinner = Spinner("dots", style="cyan")
        self._live = Live(console=console, refresh_per_second=8, transient=False)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def show(self, view: View) -> None:
        self._live.update(self._panel(view))

    def note(self, text: str) -> None:
        self._live.console.print(Text(text, style="yellow"))

    def _panel(self, view: View) -> RenderableType:
        doing = "saving; Ctrl-C again stops at once" if view.stopping else _DOING[view.phase]
        share = f"  {view.phase_share:.0%}" if view.phase_share is not None else ""
        self._spinner.update(text=Text.assemble((f" {view.phase.value}{share}", "bold cyan"), (f"  {doing}", "dim")))
        return Panel(
            Group(self._spinner, _bar(view), _numbers(view)),
            title=f"[bold]{self._title}[/]",
            title_align="left",
            border_style="dim",
            padding=(0, 1),
        )


def _bar(view: View) -> RenderableType:
    left = f"{clock(view.seconds_left)} left" if view.seconds_left is not None else ""
    row = Table.grid(expand=True, padding=(0, 1))
    row.add_column(no_wrap=True)
    row.add_column(ratio=1)
    row.add_column(no_wrap=True, justify="right")
    row.add_row(
        f"iteration {view.iteration}/{view.iterations}",
        ProgressBar(total=view.iterations, completed=view.iteration),
        f"{clock(view.seconds)}  {left}".rstrip(),
    )
    return row


def _numbers(view: View) -> RenderableType:
    accuracy = percent(view.accuracy)
    if view.accuracy_before is not None and view.accuracy is not None:
        accuracy = f"{percent(view.accuracy_before)} → {accuracy}"
    cells = {
        "reward": "–" if view.reward is None else f"{view.reward:.3f}",
        "held-out accuracy": accuracy,
        "throughput": rate(view.tokens_per_second),
        "switch": f"{view.switch_seconds:.2f} s" if view.switch_seconds else "–",
    }
    if view.restarts:
        cells["restarts"] = str(view.restarts)
    table = Table.grid(expand=True, padding=(0, 2))
    for _ in cells:
        table.add_column(ratio=1)
    table.add_row(*(Text(name, style="dim") for name in cells))
    table.add_row(*(Text(value, style="bold") for value in cells.values()))
    return table


class PlainLines:
    """One line an iteration, and one where something remarkable happens."""

    def __init__(self, console: Console, title: str) -> None:
        self._console = console
        self._title = title
        self._phase: JobPhase | None = None
        self._iteration: int | None = None

    def __enter__(self) -> Self:
        self._print(self._title)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def show(self, view: View) -> None:
        if view.phase is not self._phase and view.phase in _REMARKABLE:
            self._print(f"{view.phase.value}: {_DOING[view.phase]}")
        self._phase = view.phase
        if self._iteration is not None and view.iteration > self._iteration:
            self._print(_line(view))
        self._iteration = view.iteration

    def note(self, text: str) -> None:
        self._print(text)

    def _print(self, text: str) -> None:
        self._console.print(f"{time.strftime('%H:%M:%S')}  {text}", markup=False, highlight=False, soft_wrap=True)


def _line(view: View) -> str:
    parts = [f"iteration {view.iteration}/{view.iterations}"]
    if view.reward is not None:
        parts.append(f"reward {view.reward:.3f}")
    if view.accuracy is not None:
        parts.append(f"held-out {percent(view.accuracy)}")
    if view.tokens_per_second is not None:
        parts.append(rate(view.tokens_per_second))
    if view.switch_seconds:
        parts.append(f"switch {view.switch_seconds:.2f} s")
    if view.seconds_left is not None:
        parts.append(f"{clock(view.seconds_left)} left")
    return "  ".join(parts)
