"""Boards on the terminal, or as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import wrap

from adbench.leaderboard.board import Board
from adbench.leaderboard.export import RANKS, READING, board_json, columns
from adbench.utils.console import out, print_json, say, table

WIDE = 140  # characters; a narrower terminal gets fewer columns
HEADING = 12  # characters of a line of a heading


def print_boards(
    boards: Sequence[Board], as_json: bool, by: str | None = None, failures: Sequence[tuple[str, BaseException]] = ()
) -> None:
    """Print every board.

    Args:
        boards: of runs, or of published results.
        as_json: one JSON document instead of tables.
        by: the metric whose best value comes first; None: see :meth:`Board.sort`.
        failures: (cell, error) of runs that have no record; part of the JSON.
    """
    for board in boards if by else ():
        board.sort(by)
    if as_json:
        failed = [{"cell": name, "error": str(error)} for name, error in failures]
        print_json({"boards": [board_json(board) for board in boards], "failures": failed})
        return
    wide = out.width >= WIDE or not out.is_terminal
    for board in boards:
        found = columns(board)
        if not wide:
            metrics = [column for column in found if column.metric][:3]
            found = [
                column for column in found if column in metrics or column.heading in ("#", "method", "seeds", "seed")
            ]
        # Narrow headings leave the cells their width; why a row has no rank stands below the table.
        headings = [("\n".join(wrap(one.heading, HEADING)), "right" if one.right else "left") for one in found]
        cells = [[cell.partition(" ")[0] for cell in one.cells] if one.heading == "#" else one.cells for one in found]
        title = f"{board.test_set.protocol} v{board.test_set.version} · {board.title}"
        caption = _caption(board) if board is boards[-1] else ""
        table(title, headings, list(zip(*cells, strict=True)), caption=caption)
        if board.unranked:
            say(f"Not ranked: {board.unranked}.")
        elif board.pooled and (without := [f"{e.label} ({e.reason})" for e in board.entries if e.rank is None]):
            say(f"Without a rank: {', '.join(without)}.")
        for reason, names in _undefined(board).items():
            say(f"Undefined: {', '.join(names)}: {reason}")


def _caption(board: Board) -> str:
    """How to read the columns."""
    extra = [f"{board.facts(name).column}: {board.facts(name).definition.rstrip('.')}." for name in board.extra]
    return " ".join([READING, *([RANKS] if board.pooled else []), *extra])


def _undefined(board: Board) -> dict[str, list[str]]:
    """Reason -> the metrics shown that some entry has no value of for this reason."""
    reasons: dict[str, list[str]] = {}
    for name in board.metrics:
        numbers = [entry.estimates[name] for entry in board.entries if name in entry.estimates]
        for reason in sorted({number.reason for number in numbers if number.value is None and number.reason}):
            reasons.setdefault(reason, []).append(name)
    return reasons
