"""``adbench report``: one HTML page about one or several runs."""

from __future__ import annotations

import shlex
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from adbench.cli.app import Cache, Json, Quiet, app, split
from adbench.errors import UserError


class Grid(StrEnum):
    """The grid of exported NIfTI files."""

    prepared = "prepared"
    original = "original"


@app.command(
    epilog="Examples:\n\n"
    "  adbench report runs/phantom/phantom-flair/madad-tiny-seed0-1a2b3c4d5e\n\n"
    "  adbench report runs/phantom/phantom-flair --out report      (all runs below, side by side)\n\n"
    "  adbench report RUN --nifti original --nifti-all"
)
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders, or folders with runs below.")],
    out: Annotated[
        Path,
        typer.Option(help="Folder for index.html, figures/ and nifti/; where a report lies in it: OUT-2, OUT-3, ..."),
    ] = Path("report"),
    count: Annotated[int, typer.Option(min=0, help="How many best, median, worst and random subjects each.")] = 2,
    slices: Annotated[int, typer.Option(min=1, help="Slices shown of each subject.")] = 3,
    subject: Annotated[list[str] | None, typer.Option("--subject", help="Show this test subject too; repeat.")] = None,
    nifti: Annotated[
        Grid | None, typer.Option(help="Also export maps and reconstructions of the subjects shown as NIfTI.")
    ] = None,
    nifti_all: Annotated[bool, typer.Option("--nifti-all", help="Export every test subject.")] = False,
    cache: Cache = None,
    device: Annotated[str, typer.Option(help="Where maps that were not saved are made again.")] = "auto",
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """One self-contained HTML page about one or several runs of a test set, with PNGs beside it.

    Curves with bands, strata, per-subject numbers, pictures of chosen subjects, training curves, configuration and
    provenance; of swept parameters the curve of the numbers against them. Maps come from the run (--save-maps) or are
    made again from its saved fit. The path of the page goes to standard output; no report is overwritten.
    """
    from adbench.api import load
    from adbench.report.collect import collect
    from adbench.report.render import free_folder, write_report
    from adbench.utils.console import LiveProgress, print_json, say, write

    if nifti_all and nifti is None:
        raise UserError("--nifti-all needs --nifti prepared or --nifti original: the grid of the files.")
    command = " ".join(["adbench", *map(shlex.quote, sys.argv[1:])])
    out = free_folder(out)
    with LiveProgress(quiet or json_) as progress:
        found = load(*runs, cache=cache, device=device, progress=progress)
        exporter: Any = None
        if nifti is not None:
            from adbench.report.volumes import Exporter

            exporter = Exporter(out / "nifti", str(nifti), found)
        gathered = collect(
            found,
            count=count,
            slices=slices,
            subjects=split(subject),
            visit=exporter,
            visit_all=nifti_all,
            progress=progress,
        )
        files = write_report(gathered, out, command, progress)
    volumes = exporter.files if exporter else []
    if json_:
        figures, exported = ([str(file) for file in some] for some in (files[1:], volumes))
        print_json({"page": str(files[0]), "figures": figures, "nifti": exported, "notes": gathered.notes})
        return
    for note in gathered.notes:
        say(note)
    pngs = len(files) - 1
    say(f"{files[0].stat().st_size / 2**20:.1f} MiB, {pngs} PNG{'s' * (pngs != 1)} in {out / 'figures'}; the page:")
    write(str(files[0]))
    if exporter:
        say(f"{len(volumes)} NIfTI file{'s' * (len(volumes) != 1)} below {out / 'nifti'}")
