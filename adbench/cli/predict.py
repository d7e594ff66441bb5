"""``adbench predict``: anomaly maps of unlabelled scans."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from adbench.cli.app import Cache, Json, Quiet, app

if TYPE_CHECKING:
    from adbench.evaluation.prediction_files import Prediction


@app.command(
    epilog="Examples:\n\n"
    "  adbench predict --run runs/brats21/brats21-flair/madad-tiny-seed0-1a2b3c4d5e --images my_scans --out found\n\n"
    "  adbench predict --run RUN --images my_scans --out found --threshold fpr5\n\n"
    "  adbench predict --run RUN --images my_scans --out found --set dataset.image_pattern={subject}/scan.nii.gz"
)
def predict(
    run: Annotated[Path, typer.Option("--run", help="A run's folder whose fit was kept, or a shared fit.")],
    images: Annotated[Path, typer.Option(help="Folder of scans, NIfTI volumes or PNG slices; masks are not needed.")],
    out: Annotated[Path, typer.Option(help="Folder for maps, masks, pseudo-healthy images and summary.csv.")],
    threshold: Annotated[
        str, typer.Option(help="Marks voxels at and above it: val, fpr1, fpr5, conformal05, conformal10, or a score.")
    ] = "val",
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="dataset.KEY=VALUE", help="How the scans are named or differ; see `folder`."),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    cache: Cache = None,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Score unlabelled scans with the fit, the preparation and the threshold of a finished run.

    Writes anomaly maps, pseudo-healthy images and masks on each scan's own grid, and summary.csv. Interrupted, it goes on
    with the scans that are missing. One that cannot be read or scored is named at the end (exit code 1). Research use only: nothing here is a diagnosis.
    """
    from adbench.utils.supervisor import supervised

    supervised(resume="Run the same command again: it goes on with the scans that are missing.")

    from adbench.api import load
    from adbench.evaluation.predict import SUMMARY, ScansFailed
    from adbench.utils.console import LiveProgress, complain, print_json

    with LiveProgress(quiet or json_) as progress:
        opened = load(run, cache=cache, device=device, progress=progress)
        failed: Mapping[str, str] = {}
        try:
            found = opened.predict(images, out, threshold=threshold, settings=set_ or [])
        except ScansFailed as error:
            found, failed = error.found, error.why
    if json_:
        print_json([*map(asdict, found), *({"case": case, "error": why} for case, why in failed.items())])
    else:
        _print(found, out / SUMMARY)
    for why in failed.values():
        complain(why)
    if failed:
        complain(
            f"{len(failed)} of {len(failed) + len(found)} scans have no answer; the others are in {out / SUMMARY}."
        )
        raise typer.Exit(1)


def _print(found: Sequence[Prediction], summary: Path) -> None:
    from adbench.utils.console import say, table

    columns = [
        ("scan", "left"),
        *((name, "right") for name in ("marked", "largest", "parts", "slice")),
        ("notes", "left"),
    ]
    rows = []
    for one in found:
        size, largest = f"{one.voxels} px", f"{one.largest_voxels} px"
        if one.volume_ml is not None and one.largest_ml is not None:
            size, largest = f"{one.volume_ml:.2f} ml", f"{one.largest_ml:.2f} ml"
        place = "—" if one.slice is None else str(one.slice)
        rows.append([one.case, size, largest, str(one.components), place, one.notes])
    table("predictions", columns, rows[:MAX_ROWS])
    say(
        f"{len(found)} scan{'s' * (len(found) > 1)}, marked at and above a score of {found[0].threshold:.4g}: {summary}"
    )


MAX_ROWS = 200  # a table of more rows is no help
