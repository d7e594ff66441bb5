"""``adbench data``: look at a dataset, check it, prepare it, and make synthetic ones in the real layouts."""

from __future__ import annotations

import typer

from adbench.cli.app import app

data = typer.Typer(help="Look at datasets: find, check, prepare, show; write synthetic ones.", no_args_is_help=True)
app.add_typer(data, name="data")
