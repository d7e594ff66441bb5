"""A grid at work, as a person sees it: a row for every running cell, counts, throughput, the estimated end."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from adbench.results import status
from adbench.utils import console

_SPEAK = 30.0  # seconds between two lines about the whole grid, when there is no terminal
_SHOWN = 40  # rows at most


def duration(seconds: float) -> str:
    """Like "45 s", "12 min", "3.5 h", "2.1 days"."""
    for size, unit, digits in ((86400, "days", 1), (3600, "h", 1), (60, "min", 0)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.{digits}f} {unit}"
    return f"{seconds:.0f} s"


def left(doing: dict[str, Any], now: float) -> float | None:
    """Seconds until the phase that a ``status.json`` tells of will be over; None before anything can be said."""
    done, total = doing.get("done", 0), doing.get("total", 0)
    if not 0 < done < total:
        return None
    return max(0.0, now - float(doing.get("phase_started", now))) / done * (total - done)


def row(label: str, doing: dict[str, Any], now: float) -> tuple[str, ...]:
    """A run for a table: what, where, phase, progress, figures, time left of the phase, share of the GPU."""
    remaining = left(doing, now)
    return (
        label,
        str(doing.get("host", "")),
        str(doing.get("phase", "")),
        f"{doing.get('done', 0)}/{doing.get('total', 0)}" if doing.get("total") else "",
        console.figures_text(doing.get("figures") or {}),
        "" if remaining is None else duration(remaining),
        f"{doing['gpus']:g}" if doing.get("gpus") else "—",
    )


COLUMNS = ("run", "node", "phase", "done", "figures", "left", "GPU")


@dataclass
class Counts:
    """Cells of a grid by state; ``total`` are wanted, ``reused`` of the done ones were there before."""

    total: int
    done: int = 0
    reused: int = 0
    failed: int = 0
    running: int = 0

    @property
    def waiting(self) -> int:
        return max(0, self.total - self.done - self.failed - self.running)


class GridView:
    """The live view. On a terminal a table that is drawn again and again; elsewhere lines.

    Args:
        total: cells of the grid.
        quiet: show nothing.
    """

    def __init__(self, total: int, quiet: bool = False) -> None:
        self.counts = Counts(total)
        self._quiet = quiet
        self._begun = time.monotonic()
        self._said = self._begun
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
        self.counts.running = 0
        if not self._quiet:
            console.say(self.summary())

    def ended(self, label: str, reason: str, seconds: float, reused: bool) -> None:
        """A cell came to its end.

        Args:
            label: of the cell.
            reason: why it failed; "" when it did not.
            seconds: it took.
            reused: its record was there before.
        """
        counts = self.counts
        counts.done += not reason
        counts.failed += bool(reason)
        counts.reused += reused
        counts.running = max(0, counts.running - (not reused))
        if not self._quiet and not reused:
            how = f"failed: {reason}" if reason else f"done in {duration(seconds)}"
            console.say(f"[{counts.done + counts.failed}/{counts.total}] {label} {how}")

    def tick(self, running: Iterable[tuple[str, Path]]) -> None:
        """Show what is going on.

        Args:
            running: label and run folder of cells that are at work or about to be.
        """
        told = [(label, status.read(folder)) for label, folder in running]
        busy = [(label, doing) for label, doing in told if doing is not None and doing["state"] == "running"]
        self.counts.running = len(busy)
        if self._live is not None:
            self._live.update(self._drawn(busy))
        elif not self._quiet and time.monotonic() - self._said > _SPEAK:
            self._said = time.monotonic()
            console.say(self.summary())
            for label, doing in busy:
                console.say("  " + "  ".join(part for part in row(label, doing, time.time())[:6] if part))

    def summary(self) -> str:
        """Counts, throughput and the estimated end in one line."""
        counts = self.counts
        parts = [f"{counts.done} of {counts.total} done", f"{counts.running} running", f"{counts.waiting} waiting"]
        parts += [f"{counts.failed} failed"] if counts.failed else []
        elapsed, made = time.monotonic() - self._begun, counts.done + counts.failed - counts.reused
        if made:
            parts.append(f"{3600 * made / elapsed:.3g} cells/h")
            if remaining := counts.waiting + counts.running:
                parts.append(f"about {duration(elapsed / made * remaining)} left")
        return ", ".join(parts)

    def _drawn(self, busy: list[tuple[str, dict[str, Any]]]) -> RenderableType:
        grid = Table(box=None, pad_edge=False)
        for name in COLUMNS:
            grid.add_column(
                name, justify="left" if name in ("run", "node", "phase", "figures") else "right", no_wrap=True
            )
        for label, doing in busy[:_SHOWN]:
            grid.add_row(*(escape(text) for text in row(label, doing, time.time())))
        if len(busy) > _SHOWN:
            grid.add_row(f"… and {len(busy) - _SHOWN} more")
        return Group(Text(self.summary(), style="bold"), grid)
