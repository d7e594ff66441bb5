"""``adbench run``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from adbench.cli.app import Json, app, split


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
    protocol: Annotated[str | None, typer.Option(help="Protocol; default: the dataset's own.")] = None,
    seed: Annotated[list[str] | None, typer.Option("--seed", "-s", help="Seed; repeat or separate by commas.")] = None,
    preset: Annotated[
        str | None, typer.Option(help="tiny, base or paper; default: tiny on the CPU, base on a GPU.")
    ] = None,
    data_root: Annotated[
        Path | None, typer.Option(help="Where the dataset lies; default: $ADBENCH_DATA/<dataset>.")
    ] = None,
    train_on: Annotated[
        str | None, typer.Option(help="Learn from another dataset, e.g. a folder of healthy slices.")
    ] = None,
    train_root: Annotated[Path | None, typer.Option(help="Where the training source lies.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N.")] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="SCOPE.KEY=VALUE", help="Parameter of method (all), a method's name, dataset or train."
        ),
    ] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file with the same names; flags win over it.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of runs and fits; default: runs.")] = None,
    cache: Annotated[
        Path | None, typer.Option(help="Folder of prepared slice stores; default: $ADBENCH_CACHE or ~/.cache/adbench.")
    ] = None,
    metrics: Annotated[
        list[str] | None, typer.Option("--metrics", help="Plug-in metrics to measure too; `adbench list metrics`.")
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
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
) -> None:
    """Train and score methods on a dataset; print a table and leave records, pictures and histograms.

    Interrupted runs go on where they stopped; finished ones are answered from their records.
    """
    from adbench import config as configs
    from adbench import ranks
    from adbench.console import LiveProgress, say

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
    settings = configs.load(config, flags, set_ or [])
    cells = list(configs.cells(settings))
    ranks.join(cells[0].device)
    quiet = quiet or ranks.rank() > 0
    if not quiet:
        say(configs.resolved(cells, settings).to_yaml().rstrip())
    from adbench.executors import Options, serial
    from adbench.planning import plan

    target = Path(settings.out)
    stores = Path(settings.cache) if settings.cache else configs.default_cache()
    try:
        with LiveProgress(quiet) as progress:
            with ranks.first():
                plans = plan(cells, target, stores, progress)

            def announce(cell: Any) -> None:
                progress.reset()
                if not quiet:
                    say(f"[{plans.index(cell) + 1}/{len(plans)}] {cell.spec.label}")

            options = Options(force, checkpoint_seconds, save_maps, tensorboard)
            outcomes = list(serial(plans, progress, options, before=announce))
    except KeyboardInterrupt:
        say("Interrupted. Run the same command again: it goes on where it stopped.")
        raise typer.Exit(130) from None
    if ranks.rank() == 0:
        _report(outcomes, json_)


def _report(outcomes: list[Any], as_json: bool) -> None:
    """Print the table of what was asked for; exit 1 (2 for a single user error) when something failed."""
    from adbench.console import complain, say
    from adbench.leaderboard.show import print_boards
    from adbench.leaderboard.table import boards

    failed = [outcome for outcome in outcomes if outcome.error is not None]
    if len(outcomes) == 1 and failed:
        raise failed[0].error
    records = [outcome.record for outcome in outcomes if outcome.record is not None]
    print_boards(boards(records), as_json, failures=[(f.plan.spec.label, f.error) for f in failed])
    for outcome in failed:
        complain(
            f"{outcome.plan.spec.label} failed: {outcome.error} (traceback in {outcome.plan.run_folder}/failure.json)"
        )
    if not as_json:
        reused = sum(outcome.reused for outcome in outcomes)
        if reused:
            say(f"{reused} of {len(outcomes)} answered from records.")
        for folder in dict.fromkeys(str(o.plan.run_folder.parent) for o in outcomes if o.record is not None):
            say(f"Records and pictures: {folder}")
    if failed:
        raise typer.Exit(1)
