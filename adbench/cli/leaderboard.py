"""``adbench leaderboard``: ranked tables, and results that anyone can verify."""

from __future__ import annotations

from collections import Counter
from itertools import groupby
from pathlib import Path
from typing import Annotated

import typer

from adbench.cli.app import Json, Quiet, app
from adbench.errors import UserError, unknown

board = typer.Typer(help="Ranked tables of results that anyone can verify.", no_args_is_help=True)
app.add_typer(board, name="leaderboard")

BOARDS = Path("leaderboards")
SHOWN = 20  # issues of one file
UNCHECKED = 3  # exit code where nothing is known to be wrong, and not everything could be checked
Root = Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder of leaderboards.")]


@board.command(
    "show",
    epilog="Examples:\n\n  adbench leaderboard show --out runs\n\n  adbench leaderboard show leaderboards\n\n"
    "  adbench leaderboard show --out runs --sort fa_slice",
)
def show(
    folder: Annotated[
        Path | None, typer.Argument(metavar="[FOLDER]", help="Leaderboards, one of them, or a folder of runs.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="Folder of runs, when no FOLDER is named.")] = Path("runs"),
    sort: Annotated[
        str | None, typer.Option("--sort", metavar="METRIC", help="Best first by this metric, whichever way is better.")
    ] = None,
    json_: Json = False,
) -> None:
    """Show results as ranked tables, one for each protocol, test set and modality.

    Runs are listed one by one, by AUPRC. In a leaderboard the seeds of a method stand together, and methods that
    paired comparisons do not tell from the best share a rank.
    """
    from adbench.leaderboard.board import run_boards
    from adbench.leaderboard.export import print_boards
    from adbench.leaderboard.ranking import boards, read_all
    from adbench.leaderboard.submission import published_files
    from adbench.results.rundir import records

    where = folder or out
    more = () if sort is None else (sort,)
    if published_files(where):
        results = read_all(where, lean=not json_)
        measured, found = [one.record for one in results], boards(results, more)
    else:
        measured = [record for _, record in records(where)]
        found = run_boards(measured, more)
    if not found:
        raise UserError(f"There is no record below {where}. `adbench run` writes them.")
    known = {name for record in measured for name in record.metrics}
    if sort is not None and sort not in known:
        raise unknown("metric", sort, sorted(known))
    print_boards(found, json_, sort)


@board.command(
    "pool",
    epilog="Example:\n\n  adbench run --method madad --dataset bids --data-root DIR --set dataset.folds=5 --out runs\n\n"
    "  adbench leaderboard pool runs",
)
def pool(
    folder: Annotated[Path, typer.Argument(metavar="[FOLDER]", help="Folder of runs.")] = Path("runs"),
    json_: Json = False,
) -> None:
    """Take the folds of a cross-validation together: every subject scored once, by the training that had not seen it.

    AUPRC pools the voxels of all folds, which takes their scores to be on one scale; its mean over subjects does not. Dice is at
    the threshold that the validation subjects of each fold chose.
    """
    from adbench.evaluation.folds import pooled_folds
    from adbench.metrics.spec import SPECS
    from adbench.results.format import number_text
    from adbench.results.result import Result
    from adbench.results.rundir import records
    from adbench.utils.console import print_json, table

    found = pooled_folds(Result(path) for path, _ in records(folder))
    if json_:
        print_json({"pooled": [one.as_dict() for one in found]})
        return
    names = list(dict.fromkeys(name for one in found for name in one.metrics))
    headings = ["method", "test set", "seed", "folds", "subjects", *(SPECS[name].column for name in names)]
    rows = [
        [
            f"{one.record.method.name} [{one.record.method.preset}]",
            f"{one.record.test.name} {one.record.test.modality}",
            str(one.record.seed),
            str(len(one.results)),
            str(one.subjects),
            *(number_text(one.metrics.get(name), interval=True) for name in names),
        ]
        for one in found
    ]
    caption = "[95 % interval over subjects, for these trainings]"
    table(
        "all folds together", [(text, "left" if text in headings[:2] else "right") for text in headings], rows, caption
    )


@board.command("build", epilog="Example:  adbench leaderboard build leaderboards")
def build(
    root: Root = BOARDS,
    check: Annotated[
        bool,
        typer.Option("--check", help="Write nothing; exit 1 when a table or the page is not what the records give."),
    ] = False,
) -> None:
    """Make the tables of each protocol (Markdown, CSV, JSON, LaTeX) and one HTML page from */records/*.json."""
    from adbench.leaderboard import build as building
    from adbench.utils.console import say

    if not check:
        for path in building.build(root):
            say(f"  {path}")
        return
    wrong = building.stale(root)
    for path in wrong:
        say(f"{path} is not what the records give: run adbench leaderboard build {root}")
    if wrong:
        raise typer.Exit(1)
    say("The tables and the page are what the records give.")


@board.command(
    "verify",
    epilog="Examples:\n\n  adbench leaderboard verify leaderboards\n\n"
    "  adbench leaderboard verify runs/phantom/phantom-flair/madad-tiny-seed0-1a2b3c4d5e",
)
def verify(
    paths: Annotated[
        list[Path] | None, typer.Argument(metavar="[PATH]...", help="Leaderboards, submissions or runs.")
    ] = None,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Verify results: compute every number again, and check keys, hashes, protocol, subjects and splits.

    Prints what differs, field by field. Exit code 1: something does. 3: nothing does, but some numbers could not be checked,
    because the package of their metric is not installed here.
    """
    from adbench.leaderboard import verify as verifying
    from adbench.utils.console import LiveProgress, err, out, print_json, say

    unseen, passed_over = Counter[str](), list[Path]()
    with LiveProgress(quiet or json_) as progress:
        count, issues = verifying.verify(paths or [BOARDS], progress, unseen, passed_over)
    if json_:
        found = {"results": count, "findings": [issue.as_dict() for issue in issues], "not_checked": unseen}
        print_json({**found, "passed_over": [str(path) for path in passed_over]})
    elif issues:
        for file, own in groupby(sorted(issues, key=lambda issue: issue.file), lambda issue: issue.file):
            out.print(file, style="bold", markup=False, soft_wrap=True)
            sentences = [issue.sentence for issue in own]
            for sentence in sentences[:SHOWN]:
                out.print(f"  {sentence}", markup=False, soft_wrap=True)
            if len(sentences) > SHOWN:
                out.print(f"  and {len(sentences) - SHOWN} more: --json prints all")
        wrong = {issue.file for issue in issues if not issue.unchecked}
        left = {issue.file for issue in issues} - wrong
        for files, what in (
            (wrong, "do not verify"),
            (left, "could not be checked whole; nothing else is wrong in them"),
        ):
            if files:
                err.print(f"{len(files)} of {count} results {what}.", style="bold red")
    else:
        say(f"{count} results verified: every number follows from the stored counts.")
    if not json_:
        _say_left_out(unseen, passed_over)
    if issues:
        raise typer.Exit(UNCHECKED if all(issue.unchecked for issue in issues) else 1)


def _say_left_out(unseen: Counter[str], passed_over: list[Path]) -> None:
    """What of the results could not be checked, and which files are none."""
    from adbench.utils.console import say

    for what, results in sorted(unseen.items()):
        say(f"Not checked: {results} {what}.")
    for file in passed_over:
        say(f"Passed over, nothing of a result is in it: {file}")


@board.command(
    "submit",
    epilog="Examples:\n\n  adbench leaderboard submit runs/phantom/phantom-flair/madad-tiny-seed0-1a2b3c4d5e "
    '--submitter "A. Researcher" --licence CC-BY-4.0\n\n'
    "  adbench eval --maps my_maps --masks masks --brain brains --out scores\n\n"
    '  adbench leaderboard submit scores --method "Our method" --submitter "A. Researcher" --licence CC-BY-4.0 '
    "--code https://github.com/us/ours --dataset NOVA --modality FLAIR",
)
def submit(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="A finished run, or what `adbench eval --maps` left.")
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder for the file, or its name (*.json).")] = Path(),
    submitter: Annotated[str | None, typer.Option(help="Who submits it; the row says so.")] = None,
    licence: Annotated[str | None, typer.Option(help="Of the submission, an identifier such as CC-BY-4.0.")] = None,
    paper: Annotated[str, typer.Option(help="https address of the paper.")] = "",
    code: Annotated[str, typer.Option(help="https address of the code.")] = "",
    method: Annotated[str | None, typer.Option(help="Maps only: name of the method.")] = None,
    like: Annotated[
        Path | None, typer.Option(help="Maps only: a run or submission on the very cases, whose table the row joins.")
    ] = None,
    dataset: Annotated[str, typer.Option(help="Maps only, without --like: what the cases are of.")] = "",
    modality: Annotated[str, typer.Option(help="Maps only, without --like: their sequence.")] = "",
    trained_on: Annotated[
        str,
        typer.Option(help="Maps only: what the method learned from; what adbench knows gets its name here (IXI: ixi)."),
    ] = "",
    seed: Annotated[int, typer.Option(min=0, help="Maps only: seed of the training; rows of several are one.")] = 0,
) -> None:
    """Pack a result into one file for a pull request: its record and the counts that all numbers follow from, no image.

    It says who submits it and under which licence. A run shows what made its numbers. Maps do not, so a row that was scored
    from them is marked, and names code or paper too.
    """
    from adbench.leaderboard import merge as merging
    from adbench.leaderboard.from_maps import is_scored, pack_maps
    from adbench.leaderboard.submission import said
    from adbench.utils.console import say

    if is_scored(folder):
        who = said(submitter or "", licence or "", code, paper)
        if not method:
            raise UserError("Name the method whose maps they are with --method.")
        packed = pack_maps(
            folder,
            who,
            method=method,
            dataset=dataset,
            modality=modality,
            like=like,
            trained_on=trained_on,
            seed=seed,
        )
        path = merging.submit_maps(packed, out)
        if trained_on.strip() not in ("", its := packed.record.train.name):
            say(f"Trained on {trained_on.strip()}: adbench calls it {its}, and so does the row.")
    else:
        own: dict[str, object] = {"--method": method, "--like": like, "--dataset": dataset, "--modality": modality}
        own |= {"--trained-on": trained_on, "--seed": seed}
        if given := [name for name, value in own.items() if value]:
            raise UserError(
                f"{', '.join(given)}: only for what `adbench eval --maps` left; the record of a run says it."
            )
        path = merging.submit(folder, out, said(submitter or "", licence or "", code, paper))
    say(f"{path} ({path.stat().st_size / 1024:.0f} kB). Next: adbench leaderboard merge {path}, and a pull request.")


def _means_into(given: str) -> None:
    if given:
        raise UserError(f"The leaderboards that results are merged into are given as --into {given}.")


@board.command(
    "merge",
    epilog="Examples:\n\n  adbench leaderboard merge phantom-flair-madad-tiny-seed0-1a2b3c4d5e.json\n\n"
    "  adbench leaderboard merge runs/phantom --into leaderboards      (every run below)",
)
def merge(
    paths: Annotated[list[Path], typer.Argument(metavar="PATH...", help="Submissions, runs, or folders of them.")],
    into: Annotated[Path, typer.Option("--into", help="Folder of leaderboards.")] = BOARDS,
    out: Annotated[str, typer.Option("--out", hidden=True, callback=_means_into)] = "",
    quiet: Quiet = False,
) -> None:
    """Merge results into the leaderboards if all of them verify; else nothing changes."""
    from adbench.leaderboard import merge as merging
    from adbench.utils.console import LiveProgress, say

    unseen, passed_over = Counter[str](), list[Path]()
    with LiveProgress(quiet) as progress:
        merged = merging.merge(paths, into, progress, passed_over, unseen)
    _say_left_out(unseen, passed_over)
    for one in merged:
        say(f"  {'added' if one.added else 'already there'}: {one.path}")
    say(f"{sum(one.added for one in merged)} of {len(merged)} added. Next: adbench leaderboard build {into}")


@board.command(
    "recount",
    epilog="Example:\n\n  adbench leaderboard recount leaderboards && adbench leaderboard build",
)
def recount(root: Root = BOARDS, quiet: Quiet = False) -> None:
    """Bring results of an earlier release to the definitions of this one, from the counts that they hold.

    When a definition changes, results of before no longer verify ("numbers of other definitions"). No data and no maps are
    needed where the counts decide the new numbers; otherwise the result is left as it is, and named.
    """
    from adbench.leaderboard.recount import recount as count_again
    from adbench.leaderboard.verify import targets
    from adbench.utils.console import LiveProgress, say

    paths = [path for path in targets(root) if path.is_file()]  # a run is scored again by running it
    changed, refused = 0, list[str]()
    with LiveProgress(quiet) as progress:
        for done, path in enumerate(paths, 1):
            try:
                changed += count_again(path) is not None
            except UserError as error:
                refused.append(str(error))
            progress.update("count again", done, len(paths))
    say(f"{changed} of {len(paths)} results counted again. Next: adbench leaderboard build {root}")
    if refused:
        raise UserError("\n".join(refused))


@board.command(
    "diff",
    epilog="Examples:\n\n  adbench leaderboard diff RUN_A RUN_B\n\n"
    "  adbench leaderboard diff leaderboards ../other-checkout/leaderboards",
)
def diff(
    a: Annotated[Path, typer.Argument(metavar="A", help="A submission, a run, or leaderboards.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="Another one of the same kind.")],
    json_: Json = False,
) -> None:
    """Compare two results (identity, numbers, paired difference) or two folders of leaderboards."""
    from adbench.leaderboard import diff as comparing

    comparing.print_diff(comparing.diff(a, b), json_)
