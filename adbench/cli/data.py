"""``adbench data``: look at a dataset, check it, prepare it, and make synthetic ones in the real layouts."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from adbench.cli.app import app

data = typer.Typer(help="Look at datasets: find, check, prepare, show; write synthetic ones.", no_args_is_help=True)
app.add_typer(data, name="data")

Workers = Annotated[int, typer.Option("--workers", "-j", min=0, help="Cases at a time; 0: one a CPU core.")]


def cores(workers: int) -> int:
    """``workers``, or the number of cores this process may use when it is 0."""
    return workers or len(os.sched_getaffinity(0))


@data.command(
    epilog="Examples:\n\n"
    "  adbench data synth --layout brats21 --n 20 --out synthetic/brats21\n\n"
    "  adbench data check --dataset brats21 --data-root synthetic/brats21"
)
def synth(
    layout: Annotated[str, typer.Option(help="ixi, atlas or brats21.")],
    out: Annotated[Path, typer.Option(help="Folder to write to; files that are there are kept.")],
    n: Annotated[int, typer.Option("--n", "-n", min=1, help="Subjects (atlas: a fifth more without masks).")] = 20,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same bytes.")] = 0,
    workers: Workers = 1,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
) -> None:
    """Write synthetic NIfTI in the layout of a real dataset: its names, grids, orientations, types and labels.

    The heads are phantoms; everything that reads, checks, prepares and runs on the real data can be tried on them.
    """
    from adbench.console import LiveProgress, say
    from adbench.datasets.phantom.layouts import synthesise

    with LiveProgress(quiet) as progress:
        files = synthesise(layout, n, out, seed=seed, workers=cores(workers), progress=progress)
    if not quiet:
        size = sum(file.stat().st_size for file in files) / 1e6
        say(
            f"{len(files)} files, {size:.0f} MB in {out}. Look at them: adbench data check --dataset {layout} --data-root {out}"
        )
