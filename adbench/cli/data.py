"""``adbench data``: look at a dataset, check it, prepare it, and make synthetic ones in the real layouts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from adbench.cli.app import Cache, Json, Quiet, Root, app

if TYPE_CHECKING:
    from adbench.datasets.base import Dataset

data = typer.Typer(help="Look at datasets: find, check, prepare, show; write synthetic ones.", no_args_is_help=True)
app.add_typer(data, name="data")

SHOWN = 5  # issues of one kind that are printed

DatasetName = Annotated[
    str, typer.Option("--dataset", "-d", help="ixi, atlas, brats21, folder, phantom or a plug-in's.")
]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A parameter of the dataset.")]
Workers = Annotated[int, typer.Option("--workers", "-j", min=0, help="Cases at a time; 0: one a CPU core.")]


def located(name: str, root: Path | None, assignments: list[str]) -> Dataset:
    """The dataset called ``name`` with its root and the parameters of ``--set`` (``size=128`` or ``dataset.size=128``)."""
    from adbench.config import run_config

    texts = [
        text if text.partition("=")[0].strip().startswith("dataset.") else f"dataset.{text}" for text in assignments
    ]
    values = {key: value for _, key, value in map(run_config.parse_assignment, texts)}
    found: Dataset = run_config.locate(name, str(root) if root else None, values, "--data-root").open()
    return found


def cores(workers: int) -> int:
    """``workers``, or the number of cores this process may use when it is 0."""
    from adbench.datasets.store.workers import cores as available

    return workers or available()


@contextmanager
def resumable() -> Iterator[None]:
    """Give Ctrl-C a message that nothing is lost."""
    try:
        yield
    except KeyboardInterrupt as stop:
        stop.add_note("Interrupted. Run the same command again: it goes on where it stopped.")
        raise


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
    quiet: Quiet = False,
) -> None:
    """Write synthetic NIfTI in the layout of a real dataset: its names, grids, orientations, types and labels.

    The heads are phantoms; everything that reads, checks, prepares and runs on the real data can be tried on them.
    """
    from adbench.datasets.phantom.layouts import synthesise
    from adbench.utils.console import LiveProgress, say

    with resumable(), LiveProgress(quiet) as progress:
        files = synthesise(layout, n, out, seed=seed, workers=cores(workers), progress=progress)
    if not quiet:
        size = sum(file.stat().st_size for file in files) / 1e6
        say(
            f"{len(files)} files, {size:.0f} MB in {out}. Look at them: adbench data check --dataset {layout} --data-root {out}"
        )


@data.command(
    epilog="Examples:\n\n"
    "  adbench data info --dataset ixi --data-root data/ixi\n\n"
    "  adbench data info --dataset brats21 --splits brats21-splits.json"
)
def info(
    dataset: DatasetName,
    data_root: Root = None,
    set_: Set = None,
    splits: Annotated[Path | None, typer.Option(help="Write the id lists of every role to this JSON file.")] = None,
    json_: Json = False,
) -> None:
    """Describe a dataset: modalities, subjects by role, sites, flags, what is left out and why."""
    from adbench.datasets.overview import overview

    what = overview(located(dataset, data_root, set_ or []))
    if splits is not None:
        from adbench.utils.files import write_json

        write_json(splits, {name: found["subjects"] for name, found in what["modalities"].items()})
    if json_:
        from adbench.utils.console import print_json

        print_json(what)
        return
    from adbench.utils.console import out, say, table

    line = partial(out.print, markup=False, soft_wrap=True)
    line(f"{what['dataset']} in {what['root'] or 'memory'}", style="bold")
    line(f"licence: {what['licence']}")
    rows = []
    for name, found in what["modalities"].items():
        roles = [str(len(found["subjects"][role])) for role in ("train", "val", "test")]
        rows.append([name, str(found["cases"]), *roles, str(len(found["left_out"])), f"{found['bytes'] / 1e9:.2f}"])
    columns = [("modality", "left"), *((h, "right") for h in ("cases", "train", "val", "test", "left out", "GB"))]
    table("subjects by role", columns, rows, caption="Who is left out and why: --json. Id lists: --splits FILE")
    for name, found in what["modalities"].items():
        for why, subjects in found["healthy"].items():
            line(f"{name}, taken for healthy: {len(subjects)} subjects ({why})")
    if set(what["sites"]) - {""}:
        rows = [[site or "unknown", *map(str, counts.values())] for site, counts in what["sites"].items()]
        table("sites", [("site", "left"), *((h, "right") for h in ("train", "val", "test"))], rows)
    if what["labels"]:
        line(f"lesion masks hold {', '.join(f'{value} ({of})' for value, of in what['labels'].items())}")
    for name, found in what["modalities"].items():
        if found["sessions"]:
            line(f"{name}, subjects with several sessions: {', '.join(found['sessions'])}")
    for flag, subjects in what["flags"].items():
        line(f"{flag}: {', '.join(subjects)}")
    if splits is not None:
        say(f"Id lists: {splits}")


@data.command(
    epilog="Examples:\n\n"
    "  adbench data check --dataset brats21 --data-root data/brats21\n\n"
    "  adbench data check --dataset ixi --deep --report ixi-check.json\n\n"
    "  adbench data check --dataset phantom --store"
)
def check(
    dataset: DatasetName,
    data_root: Root = None,
    deep: Annotated[bool, typer.Option("--deep", help="Read every voxel, not headers alone.")] = False,
    store: Annotated[
        bool, typer.Option("--store", help="Compare what was prepared from them with its digests, too.")
    ] = False,
    cache: Cache = None,
    set_: Set = None,
    workers: Workers = 0,
    report: Annotated[Path | None, typer.Option(help="Write every issue to this JSON file.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Print every issue, not the first few of a kind.")] = False,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Check the files of a dataset; list what is wrong with them, with file and value.

    Exit code 0: nothing but information; 1: warnings; 2: errors.
    """
    from adbench.datasets.issues import by_code
    from adbench.datasets.validation.check import check as check_dataset
    from adbench.utils.console import LiveProgress, out, print_json, say

    chosen = located(dataset, data_root, set_ or [])
    with LiveProgress(quiet or json_) as progress:
        found = check_dataset(chosen, deep=deep, workers=cores(workers), progress=progress)
        if store:
            from adbench.config import run_config
            from adbench.datasets.validation.store_check import check_stores

            check_stores(chosen, cache or run_config.default_cache(), found, progress)
    if report is not None:
        from adbench.utils.files import write_json

        write_json(report, found.as_dict())
    if json_:
        print_json(found.as_dict())
        raise typer.Exit(found.exit_code)
    line = partial(out.print, markup=False, soft_wrap=True)
    colours = {"error": "bold red", "warning": "yellow", "info": "dim"}
    for (severity, code), issues in by_code(found.findings).items():
        line(f"{severity} {code} ({len(issues)})", style=colours[severity])
        shown = issues if every else issues[:SHOWN]
        for issue in shown:
            line(f"  {issue.message}")
        if len(shown) < len(issues):
            line(f"  ... and {len(issues) - len(shown)} more (--all, or --report FILE)")
    counts = ", ".join(f"{n} {severity}{'s' * (n != 1 and severity != 'info')}" for severity, n in found.counts.items())
    line(f"{found.cases} cases, {found.files} files: {counts}", style="bold")
    if report is not None:
        say(f"Report: {report}")
    raise typer.Exit(found.exit_code)


@data.command(epilog="Example:  adbench data unpack BraTS2021_Training_Data.tar --out data/brats21")
def unpack(
    archive: Annotated[Path, typer.Argument(help="A tar (also compressed) or zip archive.")],
    out: Annotated[Path, typer.Option(help="Folder to unpack into.")],
    quiet: Quiet = False,
) -> None:
    """Unpack an archive: whole files only, nothing outside the folder. An interrupted run continues where it stopped."""
    from adbench.datasets.io.archive import unpack as extract
    from adbench.utils.console import LiveProgress, say

    with resumable(), LiveProgress(quiet) as progress:
        count, nested = extract(archive, out, progress)
    if not quiet:
        say(f"{count} files in {out}.")
        for inner in nested:
            say(f"{inner} is an archive too: a plain .tar is read in place, another one needs `adbench data unpack`.")
