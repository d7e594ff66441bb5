"""``adbench data``: look at datasets, check and prepare them, draw and export what was prepared, make synthetic ones."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from adbench.cli.app import Cache, Json, Quiet, Root, app, split
from adbench.datasets.phantom.layout_table import LAYOUTS, PHANTOMS
from adbench.errors import UserError, unknown

if TYPE_CHECKING:
    from adbench.datasets.base import Dataset
    from adbench.datasets.store.slice_store import SliceStore

data = typer.Typer(help="Look at datasets: find, check, prepare, show; write synthetic ones.", no_args_is_help=True)
app.add_typer(data, name="data")

SHOWN = 5  # issues of one kind that are printed

DatasetName = Annotated[str, typer.Option("--dataset", "-d", help="A dataset: adbench list datasets shows all.")]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A parameter of the dataset.")]
Modality = Annotated[
    list[str] | None, typer.Option("--modality", "-m", help="Sequences, separated by commas; default: all there are.")
]
OneModality = Annotated[str | None, typer.Option("--modality", "-m", help="Sequence; default: the dataset's first.")]
Processes = Annotated[
    int | None, typer.Option("--workers", "-j", min=1, help="Cases at a time; default: what cores and memory allow.")
]
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
    layout: Annotated[str, typer.Option(help=f"One of {', '.join(LAYOUTS)}.")],
    out: Annotated[Path, typer.Option(help="Folder to write to; files that are there are kept.")],
    n: Annotated[int, typer.Option("--n", "-n", min=1, help="Subjects (atlas: a fifth more without masks).")] = 20,
    seed: Annotated[int, typer.Option(min=0, help="Of ixi, atlas, brats21: the same seed gives the same bytes.")] = 0,
    workers: Workers = 1,
    quiet: Quiet = False,
) -> None:
    """Write synthetic NIfTI in the layout of a real dataset: its names, grids, orientations, types and labels.

    ixi, atlas and brats21 are whole phantoms on the true grids; the others are ellipsoids of 8 mm voxels, made in a moment.
    Everything that reads, checks, prepares and runs on the real data can be tried on them.
    """
    from adbench.datasets.phantom.layouts import synthesise
    from adbench.datasets.store.workers import cores
    from adbench.utils.console import LiveProgress, say

    with resumable(), LiveProgress(quiet) as progress:
        files = synthesise(layout, n, out, seed=seed, workers=workers or cores(), progress=progress)
    if not quiet:
        size, known = sum(file.stat().st_size for file in files) / 1e6, LAYOUTS[layout]
        check = ["adbench", "data", "check", "--dataset", known.dataset, "--data-root", str(out)]
        options = [] if layout in PHANTOMS else [f"--set=dataset.{option}" for option in known.options.split()]
        say(f"{len(files)} files, {size:.0f} MB in {out}. Look at them: {shlex.join([*check, *options])}")


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
    from adbench.utils.console import say

    _print_info(what)
    if splits is not None:
        say(f"Id lists: {splits}")


def _print_info(what: dict[str, Any]) -> None:
    """An overview of a dataset (:func:`adbench.datasets.overview.overview`) in words and tables."""
    from adbench.utils.console import out, table

    line = partial(out.print, markup=False, soft_wrap=True)
    line(f"{what['dataset']} in {what['root'] or 'memory'}", style="bold")
    line(f"licence: {what['licence']}")
    if what["citation"]:
        line(f"cite: {what['citation']}")
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
    from adbench.datasets.store.workers import cores
    from adbench.datasets.validation.check import check as check_dataset
    from adbench.utils.console import LiveProgress, out, print_json, say

    chosen = located(dataset, data_root, set_ or [])
    with LiveProgress(quiet or json_) as progress:
        found = check_dataset(chosen, deep=deep, workers=workers or cores(), progress=progress)
        if store:
            from adbench.config import run_config
            from adbench.datasets.validation.check import check_stores

            check_stores(chosen, cache or run_config.default_cache(), found, progress)
    if report is not None:
        from adbench.utils.files import write_json

        write_json(report, found.as_dict())
    if json_:
        print_json(found.as_dict())
        raise typer.Exit(found.exit_code)
    line = partial(out.print, markup=False, soft_wrap=True)
    colours = {"error": "bold red", "warning": "yellow", "info": "dim"}
    for (severity, code), issues in by_code(found.issues).items():
        line(f"{severity} {code} ({len(issues)})", style=colours[severity])
        shown = issues if every else issues[:SHOWN]
        for issue in shown:
            line(f"  {issue.message}")
        if len(shown) < len(issues):
            line(f"  ... and {len(issues) - len(shown)} more (--all, or --report FILE)")
    counts = ", ".join(f"{n} {severity}{'s' * (n != 1 and severity != 'info')}" for severity, n in found.counts.items())
    excluded = f", {found.excluded} excluded" if found.excluded else ""
    line(f"{found.cases} cases{excluded}, {found.files} files: {counts}", style="bold")
    if report is not None:
        say(f"Report: {report}")
    raise typer.Exit(found.exit_code)


@data.command(
    epilog="Examples:\n\n"
    "  adbench data get ixi --out data/ixi --modality T1,T2 --accept-licence\n\n"
    "  adbench data get brats23        (prints the steps: it needs an agreement)"
)
def get(
    name: Annotated[str, typer.Argument(help="A dataset: adbench list datasets shows all.")],
    out: Annotated[Path | None, typer.Option(help="Folder to put it into; default: data/<name>.")] = None,
    modality: Annotated[
        list[str] | None, typer.Option("--modality", "-m", help="Sequences, separated by commas, where each is a file.")
    ] = None,
    mirror: Annotated[str, typer.Option(help="Address of a folder (soop: a bucket) that holds the same files.")] = "",
    accept_licence: Annotated[
        bool, typer.Option("--accept-licence", help="Agree to the licence that is shown.")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Fetch a dataset that needs no agreement; say how to get any other. An interrupted download goes on where it stopped."""
    from adbench.config import registry
    from adbench.datasets import download
    from adbench.utils.console import LiveProgress, say
    from adbench.utils.console import out as console

    info = registry.load("datasets", name).info
    line = partial(console.print, markup=False, soft_wrap=True)
    line(f"{name}: licence {info.licence}{f'; cite {info.citation}' if info.citation else ''}")
    folder = out or Path("data") / name
    check_it = f"adbench data check --dataset {name} --data-root {folder}"
    if not info.needs_root:
        line(f"{name} is made by adbench, there is nothing to fetch: adbench run --method histeq --dataset {name}")
        return
    if name not in download.SOURCES:
        line(
            f"{name} cannot be fetched without you. How: {info.obtain}. Expected in {folder}: {info.layout}. Then: {check_it}"
        )
        return
    if not accept_licence:
        raise UserError(f"{name} is under {info.licence}: say --accept-licence to agree and fetch it.")
    with resumable(), LiveProgress(quiet) as progress:
        wanted = download.missing(download.files_of(name, [m.upper() for m in split(modality)], mirror), folder)
        line(
            f"{len(wanted)} file{'s' * (len(wanted) != 1)}, {sum(file.size or 0 for file in wanted) / 1e9:.2f} GB, into {folder}"
        )
        for file in wanted:
            download.fetch(file, folder, progress)
    say(f"All of {name} is in {folder}. Look at it: {check_it}")


@data.command(epilog="Example:  adbench data unpack BraTS2021_Training_Data.tar --out data/brats21")
def unpack(
    archive: Annotated[Path, typer.Argument(help="A tar (also compressed) or zip archive.")],
    out: Annotated[Path, typer.Option(help="Folder to unpack into.")],
    quiet: Quiet = False,
) -> None:
    """Unpack an archive: whole files only, nothing outside the folder. An interrupted run continues where it stopped.

    What cannot be unpacked as a whole is refused before anything is written. Links are left out and named, but hard links to
    files of the archive become files.
    """
    from adbench.datasets.io.unpacking import unpack as extract
    from adbench.utils.console import LiveProgress, say

    with resumable(), LiveProgress(quiet) as progress:
        found = extract(archive, out, progress)
    if left := found.left_out:
        more = f" and {len(left) - SHOWN} more" if len(left) > SHOWN else ""
        what = "1 link or device" if len(left) == 1 else f"{len(left)} links or devices"
        say(f"{what} left out: {', '.join(left[:SHOWN])}{more}. Links are not followed; copy what you need by hand.")
    if not quiet:
        say(f"{found.files} file{'s' * (found.files != 1)} in {out}.")
        for inner in found.nested:
            say(f"{inner} is an archive too: a plain .tar is read in place, another one needs `adbench data unpack`.")


def _store(
    dataset: str,
    data_root: Path | None,
    modality: str | None,
    set_: list[str] | None,
    workers: int | None,
    cache: Path | None,
    quiet: bool,
) -> SliceStore:
    """The store of one modality, by default the dataset's first; what is missing of it is prepared."""
    from adbench.config import run_config
    from adbench.datasets.store.prepare import prepare as prepare_store
    from adbench.utils.console import LiveProgress

    chosen = located(dataset, data_root, set_ or [])
    name, *_ = run_config.named_modalities(chosen, [modality] if modality else []) or chosen.available()
    with resumable(), LiveProgress(quiet) as progress:
        return prepare_store(chosen, name, cache or run_config.default_cache(), progress, workers=workers)


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
    workers: Processes = None,
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
            run_config.named_modalities(chosen, split(modality)) or chosen.available(),
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
    workers: Processes = None,
    cache: Cache = None,
    quiet: Quiet = False,
) -> None:
    """Draw a contact sheet of prepared slices with the contours of brain (cyan) and lesion (red); prepares what is missing first."""
    from adbench.datasets.contact_sheet import contact_sheet
    from adbench.utils.console import say

    store = _store(dataset, data_root, modality, set_, workers, cache, quiet)
    path = out or Path(f"{dataset}-{store.modality.lower()}.png")
    shown = contact_sheet(store, path, subjects=split(subject), count=count, slices=slices)
    say(f"{shown} of {len(store.cases)} cases: {path}")


@data.command(
    epilog="Examples:\n\n  adbench data export --dataset brats21 --subject BraTS2021_00002 --space original --out nifti\n\n"
    "  adbench data export --dataset brats21 --modality FLAIR --split test --out test      (to score maps of your own on)"
)
def export(
    dataset: DatasetName,
    subject: Annotated[list[str] | None, typer.Option(help="Subjects or cases, separated by commas.")] = None,
    split_: Annotated[str | None, typer.Option("--split", help="Every case of train, val or test instead.")] = None,
    data_root: Root = None,
    modality: OneModality = None,
    space: Annotated[
        str, typer.Option(help="prepared (the template's or patient's mm), or original (the file's voxels).")
    ] = "prepared",
    out: Annotated[Path, typer.Option("--out", help="Folder to write to.")] = Path("nifti"),
    set_: Set = None,
    workers: Processes = None,
    cache: Cache = None,
    quiet: Quiet = False,
) -> None:
    """Write prepared images and masks back to NIfTI, for a viewer."""
    from adbench.datasets.contact_sheet import choose_cases
    from adbench.datasets.export import SPACES, export_case
    from adbench.datasets.splits import ROLES
    from adbench.utils.console import say

    if space not in SPACES:
        raise unknown("space", space, SPACES)
    wanted = split(subject)
    if bool(wanted) == bool(split_):
        raise UserError("Name subjects with --subject ID, or a whole split with --split test; not both.")
    if split_ not in (None, *ROLES):
        raise unknown("split", str(split_), ROLES)
    store = _store(dataset, data_root, modality, set_, workers, cache, quiet)
    cases = [case for case in store.cases if case.split == split_] if split_ else choose_cases(store, wanted, 0)
    for case in cases:
        for path in export_case(store, case.id, out, space=space):
            say(str(path))
