"""``adbench new``: create a package with a method or dataset of your own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from adbench.cli.app import app

new = typer.Typer(help="Create a package with a new method or dataset of your own.", no_args_is_help=True)
app.add_typer(new, name="new")

Name = Annotated[str, typer.Argument(help="Lower-case letters, digits and underscores.")]
Where = Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder in which the package's folder is made.")]


@new.command("method", epilog="Example:  adbench new method eigenbrain --out ~/code")
def method(name: Name, out: Where = Path()) -> None:
    """Write an installable package with a small working method, its tests and its documentation."""
    _make("method", name, out)


@new.command("dataset", epilog="Example:  adbench new dataset my_hospital --out ~/code")
def dataset(name: Name, out: Where = Path()) -> None:
    """Write an installable package with a dataset that reads volumes from NumPy archives, its tests and documentation."""
    _make("dataset", name, out)


def _make(kind: Literal["method", "dataset"], name: str, out: Path) -> None:
    from adbench.cli.scaffold.make import new_package
    from adbench.utils.console import say

    folder = new_package(kind, name, out)
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        say(f"  {path}")
    root = " --data-root DIR" if kind == "dataset" else ""
    say(f"Next:  pip install -e {folder}  and then  adbench test {name}{root}")
