"""The terminal: progress bars, tables, messages. Tables and JSON go to standard output, all else to standard error."""

from __future__ import annotations

import io
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from adbench.context import Progress
from adbench.errors import STANDARD_OUTPUT
from adbench.utils.files import Descriptor


class Terminal(Console):
    """A console that prints escape sequences instead of obeying them: names in downloaded files may hold some."""

    def render_str(self, text: str, **style: Any) -> Text:
        """``text``, :func:`printable`."""
        return super().render_str(printable(text), **style)


def printable(text: str) -> str:
    """``text`` with control characters, and those that change the direction of reading, spelled out."""
    if text.replace("\n", "").replace("\t", "").isprintable():
        return text
    return "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in text)


def is_formula(text: str) -> bool:
    """Whether a spreadsheet takes ``text`` for a formula, and runs it."""
    return text.startswith(("=", "+", "-", "@", "\t", "\r", "\n"))


def csv_cell(value: Any) -> Any:
    """``value`` for a CSV file: a text is :func:`printable`, and quoted where it would be a formula."""
    if not isinstance(value, str):
        return value
    text = printable(value)
    return f"'{text}" if is_formula(text) else text


out = Terminal(highlight=False)
err = Terminal(stderr=True, highlight=False)


def line_width() -> int | None:
    """Characters of a line of standard output: of the terminal, or ``COLUMNS`` where that is set; None: as many as it takes."""
    asked = os.environ.get("COLUMNS", "")
    if asked.isdecimal() and int(asked) > 0:
        return int(asked)
    return out.width if out.is_terminal else None


def table(title: str, columns: Sequence[tuple[str, str]], rows: Iterable[Sequence[str]], caption: str = "") -> None:
    """Print a table with (heading, justification) columns and a caption below; every text is escaped."""
    grid = Table(title=escape(title), title_justify="left", title_style="bold", caption=escape(caption) or None)
    grid.caption_justify = "left"
    for heading, justify in columns:
        grid.add_column(escape(heading), justify=justify, overflow="fold")  # type: ignore[arg-type]
    for row in rows:
        grid.add_row(*(Text(printable(text)) for text in row))  # no markup to look for, a third faster
    width = line_width()
    if width is None:  # as wide as its cells, and no name is cut or folded
        needed = grid.__rich_measure__(out, out.options.update_width(2000)).maximum
        Terminal(file=out.file, highlight=False, width=max(out.width, 160, needed)).print(grid)
        return
    out.print(grid, width=width)


def print_json(value: Any) -> None:
    """Print ``value`` as JSON; NaN is refused."""
    write(json.dumps(value, indent=2, allow_nan=False))


def write(text: str) -> None:
    """Print ``text`` on standard output as it is."""
    out.file.write(text + "\n")


class _StandardOutput(io.FileIO):
    """An error of which says where it was; that of a file does so by itself."""

    def __init__(self, kept: Descriptor) -> None:
        super().__init__(kept.number, "w", closefd=False)
        self._kept = kept

    def write(self, data: Any) -> int:
        try:
            self._kept.check()
            return super().write(data)
        except OSError as error:
            error.filename = error.filename or STANDARD_OUTPUT
            raise


@contextmanager
def reserved_stdout() -> Iterator[None]:
    """Within the block standard output is for :data:`out` alone: what others print, C libraries too, goes to standard error."""
    kept: Descriptor | None = None
    own = sys.stdout
    own.flush()
    with suppress(OSError, ValueError, AttributeError):  # captured by a notebook, a test, ...: no file behind it
        if own.fileno() == 1:
            kept = Descriptor(os.dup(1))
            named = io.BufferedWriter(_StandardOutput(kept))
            own = io.TextIOWrapper(named, own.encoding, own.errors, line_buffering=own.isatty())
            os.dup2(2, 1)
    out.file = own
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        try:
            own.flush()
        finally:
            out.file = None  # type: ignore[assignment]
            if kept is not None:
                with suppress(OSError):  # closed by a plug-in: what there was to print, the line above could not
                    os.dup2(kept.check(), 1)
                    os.close(kept.number)


def say(text: str) -> None:
    """A message for the user, on standard error."""
    err.print(escape(text), soft_wrap=True)


def complain(text: str) -> None:
    """Print an error, one clear sentence, on standard error."""
    err.print(f"[bold red]adbench:[/] {escape(text)}", soft_wrap=True)


def figures_text(figures: dict[str, Any]) -> str:
    """Like "loss 0.1234  best 3"."""
    return "  ".join(f"{n} {v:.4g}" if isinstance(v, float) else f"{n} {v}" for n, v in figures.items())


class LiveProgress(Progress):
    """Progress bars with loss and time left on a terminal; elsewhere a plain line every ten seconds.

    Of phases without a total only those that wait for another process are shown, once.
    """

    def __init__(self, quiet: bool = False) -> None:
        self._quiet = quiet
        self._bars: Any = None
        self._tasks: dict[str, Any] = {}
        self._said: dict[str, float] = {}
        self._begun: dict[str, float] = {}

    def __enter__(self) -> Self:
        if not self._quiet and err.is_terminal:
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
            from rich.progress import Progress as Bars

            self._bars = Bars(
                TextColumn("{task.description}"),
                BarColumn(bar_width=28),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[figures]}"),
                console=err,
                transient=False,
            )
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.reset()
        if self._bars is not None:
            self._bars.stop()

    def reset(self) -> None:
        """Forget finished phases; called between cells."""
        if self._bars is not None:
            for task in self._tasks.values():
                self._bars.stop_task(task)
        self._tasks.clear()
        self._said.clear()
        self._begun.clear()

    def update(self, phase: str, done: int, total: int, **figures: Any) -> None:
        if self._quiet:
            return
        if not total:
            if phase.startswith("wait") and phase not in self._said:
                say(f"  {phase}")
                self._said[phase] = time.monotonic()
            return
        if self._bars is not None:
            if phase not in self._tasks:
                self._tasks[phase] = self._bars.add_task(escape(phase), total=total, figures="")
            self._bars.update(self._tasks[phase], completed=done, total=total, figures=escape(figures_text(figures)))
            return
        now = time.monotonic()
        begun = self._begun.setdefault(phase, now)
        if done < total and now - self._said.get(phase, begun) < 10:
            return
        self._said[phase] = now
        left = (now - begun) / max(done, 1) * (total - done)
        tail = f", {left:.0f} s left" if done < total else f" in {now - begun:.1f} s"
        shown = figures_text(figures)
        say(f"  {phase}: {done}/{total}{tail}{f'  {shown}' if shown else ''}")
