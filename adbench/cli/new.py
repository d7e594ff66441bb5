"""``adbench new``: create an installable package with one working method, dataset or metric, its tests and its documentation."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

import typer

from adbench.cli.app import app
from adbench.errors import UserError
from adbench.utils.files import scratch

Kind = Literal["method", "dataset", "metric"]
Variant = Literal["", "nifti", "png"]
TEMPLATES = Path(__file__).parent / "templates"
NAME = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
LONGEST = 40
# Classes that the templates import or define: a class of one of these names would hide it.
TAKEN = {"Any", "Case", "ClassVar", "Context", "Dataset", "DatasetInfo", "Finding", "FitReport", "Image", "Method", "Metric",
         "Params", "ParamSet", "Path", "RawVolume", "RecipeParams", "ScoreHistogram", "SliceBatch", "SliceSet", "Split", "Stack",
         "Subject", "UserError", "VolumeDataset"}  # fmt: skip


def new_package(kind: Kind, name: str, out: Path, variant: Variant = "") -> Path:
    """Write the package of a new method, dataset or metric.

    Args:
        kind: what it holds.
        name: what users will type: lower-case letters, digits and single underscores.
        out: folder in which the package's folder ``adbench-<name>`` is made.
        variant: which files a dataset reads, "" for NIfTI.

    Raises:
        UserError: a name that is not valid or taken, or a folder that is there already.
    """
    check_name(kind, name)
    folder = Path(out) / f"adbench-{name.replace('_', '-')}"
    if folder.exists() or folder.is_symlink():
        raise UserError(f"{folder} exists already: choose another name, or another place with --out DIR.")
    with scratch(folder) as partial:
        for path, text in files(kind, name, variant).items():
            (partial / path).parent.mkdir(parents=True, exist_ok=True)
            (partial / path).write_text(text, encoding="utf-8")
        partial.rename(folder)
    return folder


def check_name(kind: Kind, name: str) -> None:
    """Refuse a ``name`` that cannot become an entry point and a module, or that is taken.

    Raises:
        UserError: such a name; it suggests a valid one where it can.
    """
    import importlib.util

    from adbench.cli.describe import KINDS
    from adbench.config import registry
    from adbench.metrics.spec import SPECS

    if not NAME.fullmatch(name) or len(name) > LONGEST:
        better = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_").lstrip("0123456789_")[:LONGEST].rstrip("_")
        hint = f" Try {better!r}." if NAME.fullmatch(better) else ""
        raise UserError(
            f"{name!r} cannot name a {kind}: use lower-case letters, digits and single underscores, beginning with a "
            f"letter, at most {LONGEST} of them.{hint}"
        )
    if name in SPECS:
        raise UserError(f"There is a metric called {name!r} already (built-in): choose another name.")
    for other in KINDS:
        entry = registry.entries(other).get(name)
        if entry is not None:
            raise UserError(f"There is a {other[:-1]} called {name!r} already ({entry.origin}): choose another name.")
    if importlib.util.find_spec(f"adbench_{name}") is not None:
        raise UserError(f"A module adbench_{name} is installed already: choose another name.")


def files(kind: Kind, name: str, variant: Variant = "") -> dict[str, str]:
    """Path -> text of every file of the package; ``variant`` as for :func:`new_package`."""
    import builtins

    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    from adbench import __version__

    variant = variant or ("nifti" if kind == "dataset" else "")
    camel = "".join(part.capitalize() for part in name.split("_"))
    values = {
        "kind": kind,
        "name": name,
        "variant": variant,
        "module": f"adbench_{name}",
        "distribution": f"adbench-{name.replace('_', '-')}",
        "cls": camel + kind.capitalize() if camel in TAKEN or hasattr(builtins, camel) else camel,
        "adbench_version": __version__,
    }
    environment = Environment(  # Python and Markdown, not HTML: nothing is escaped, and the name is checked
        loader=FileSystemLoader([TEMPLATES / kind / variant, TEMPLATES / kind, TEMPLATES]),
        undefined=StrictUndefined,
        keep_trailing_newline=True,
    )
    places = {
        "pyproject.toml": "pyproject.toml",
        "README.md": "README.md",
        f"src/{values['module']}/__init__.py": "__init__.py",
        f"src/{values['module']}/{kind}.py": f"{kind}.py",
        f"tests/test_{name}.py": "test.py",
    }
    return {place: environment.get_template(f"{source}.jinja").render(values) for place, source in places.items()}


new = typer.Typer(help="Create a package with a new method, dataset or metric of your own.", no_args_is_help=True)
app.add_typer(new, name="new")

Name = Annotated[str, typer.Argument(help="Lower-case letters, digits and underscores.")]
Where = Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder in which the package's folder is made.")]


@new.command("method", epilog="Example:  adbench new method eigenbrain --out ~/code")
def method(name: Name, out: Where = Path()) -> None:
    """Write an installable package with a small working method, its tests and its documentation."""
    _make("method", name, out)


@new.command("dataset", epilog="Example:  adbench new dataset my_hospital --files png --out ~/code")
def dataset(
    name: Name,
    out: Where = Path(),
    files: Annotated[Literal["nifti", "png"], typer.Option(help="What it reads: volumes or slices.")] = "nifti",
) -> None:
    """Write an installable package with a dataset that reads NIfTI volumes or PNG slices, its tests and documentation."""
    _make("dataset", name, out, files)


@new.command("metric", epilog="Example:  adbench new metric missed_lesion --out ~/code")
def metric(name: Name, out: Where = Path()) -> None:
    """Write an installable package with a small working metric, its tests and its documentation."""
    _make("metric", name, out)


def _make(kind: Kind, name: str, out: Path, variant: Variant = "") -> None:
    from adbench.utils.console import say

    folder = new_package(kind, name, out, variant)
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        say(f"  {path}")
    root = " --data-root DIR" if kind == "dataset" else ""
    say(f"Next:  pip install -e {folder}  and then  adbench test {name}{root}")
