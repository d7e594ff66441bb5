"""``adbench leaderboard``."""

from __future__ import annotations

from pathlib import Path

import typer

from adbench.cli.app import Json, Out, app
from adbench.errors import UserError

board = typer.Typer(help="Ranked tables of records.", no_args_is_help=True)
app.add_typer(board, name="leaderboard")


@board.command("show", epilog="Example:  adbench leaderboard show --out runs")
def leaderboard_show(
    out: Out = Path("runs"),
    json_: Json = False,
) -> None:
    """Rank the records found below a folder, one table for each protocol, test set and modality."""
    from adbench.leaderboard.show import print_boards
    from adbench.leaderboard.table import boards
    from adbench.results.rundir import records

    found = boards(record for _, record in records(out))
    if not found:
        raise UserError(f"There is no record below {out}. `adbench run` writes them.")
    print_boards(found, json_)
