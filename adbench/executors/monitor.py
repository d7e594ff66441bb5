"""The live view of a grid: a row for every running cell, counts, throughput, the estimated end."""

from __future__ import annotations

import time
from collections.abc import Iterable
from types import TracebackType
from typing import Any, Self

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from adbench.executors.serial import Outcome
from adbench.results import status
from adbench.results.format import duration
from adbench.runner.plan import Plan
from adbench.utils import console

COLUMNS = ("run", "node", "phase", "done", "figures", "left", "GPU")
_EVERY = 30.0  # seconds between two lines about the whole grid, when there is no terminal
_MAX_ROWS = 40


def row(label: str, doing: dict[str, Any], now: float) -> tuple[str, ...]:
    """A run as texts for :data:`COLUMNS`; "left" is the estimated time to the end of its phase.

    ``doing`` comes from :func:`adbench.results.status.read_status`, ``now`` is in seconds since the epoch.
    """
    done, total, left = doing.get("done", 0), doing.get("total", 0), ""
    if 0 < done < total:
        left = duration(max(0.0, now - float(doing.get("phase_started", now))) / done * (total - done))
    return (
        label,
        str(doing.get("host", "")),
        str(doing.get("phase", "")),
        f"{done}/{total}" if total else "",
        console.figures_text(doing.get("figures") or {}),
        left,
        f"{doing['gpus']:g}" if doing.get("gpus") else "—",
    )


class GridView:
    """Of a grid of ``total`` cells a table that is redrawn on a terminal; elsewhere lines now and then."""

    def __init__(self, total: int, quiet: bool = False) -> None:
        self._total = total
        self._done = self._reused = self._failed = self._busy = 0
        self._quiet = quiet
        self._begun = self._printed = time.monotonic()
        self._live: Any = None

    def __enter__(self) -> Self:
        if not self._quiet and console.err.is_terminal:
            from rich.live import Live

            self._live = Live(console=console.err, refresh_per_second=2, transient=True)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
        self._busy = 0
        if not self._quiet:
            console.say(self.summary())

    def ended(self, outcome: Outcome) -> None:
        """Count a cell that has ended, and say so."""
        self._done += outcome.error is None
        self._failed += outcome.error is not None
        self._reused += outcome.reused
        if not outcome.reused:
            self._busy = max(0, self._busy - 1)
            how = f"failed: {outcome.reason}" if outcome.error else f"done in {duration(outcome.seconds)}"
            if not self._quiet:
                console.say(f"[{self._done + self._failed}/{self._total}] {outcome.plan.cell.label} {how}")

    def tick(self, running: Iterable[Plan]) -> None:
        """Show what is going on in ``running``, cells that have been handed out."""
        read = [(plan.cell.label, status.read_status(plan.run_folder)) for plan in running]
        busy = [(label, doing) for label, doing in read if doing is not None and doing["state"] == "running"]
        self._busy = len(busy)
        if self._live is not None:
            self._live.update(self._drawn(busy))
        elif not self._quiet and time.monotonic() - self._printed > _EVERY:
            self._printed = time.monotonic()
            console.say(self.summary())
            for label, doing in busy:
                console.say("  " + "  ".join(part for part in row(label, doing, time.time())[:6] if part))

    def summary(self) -> str:
        """Counts, throughput and the estimated end in one line."""
        waiting = max(0, self._total - self._done - self._failed - self._busy)
        parts = [f"{self._done} of {self._total} done", f"{self._busy} running", f"{waiting} waiting"]
        parts += [f"{self._failed} failed"] if self._failed else []
        elapsed, made = time.monotonic() - self._begun, self._done + self._failed - self._reused
        if made:
            parts.append(f"{3600 * made / elapsed:.3g} cells/h")
            if left := waiting + self._busy:
                parts.append(f"about {duration(elapsed / made * left)} left")
        return ", ".join(parts)

    def _drawn(self, busy: list[tuple[str, dict[str, Any]]]) -> RenderableType:
        table = Table(box=None, pad_edge=False)
        for name in COLUMNS:
            table.add_column(name, justify="right" if name in ("done", "left", "GPU") else "left", no_wrap=True)
        for label, doing in busy[:_MAX_ROWS]:
            table.add_row(*(escape(text) for text in row(label, doing, time.time())))
        if len(busy) > _MAX_ROWS:
            table.add_row(f"… and {len(busy) - _MAX_ROWS} more")
        return Group(Text(self.summary(), style="bold"), table)
