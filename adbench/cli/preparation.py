"""``adbench data prepare``, ``show`` and ``export``: prepare slice stores, draw them, write them back to NIfTI."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from adbench.cli.app import Cache, Json, Quiet, Root, split
from adbench.cli.data import DatasetName, Set, data, located, resumable
from adbench.errors import UserError, unknown

if TYPE_CHECKING:
    from adbench.datasets.base import Dataset

Modality = Annotated[
    list[str] | None, typer.Option("--modality", "-m", help="Sequences, separated by commas; default: all there are.")
]
OneModality = Annotated[str | None, typer.Option("--modality", "-m", help="Sequence; default: the dataset's first.")]
Workers = Annotated[
    int | None, typer.Option("--workers", "-j", min=1, help="Cases at a time; default: what cores and memory allow.")
]


def _modalities(dataset: Dataset, wanted: tuple[str, ...]) -> tuple[str, ...]:
    there = dataset.available()
    by_upper = {name.upper(): name for name in there}
    for name in wanted:
        if name.upper() not in by_upper:
            raise unknown(
                f"modality of {dataset.info.name}{f' in {dataset.root}' if dataset.root else ''}", name, there
            )
    return tuple(by_upper[name.upper()] for name in wanted) or there


@data.command(
    epilog="Examples:\n\n"
    "  adbench data prepare --dataset brats21 --data-root data/brats21\n\n"
    "  adbench data prepare --dataset ixi --modality T1,T2 --set size=128 --workers 4"
)
def prepare(
    dataset: DatasetName,
    data_root: Root = None,
    modality: Modality = None,
    set_: Set = None,
    workers: Workers = None,
    executor: Annotated[
        str, typer.Option(help="processes of this machine, or ray (a cluster that sees the data).")
    ] = "processes",
    cache: Cache = None,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Prepare slice stores, many cases at a time. An interrupted preparation resumes; `adbench run` finds the stores."""
    from adbench.config import run_config
    from adbench.datasets.store.prepare import prepare_all
    from adbench.utils.console import LiveProgress, out, print_json, say, table

    if executor not in ("processes", "ray"):
        raise unknown("executor", executor, ("processes", "ray"))
    chosen = located(dataset, data_root, set_ or [])
    with resumable(), LiveProgress(quiet or json_) as progress:
        stores = prepare_all(
            chosen,
            _modalities(chosen, split(modality)),
            cache or run_config.default_cache(),
            progress,
            workers=workers,
            executor=executor,  # type: ignore[arg-type]
        )
    summaries = {name: _summary(store) for name, store in stores.items()}
    if json_:
        print_json(summaries)
        return
    rows = []
    for name, found in summaries.items():
        side = "x".join(map(str, found["shape"]))
        figures = ["" if found[ml] is None else f"{found[ml]:.2f}" for ml in ("lesion_ml_source", "lesion_ml")]
        rows.append([name, str(found["cases"]), str(found["slices"]), side, *figures, str(len(found["remarks"])), str(len(found["outliers"])), f"{found['bytes'] / 1e9:.2f}"])  # fmt: skip
    # What shapes the store is repeated: without it, `show` would prepare another one.
    same = [("--data-root", data_root), ("--cache", cache), *(("--set", text) for text in set_ or [])]
    shown = shlex.join(
        ["adbench", "data", "show", "--dataset", dataset, *(s for o, v in same if v for s in (o, str(v)))]
    )
    columns = [(h, "left" if h == "modality" else "right") for h in ("modality", "cases", "slices", "px", "lesion ml in the files", "prepared", "remarks", "outliers", "GB")]  # fmt: skip
    table(f"prepared {dataset}", columns, rows)
    for name, found in summaries.items():
        for odd in found["outliers"]:
            out.print(
                f"{name} {odd['case']}: {odd['figure']} {odd['value']:.4g}, {odd['why']}", style="yellow", markup=False
            )
        say(f"{name}: {found['folder']}")
    say(f"Look at them: {shown}")


def _summary(store: Any) -> dict[str, Any]:
    # Slices that come from no volume have pixels, not millilitres.
    known = [case.quality for case in store.cases if "lesion_ml" in case.quality]
    return {
        "folder": str(store.folder),
        "cases": len(store.cases),
        "slices": len(store),
        "shape": list(store.shape),
        "masked": sum(case.masked for case in store.cases),
        "lesion_ml_source": sum(q["lesion_ml_source"] for q in known) if known else None,
        "lesion_ml": sum(q["lesion_ml"] for q in known) if known else None,
        "bytes": sum(file["bytes"] for file in store.manifest["files"].values()),
        "outliers": store.manifest["outliers"],
        "remarks": store.manifest["remarks"],
    }


@data.command(
    epilog="Examples:\n\n"
    "  adbench data show --dataset brats21 --data-root data/brats21 --modality FLAIR\n\n"
    "  adbench data show --dataset ixi --subject IXI012,IXI013 --out two.png"
)
def show(
    dataset: DatasetName,
    data_root: Root = None,
    modality: OneModality = None,
    subject: Annotated[
        list[str] | None, typer.Option(help="Subjects or cases, separated by commas; default: a choice.")
    ] = None,
    count: Annotated[
        int, typer.Option(min=1, help="Cases, when none is named; those with outlying figures come first.")
    ] = 8,
    slices: Annotated[int, typer.Option(min=1, max=40, help="Slices a case.")] = 8,
    out: Annotated[Path | None, typer.Option("--out", help="The PNG; default: <dataset>-<modality>.png.")] = None,
    set_: Set = None,
    workers: Workers = None,
    cache: Cache = None,
    quiet: Quiet = False,
) -> None:
    """Draw a contact sheet of prepared slices with the contours of brain (cyan) and lesion (red); prepares what is missing first."""
    from adbench.config import run_config
    from adbench.datasets.contact_sheet import contact_sheet
    from adbench.datasets.store.prepare import prepare as prepare_store
    from adbench.utils.console import LiveProgress, say

    chosen = located(dataset, data_root, set_ or [])
    name = _modalities(chosen, (modality,) if modality else ())[0]
    with resumable(), LiveProgress(quiet) as progress:
        store = prepare_store(chosen, name, cache or run_config.default_cache(), progress, workers=workers)
    path = out or Path(f"{dataset}-{name.lower()}.png")
    shown = contact_sheet(store, path, subjects=split(subject), count=count, slices=slices)
    say(f"{shown} of {len(store.cases)} cases: {path}")


@data.command(
    epilog="Example:\n\n  adbench data export --dataset brats21 --subject BraTS2021_00002 --space original --out nifti"
)
def export(
    dataset: DatasetName,
    subject: Annotated[list[str], typer.Option(help="Subjects or cases, separated by commas.")],
    data_root: Root = None,
    modality: OneModality = None,
    space: Annotated[
        str, typer.Option(help="prepared (the template's or patient's mm), or original (the file's voxels).")
    ] = "prepared",
    out: Annotated[Path, typer.Option("--out", help="Folder to write to.")] = Path("nifti"),
    set_: Set = None,
    workers: Workers = None,
    cache: Cache = None,
    quiet: Quiet = False,
) -> None:
    """Write prepared images and masks back to NIfTI, for a viewer."""
    from adbench.config import run_config
    from adbench.datasets.contact_sheet import choose_cases
    from adbench.datasets.export import SPACES, export_case
    from adbench.datasets.store.prepare import prepare as prepare_store
    from adbench.utils.console import LiveProgress, say

    if space not in SPACES:
        raise unknown("space", space, SPACES)
    wanted = split(subject)
    if not wanted:
        raise UserError("Name a subject: --subject ID.")
    chosen = located(dataset, data_root, set_ or [])
    name = _modalities(chosen, (modality,) if modality else ())[0]
    with resumable(), LiveProgress(quiet) as progress:
        store = prepare_store(chosen, name, cache or run_config.default_cache(), progress, workers=workers)
    for case in choose_cases(store, wanted, 0):
        for path in export_case(store, case.id, out, space=space):
            say(str(path))
