"""The command line: parse, build a typed configuration, call what the Python API calls too, print.

One module a verb or group of verbs; importing it adds them to the application. Nothing heavy is imported before a verb
needs it: ``adbench --help`` must answer at once.
"""

from adbench.cli import run  # isort: skip - the first verb in --help
from adbench.cli import data, evaluate, fit, info, leaderboard, new, predict, report, status, tune
from adbench.cli.app import app, main, own_output

for group in (app, *(part.typer_instance for part in app.registered_groups)):
    for command in group.registered_commands if group is not None else ():
        assert command.callback is not None
        command.callback = own_output(command.callback)

__all__ = [
    "data",
    "evaluate",
    "fit",
    "info",
    "leaderboard",
    "main",
    "new",
    "predict",
    "report",
    "run",
    "status",
    "tune",
]
