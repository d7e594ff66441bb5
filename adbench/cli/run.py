"""``adbench run``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from adbench.cli.app import Address, AtMost, Cache, Json, Preset, Protocol, Quiet, Root, TrainRoot, app, split


@app.command(
    epilog="Examples:\n\n"
    "  adbench run --method madad --dataset phantom\n\n"
    "  adbench run --method madad,ae,histeq --dataset folder --data-root my_slices --modality FLAIR\n\n"
    "  adbench run --method madad --dataset phantom --seed 0,1,2 --set madad.steps=300\n\n"
    "  adbench run --method madad,ae --dataset phantom --set method.minutes=5 --tensorboard\n\n"
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
    preset: Preset = None,
    data_root: Root = None,
    train_on: Annotated[
        str | None, typer.Option(help="Learn from another dataset, e.g. a folder of healthy slices.")
    ] = None,
    train_root: TrainRoot = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N.")] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="SCOPE.KEY=VALUE", help="Parameter of method (all), a method's name, dataset or train."
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
    gpus_per_run: Annotated[
        str | None, typer.Option(help="auto (by the memory a method asks for), a share such as 0.25, or 1.")
    ] = None,
    cpus_per_run: Annotated[str | None, typer.Option(help="auto (what a method asks for) or a number.")] = None,
    max_concurrent: AtMost = None,
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
    ] = 60.0,
    tensorboard: Annotated[
        bool,
        typer.Option("--tensorboard", help="Write loss curves for TensorBoard beside the checkpoints of each fit."),
    ] = False,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train and score methods on a dataset; print a table and leave records, pictures and histograms.

    Interrupted runs go on where they stopped; finished ones are answered from their records.
    """
    from adbench.config import grid as grids
    from adbench.config import run_config as configs
    from adbench.errors import UserError
    from adbench.executors import Options
    from adbench.executors.gpu_sharing import parse
    from adbench.executors.launch import Launch, Placement
    from adbench.utils import distributed
    from adbench.utils.console import LiveProgress, say

    flags: dict[str, Any] = {
        "method": split(method),
        "dataset": split(dataset),
        "modality": split(modality),
        "protocol": protocol,
        "seed": split(seed),
        "metrics": split(metrics),
        "preset": preset,
        "data_root": str(data_root) if data_root else None,
        "train_on": train_on,
        "train_root": str(train_root) if train_root else None,
        "device": device,
        "out": str(out) if out else None,
        "cache": str(cache) if cache else None,
    }
    if grid is not None and config is not None:
        raise UserError("--grid takes everything that --config takes: give one of the two.")
    assignments = set_ or []
    settings = grids.load(grid, flags, assignments) if grid else configs.load(config, flags, assignments)
    cpus, gpus = parse(cpus_per_run, "--cpus-per-run"), parse(gpus_per_run, "--gpus-per-run")
    launch = Launch(
        settings,
        Placement(executor, address, cpus, gpus, max_concurrent),
        Options(force, checkpoint_seconds, save_maps, tensorboard),
        retry_failed,
    )
    if executor != "serial" and distributed.world() > 1:
        raise UserError(
            "A launcher of several processes trains one cell on all of them: use --executor serial with it."
        )
    done = 0
    with launch.connected() as cluster:
        distributed.join(next(iter(launch.cells(cluster))).device)
        quiet = quiet or distributed.rank() > 0
        if not quiet:
            shown = settings if grid else configs.resolved(launch.cells(cluster), settings)
            say(shown.to_yaml().rstrip())
        try:
            with LiveProgress(quiet) as progress, distributed.first():
                tally = launch.tally(cluster, progress)
            if dry_run:
                _show_plan(launch, cluster, json_)
                return
            number = iter(range(1, tally.missing + 1))

            def announce(plan: Any) -> None:
                progress.reset()
                if not quiet:
                    say(f"[{next(number)}/{tally.missing}] {plan.cell.label}")

            report = Report(tally.total, json_)
            with LiveProgress(quiet or executor == "ray") as progress:
                for outcome in launch.outcomes(tally, cluster, progress, before=announce, quiet=quiet):
                    report.add(outcome)
                    done += outcome.error is None
        except KeyboardInterrupt:
            say(f"Interrupted with {done} cells done. Run the same command again: it goes on where it stopped.")
            raise typer.Exit(130) from None
    if distributed.rank() == 0:
        report.end()


def _show_plan(launch: Any, cluster: Any, as_json: bool) -> None:
    """What ``--dry-run`` shows."""
    from adbench.results.progress import state
    from adbench.utils.console import print_json, say, table

    cells = []
    for plan in launch.plans(cluster):
        share = launch.share(plan, cluster)
        found, detail = ("complete", {}) if launch.done(plan) else state(plan.run_folder)
        if found == "waiting" or (found == "complete" and not launch.done(plan)):
            found = "to run"
        cells.append(
            {
                "cell": plan.cell.label,
                "state": found,
                "reason": detail.get("message", ""),
                "cpus": share.cpus,
                "gpus": share.gpus,
                "asks_for": str(share),
                "run_key": plan.run_key,
                "fit_key": plan.fit_key,
                "folder": str(plan.run_folder),
            }
        )
    if as_json:
        print_json(cells)
        return
    columns = [("cell", "left"), ("state", "left"), ("asks for", "left")]
    named = [(c["cell"], f"{c['state']}: {c['reason']}" if c["reason"] else c["state"], c["asks_for"]) for c in cells]
    table("cells", columns, named)
    ready = sum(cell["state"] == "complete" for cell in cells)
    fits = len({cell["fit_key"] for cell in cells})
    say(f"{len(cells)} cells: {ready} complete, {len(cells) - ready} to run; {fits} different fits.")


class Report:
    """What ``adbench run`` says at the end.

    Args:
        total: cells of the grid.
        as_json: print JSON.
    """

    SHOWN = 200  # a table of more rows is no help

    def __init__(self, total: int, as_json: bool) -> None:
        self._total, self._json = total, as_json
        self._shown: list[Path] = []  # run folders
        self._parents: dict[Path, None] = {}
        self._failed: list[tuple[str, str, Path]] = []
        self._only: BaseException | None = None
        self._reused = 0

    def add(self, outcome: Any) -> None:
        """Take note of an outcome."""
        folder = outcome.plan.run_folder
        if outcome.error is not None:
            self._failed.append((outcome.plan.cell.label, outcome.reason, folder))
            self._only = outcome.error if self._total == 1 else None
            return
        self._reused += outcome.reused
        self._parents[folder.parent] = None
        if self._json or self._total <= self.SHOWN:
            self._shown.append(folder)

    def end(self) -> None:
        """Print the table of what was asked for and one of what failed; exit 1 (2 for a single user error) in that case."""
        from adbench.executors.base import Failed
        from adbench.leaderboard.board import run_boards
        from adbench.leaderboard.terminal import print_boards
        from adbench.results.record import read
        from adbench.utils.console import complain, say, table

        if self._only is not None and not isinstance(self._only, Failed):
            raise self._only
        # Curves, subjects and strata are not shown, and would fill the memory.
        slim: dict[str, Any] = {"subjects": [], "strata": {}, "fit": {}, "identity": {}}
        found = run_boards(read(folder).model_copy(update=slim) for folder in self._shown)
        print_boards(found, self._json, failures=[(label, Failed(reason)) for label, reason, _ in self._failed])
        if not self._json:
            if self._reused:
                say(f"{self._reused} of {self._total} answered from records.")
            for folder in self._parents:
                say(f"Records and pictures: {folder}")
            if self._total > self.SHOWN:
                say("So many are ranked by: adbench leaderboard show --out OUT")
        if self._failed:
            if not self._json:
                rows = [(label, reason, f"{folder}/failure.json") for label, reason, folder in self._failed]
                table("failed", [("cell", "left"), ("reason", "left"), ("traceback", "left")], rows)
            complain(f"{len(self._failed)} of {self._total} cells failed; the same command tries them again.")
            raise typer.Exit(1)
