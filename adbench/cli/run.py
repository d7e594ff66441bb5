"""Train and score: ``adbench run``."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from adbench.cli.app import (
    Address,
    AtMost,
    Cache,
    Cpus,
    Device,
    Gpus,
    Json,
    Preset,
    Protocol,
    Quiet,
    Root,
    TimeLimit,
    TrainOn,
    TrainRoot,
    app,
    as_settings,
    seconds,
    split,
)
from adbench.context import Context

if TYPE_CHECKING:
    from adbench.config.cell import Cell
    from adbench.executors import Outcome
    from adbench.executors.launch import Launch
    from adbench.runner.plan import Plan

MAX_NAMES = 12  # of methods, seeds, ... in the line that says what runs
MAX_ROWS = 200  # a table of more rows is no help


def _renamed(given: bool) -> None:
    if given:
        from adbench.errors import UserError

        raise UserError("--tensorboard is --track tensorboard now.")


@app.command(
    epilog="Examples:\n\n"
    "  adbench run --method madad --dataset phantom\n\n"
    "  adbench run --method madad,ae,histeq --dataset folder --data-root my_slices --modality FLAIR\n\n"
    "  adbench run --method madad --dataset phantom --seed 0,1,2 --set madad.steps=300\n\n"
    "  adbench run --method histeq --dataset phantom --set histeq.sigma=1,2,4      (a sweep: one run a value)\n\n"
    "  adbench run --method madad,ae --dataset phantom --set method.minutes=5 --track tensorboard\n\n"
    "  adbench run --method madad,ddpm --dataset phantom --time-limit 8h\n\n"
    "  adbench run --method histeq --dataset bids --data-root DIR --set dataset.folds=5      (then: adbench leaderboard pool)\n\n"
    "  adbench run --fit shared/madad-ixi --dataset folder --data-root my_slices      (no training data needed)\n\n"
    "  torchrun --nproc-per-node 4 -m adbench.cli run --method madad --dataset phantom      (one fit on four GPUs)"
)
def run(
    method: Annotated[
        list[str] | None, typer.Option("--method", "-m", help="Method; repeat or separate by commas for several.")
    ] = None,
    dataset: Annotated[
        list[str] | None, typer.Option("--dataset", "-d", help="Dataset; repeat or separate by commas.")
    ] = None,
    modality: Annotated[
        list[str] | None, typer.Option("--modality", help="Sequence (T1, FLAIR, ...); default: the dataset's first.")
    ] = None,
    protocol: Protocol = None,
    seed: Annotated[list[str] | None, typer.Option("--seed", "-s", help="Seed; repeat or separate by commas.")] = None,
    fold: Annotated[
        list[str] | None,
        typer.Option("--fold", help="Folds of --set dataset.folds=K to test, from 0; default: every one."),
    ] = None,
    preset: Preset = None,
    data_root: Root = None,
    train_on: TrainOn = None,
    train_root: TrainRoot = None,
    device: Device = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="SCOPE.KEY=VALUE",
            help="Parameter of method (all), a method's name, dataset, train or post (post.sigma=3 smooths maps, post.median=3 filters them then); several values "
            "(2,4) are a sweep.",
        ),
    ] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file with the same names; flags win over it.")] = None,
    grid: Annotated[
        Path | None, typer.Option(help="Such a file with `include` and `exclude`: a grid with exceptions.")
    ] = None,
    executor: Annotated[
        str, typer.Option(help="serial: here, one after the other. ray: on every core and GPU of a machine or cluster.")
    ] = "serial",
    address: Address = None,
    gpus_per_run: Gpus = None,
    cpus_per_run: Cpus = None,
    max_concurrent: AtMost = None,
    time_limit: TimeLimit = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the cells, what is done and what would run on what. Runs nothing.")
    ] = False,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Run only cells that failed before (they are always tried again).")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="Folder of runs and fits; default: runs.")] = None,
    cache: Cache = None,
    metrics: Annotated[
        list[str] | None,
        typer.Option("--metrics", help="Optional or plug-in metrics to measure too; `adbench list metrics`."),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Score again although a record is there; fits are kept.")
    ] = False,
    save_maps: Annotated[
        bool, typer.Option("--save-maps", help="Keep every anomaly map, for `adbench eval` with other rules later.")
    ] = False,
    checkpoint_seconds: Annotated[
        float, typer.Option(min=0, help="Save a training in progress at least this often.")
    ] = Context.checkpoint_seconds,
    fit: Annotated[
        Path | None, typer.Option(help="A shared fit's folder (adbench fit): score it instead of training.")
    ] = None,
    track: Annotated[
        list[str] | None,
        typer.Option(help="Write loss curves to tensorboard, mlflow or wandb too, while it trains; offline."),
    ] = None,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", hidden=True, callback=_renamed)] = False,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train and score methods on a dataset; print a table and leave records, pictures and histograms.

    Interrupted runs resume; finished ones are answered from their records.
    """
    limit = seconds(time_limit) if time_limit else None
    from adbench.utils.supervisor import Journal, supervised

    # Before anything heavy is imported: a crash then ends a child of this process, and this one whatever is left of it.
    journal = Journal() if dry_run else supervised(limit if executor == "serial" else None)

    from adbench.config import grid as grids
    from adbench.config import run_config as configs
    from adbench.errors import UserError
    from adbench.executors import Options
    from adbench.executors.launch import Launch
    from adbench.executors.resources import parse
    from adbench.utils import distributed

    flags = as_settings(method=method, dataset=dataset, modality=modality, protocol=protocol, seed=seed, fold=fold)
    flags |= as_settings(metrics=metrics, preset=preset, data_root=data_root, train_on=train_on, train_root=train_root)
    flags |= as_settings(device=device, out=out, cache=cache, fit=fit and fit.absolute())
    if grid is not None and config is not None:
        raise UserError("--grid takes everything that --config takes: give one of the two.")
    settings = grids.load(grid, flags, set_ or []) if grid else configs.load(config, flags, set_ or [])
    options = Options(
        executor=executor,
        address=address,
        cpus=parse(cpus_per_run, "--cpus-per-run"),
        gpus=parse(gpus_per_run, "--gpus-per-run"),
        max_concurrent=max_concurrent,
        time_limit=limit,
        force=force,
        checkpoint_seconds=checkpoint_seconds,
        save_maps=save_maps,
        track=",".join(split(track)),
    )
    if "wandb" in split(track):
        os.environ.setdefault("WANDB_SILENT", "true")  # it prints a page for each stage of a training
    if executor != "serial" and distributed.world() > 1:
        raise UserError(
            "A launcher of several processes trains one cell on all of them: use --executor serial with it."
        )
    launch = Launch(settings, options, retry_failed, journal)
    outcomes: list[Outcome] = []
    with launch.connected():
        distributed.join(launch.cells[0].device)
        quiet = quiet or distributed.rank() > 0
        try:
            _plan(launch, quiet, dry_run)
            if dry_run:
                _show_plan(launch, json_)
                return
            for outcome in _outcomes(launch, quiet):
                outcomes.append(outcome)
        except KeyboardInterrupt as stop:
            done = sum(outcome.error is None for outcome in outcomes)
            stop.add_note(
                "The cell took longer than --time-limit."
                if journal.overdue
                else "Interrupted: nothing was run."
                if dry_run
                else f"Interrupted with {done} cells done. Run the same command again to resume."
            )
            raise
    if distributed.rank() == 0:
        _report(outcomes, json_)


def _plan(launch: Launch, quiet: bool, dry_run: bool) -> None:
    """Say what the command is about, and prepare what it needs."""
    from adbench.utils import distributed
    from adbench.utils.console import LiveProgress, say

    if not quiet and not launch.journal.ended:
        _say_settings(launch.cells)
        if launch.journal.shared and not dry_run:
            say(launch.journal.shared)
    with LiveProgress(quiet) as progress, distributed.first():
        launch.plan(progress)


def _outcomes(launch: Launch, quiet: bool) -> Iterator[Outcome]:
    """Run what is planned, with a line for each cell that begins."""
    from adbench.config import grid, run_config
    from adbench.utils.console import LiveProgress, say

    ended, settings = launch.journal.ended, launch.settings
    if not quiet and not ended:
        whole = isinstance(settings, grid.GridConfig)
        resolved = settings if whole else run_config.resolved(launch.cells, settings)
        say(f"Every setting: {_keep(resolved.to_yaml(), launch.out)}")
    # Of the cells that earlier children ran, those with a record are not missing any more.
    number = count(1 + len(ended))
    total = len({*(plan.run_key for plan in launch.missing), *ended})

    def announce(plan: Plan) -> None:
        progress.reset()
        if not quiet:
            say(f"[{next(number)}/{total}] {plan.cell.label}")

    with LiveProgress(quiet or launch.options.executor == "ray") as progress:
        yield from launch.outcomes(progress, before=announce, quiet=quiet)


def _say_settings(cells: list[Cell]) -> None:
    """Print the run in a line, and every parameter that differs from the preset and from the defaults of the dataset."""
    from adbench.config.cell import changed
    from adbench.config.sweep import value_text
    from adbench.results.format import several
    from adbench.utils.console import say

    def every(values: Iterable[str]) -> str:
        found = list(dict.fromkeys(values))
        return ", ".join(found if len(found) <= MAX_NAMES else [*found[:MAX_NAMES], f"{len(found) - MAX_NAMES} more"])

    first = cells[0]
    seeds = every(str(cell.seed) for cell in cells)
    say(
        f"{several(len(cells), 'cell')}: {every(cell.method for cell in cells)} "
        f"[{every(cell.preset for cell in cells)}] on {every(f'{c.test.title} {c.modality}' for c in cells)}, "
        f"seed{'s' * (',' in seeds)} {seeds}; protocol {every(cell.protocol.name for cell in cells)}, {first.device}"
    )
    for scope, own in changed(cells).items():
        settings = [f"{n} = {' | '.join(map(value_text, v))} (default {value_text(d)})" for n, (v, d) in own.items()]
        if settings:
            say(f"  {scope}: {', '.join(settings)}")


def _keep(text: str, out: Path) -> Path:
    """Keep the resolved configuration below ``out``, under a name that equal ones share."""
    from adbench.utils.files import write_text
    from adbench.utils.hashing import digest

    path = out / "configs" / f"{digest(text)[:12]}.yaml"
    if not path.exists():
        write_text(path, text)
    return path


def _show_plan(launch: Launch, as_json: bool) -> None:
    """Print the plan of ``--dry-run``."""
    from adbench.results.format import several
    from adbench.results.status import state
    from adbench.utils.console import print_json, say, table

    missing = {plan.run_key for plan in launch.missing}
    cells = []
    for plan in launch.plans:
        asks = launch.request(plan)
        found, detail = state(plan.run_folder) if plan.run_key in missing else ("complete", {})
        if found == "waiting" or (found == "complete" and plan.run_key in missing):
            found = "to run"
        cells.append(
            {
                "cell": plan.cell.label,
                "state": found,
                "reason": detail.get("message", ""),
                "cpus": asks.cpus,
                "gpus": asks.gpus,
                "asks_for": str(asks),
                "run_key": plan.run_key,
                "fit_key": plan.fit_key,
                "folder": str(plan.run_folder),
            }
        )
    if as_json:
        print_json(cells)
        return
    columns = [("cell", "left"), ("state", "left"), ("asks for", "left")]
    rows = [(c["cell"], f"{c['state']}: {c['reason']}" if c["reason"] else c["state"], c["asks_for"]) for c in cells]
    table("cells", columns, rows)
    ready = sum(cell["state"] == "complete" for cell in cells)
    fits = len({(plan.fit_plan.trainer or plan.fit_plan).key for plan in launch.plans})
    say(
        f"{several(len(cells), 'cell')}: {ready} complete, {len(cells) - ready} to run; {several(fits, 'different fit')}."
    )


def _report(outcomes: list[Outcome], as_json: bool) -> None:
    """Print the table of the records and one of what failed; exit 1 (2 for a single user error) if something did."""
    from adbench.errors import CellFailed
    from adbench.leaderboard.board import run_boards
    from adbench.leaderboard.export import print_boards
    from adbench.results.record import read_record
    from adbench.utils.console import complain, say, table

    failed = [outcome for outcome in outcomes if outcome.error is not None]
    if len(outcomes) == 1 and failed and not isinstance(failed[0].error, CellFailed):
        assert failed[0].error is not None
        raise failed[0].error
    folders = [outcome.plan.run_folder for outcome in outcomes if outcome.error is None]
    shown = folders if as_json or len(outcomes) <= MAX_ROWS else []
    # Curves, subjects and strata are not shown, and would fill the memory.
    slim: dict[str, Any] = {"subjects": [], "strata": {}, "fit": {}, "identity": {}}
    found = run_boards(read_record(folder).model_copy(update=slim) for folder in shown)
    print_boards(found, as_json, failures=[(o.plan.cell.label, CellFailed(o.reason)) for o in failed])
    if not as_json:
        if reused := sum(outcome.reused for outcome in outcomes):
            say(f"{reused} of {len(outcomes)} answered from records.")
        for folder in folders if len(outcomes) <= MAX_ROWS else ():
            if preset := next(o.plan.cell.protocol.preset for o in outcomes if o.plan.run_folder == folder):
                say(f"As published ({preset}): adbench eval '{folder}'")
        for parent in dict.fromkeys(folder.parent for folder in folders):
            say(f"Records and pictures: {parent}")
        if len(outcomes) > MAX_ROWS:
            say("So many are ranked by: adbench leaderboard show --out OUT")
    if failed:
        if not as_json:
            rows = [(o.plan.cell.label, o.reason, f"{o.plan.run_folder}/failure.json") for o in failed]
            table("failed", [("cell", "left"), ("reason", "left"), ("traceback", "left")], rows)
        complain(f"{len(failed)} of {len(outcomes)} cells failed; the same command tries them again.")
        raise typer.Exit(1)
