"""``adbench fit``: export, import, push and pull trained fits."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from adbench.cli.app import Json, Out, app

if TYPE_CHECKING:
    from adbench.config.shared_fit import SharedFit

fits = typer.Typer(help="Share fitted methods: export, import, push, pull, list.", no_args_is_help=True)
app.add_typer(fits, name="fit")

Shared = Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder of a shared fit.")]


@fits.command(
    epilog="Example:\n\n"
    '  adbench fit export runs/ixi/ixi-t1/madad-base-seed0-1a2b3c4d5e --out shared --author "A. Researcher" --licence cc-by-4.0\n\n'
    '  adbench fit export runs/ixi/ixi-t1/madad-base-seed0-1a2b3c4d5e --out madad.zip --author "A. Researcher" --licence cc-by-4.0'
)
def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder whose fit was kept.")],
    out: Annotated[Path, typer.Option(help="New folder, in the layout of the Hugging Face Hub; or one file, *.zip.")],
    author: Annotated[str, typer.Option(help="Who shares it; rows made with it say so.")],
    licence: Annotated[str, typer.Option(help="Of the weights, e.g. cc-by-4.0; mind that of the training data.")],
    link: Annotated[str, typer.Option(help="To code or paper.")] = "",
) -> None:
    """Write the fit of a run for others: tensors, JSON, card, record, digests. It names the training subjects."""
    from adbench.runner.shared_fits import export as write
    from adbench.utils.console import say

    shared = write(run, out, author=author, licence=licence, link=link)
    say(f"{shared.method} by {author}, digest {shared.weights.digest[:16]}: {out}")


@fits.command(
    name="import",
    epilog="Examples:\n\n  adbench fit import shared --out runs\n\n  adbench fit import madad.zip --out runs",
)
def import_(
    given: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder of a shared fit, or an archive of one.")],
    out: Out = Path("runs"),
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Print nothing but the folder for --fit and --run.")
    ] = False,
) -> None:
    """Check a shared fit and bring it into the output folder; `adbench run --fit` does so too, with a folder."""
    from adbench.runner.shared_fits import bring
    from adbench.utils.console import write

    shared = bring(given, out.absolute())
    if quiet:
        write(str(shared.folder))
    else:
        _say(shared)


@fits.command(name="list", epilog="Example:\n\n  adbench fit list --out runs")
def list_(out: Out = Path("runs"), json_: Json = False) -> None:
    """The complete fits of an output folder, and whose they are."""
    from adbench.runner.shared_fits import listed
    from adbench.utils.console import print_json, table

    found = listed(out)
    if json_:
        print_json(found)
        return
    headings = ("method", "MB", "by", "licence", "trained on", "folder")
    rows = []
    for row in found:
        size, author = f"{row['bytes'] / 1e6:.1f}", row["author"] or "this folder"
        rows.append([row["method"], size, author, row["licence"] or "—", row["trained_on"] or "—", row["folder"]])
    table("fits", [(heading, "right" if heading == "MB" else "left") for heading in headings], rows)


@fits.command(epilog="Example:\n\n  adbench fit push shared my-name/madad-ixi-t1")
def push(
    folder: Shared,
    repository: Annotated[str, typer.Argument(help="owner/name on the Hugging Face Hub; made if need be.")],
    private: Annotated[bool, typer.Option("--private", help="Make it private.")] = False,
) -> None:
    """Upload a shared fit to the Hugging Face Hub (log in with `hf auth login`)."""
    from adbench.runner.shared_fits import push as upload
    from adbench.utils.console import say

    say(upload(folder, repository, private=private))


@fits.command(epilog="Example:\n\n  adbench fit pull my-name/madad-ixi-t1 --to shared")
def pull(
    repository: Annotated[str, typer.Argument(help="owner/name on the Hugging Face Hub.")],
    to: Annotated[Path, typer.Option(help="Folder to write to.")],
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit.")] = None,
) -> None:
    """Download a shared fit from the Hugging Face Hub and check it."""
    from adbench.runner.shared_fits import pull as download

    _say(download(repository, to, revision))


def _say(shared: SharedFit) -> None:
    from adbench.utils.console import say

    whose = shared.weights
    say(f"{shared.method} by {whose.author} ({whose.licence}), digest {whose.digest[:16]}")
    say(f"Score a test set: adbench run --fit {shared.folder} --dataset DATASET --data-root DIR")
    say(f"Look at scans: adbench predict --run {shared.folder} --images DIR --out DIR")
