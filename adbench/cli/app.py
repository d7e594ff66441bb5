"""The command-line application: options that commands share, and the exit codes of errors."""

from __future__ import annotations

import io
import os
import re
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer

from adbench import __version__
from adbench.errors import UserError, sentence

app = typer.Typer(
    name="adbench",
    help="Benchmark harness for unsupervised anomaly detection on brain MRI.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    add_completion=False,
    epilog="Try it without data: [bold]adbench run --method histeq,constant --dataset phantom[/]",
)

_LEAST_MEMORY = 450 << 20  # bytes of address space

Json = Annotated[bool, typer.Option("--json", help="Print JSON (stable keys, unrounded numbers) and nothing else.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]
Out = Annotated[Path, typer.Option("--out", help="Folder of runs and fits.")]
Cache = Annotated[
    Path | None,
    typer.Option("--cache", help="Folder of prepared slice stores; default: $ADBENCH_CACHE or ~/.cache/adbench."),
]
Root = Annotated[
    Path | None, typer.Option("--data-root", help="Where the dataset lies; default: $ADBENCH_DATA/<dataset>.")
]
TrainRoot = Annotated[Path | None, typer.Option("--train-root", help="Where the training source lies.")]
Protocol = Annotated[str | None, typer.Option("--protocol", help="Protocol; default: the dataset's own.")]
Preset = Annotated[
    str | None, typer.Option("--preset", help="tiny, base or paper; default: tiny on the CPU, base on a GPU.")
]
Address = Annotated[
    str | None,
    typer.Option("--address", help="Ray cluster, host:port or auto; default: $RAY_ADDRESS, else this machine."),
]
Cpus = Annotated[
    str | None, typer.Option("--cpus-per-run", help="CPU cores of a run: auto (what its method asks for), or a number.")
]
Gpus = Annotated[
    str | None,
    typer.Option(
        "--gpus-per-run", help="GPUs of a run: auto (by the memory its method asks for), a share such as 0.25, or 1."
    ),
]
TimeLimit = Annotated[
    str | None,
    typer.Option("--time-limit", metavar="8h", help="End a run that takes longer (45s, 90m, 8h); it has failed."),
]
TrainOn = Annotated[str | None, typer.Option("--train-on", help="Learn from another dataset, e.g. healthy scans.")]
Device = Annotated[str | None, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")]
AtMost = Annotated[int | None, typer.Option("--max-concurrent", min=1, help="Runs at a time; default: as many as fit.")]


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"adbench {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    if debug:
        os.environ["ADBENCH_DEBUG"] = "1"


def split(values: list[str] | None) -> tuple[str, ...]:
    """The names in options that may be repeated and may hold commas, in order."""
    return tuple(part.strip() for value in values or [] for part in value.split(",") if part.strip())


def as_settings(**options: Any) -> dict[str, Any]:
    """Options as the command line has them, as values of a :class:`adbench.config.run_config.RunConfig`."""
    return {
        name: split(value) if isinstance(value, list) else str(value) if isinstance(value, Path) else value
        for name, value in options.items()
    }


def main() -> None:
    """Entry point: errors that a user can correct become one sentence and exit code 2."""
    from adbench.utils.signals import as_interrupts
    from adbench.utils.supervisor import ending

    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed by who started this
            setattr(sys, name, open(os.devnull, mode))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal without UTF-8 gets "\u2193" for an arrow, not an error
            stream.reconfigure(errors="backslashreplace")
    with as_interrupts(), ending():
        try:
            app()
        except Exception as error:
            if not (said := sentence(error)):
                raise
            _fail(said, error)


def own_output(verb: Callable[..., Any]) -> Callable[..., Any]:
    """``verb`` with standard output to itself (see :func:`adbench.utils.console.reserved_stdout`), and exit codes of signals."""

    @wraps(verb)
    def run(*arguments: Any, **options: Any) -> None:
        from adbench.utils import installed  # noqa: F401 - before any library that asks for entry points
        from adbench.utils.console import reserved_stdout, say
        from adbench.utils.signals import exit_code

        _check_memory()
        try:
            with reserved_stdout():
                verb(*arguments, **options)
        except KeyboardInterrupt as stop:
            said = "; ".join(getattr(stop, "__notes__", ["Interrupted."]))
            say(said)
            raise typer.Exit(exit_code()) from None

    return run


def _check_memory() -> None:
    """What loads OpenBLAS with too little memory ends the process, waits for ever, or sends it a Ctrl-C."""
    from adbench.utils.limits import check_address_space

    if check_address_space(_LEAST_MEMORY, "the libraries alone take"):
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # while it loads: it asks for memory by the thread


def seconds(text: str) -> float:
    """Seconds of a duration such as 8h, 90m, 1.5h or 45s.

    Raises:
        UserError: not of that form.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smhd])\s*", text)
    if found is None or float(found[1]) == 0:
        raise UserError(f"{text!r} is not a duration: write a number and s, m, h or d, e.g. 90m or 8h.")
    return float(found[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[found[2]]


def _fail(message: str, error: BaseException) -> None:
    if os.environ.get("ADBENCH_DEBUG"):
        raise error
    error.__traceback__ = error.__context__ = error.__cause__ = None  # what they hold may be the memory that is short
    try:
        from adbench.utils.console import complain

        complain(message)
    except (MemoryError, ImportError):
        os.write(2, f"adbench: {message}\n".encode())
    sys.exit(2)
