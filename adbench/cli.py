"""The command line: parse, build a typed configuration, call the same Python API that a notebook calls.

Nothing heavy is imported before a verb needs it: ``adbench --help`` must answer at once.
"""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from adbench import __version__
from adbench.errors import UserError

app = typer.Typer(
    name="adbench",
    help="Benchmark harness for unsupervised anomaly detection on brain MRI.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    add_completion=False,
    epilog="Try it without data: [bold]adbench run --method histeq,constant --dataset phantom[/]",
)
board = typer.Typer(help="Ranked tables of records.", no_args_is_help=True)
app.add_typer(board, name="leaderboard")

Json = Annotated[bool, typer.Option("--json", help="Print JSON (stable keys, unrounded numbers) and nothing else.")]
Out = Annotated[Path, typer.Option("--out", help="Folder of runs and fits.")]


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"adbench {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    if debug:
        os.environ["ADBENCH_DEBUG"] = "1"


def main() -> None:
    """Entry point: errors a user can mend become one sentence and exit code 2."""
    try:
        app()
    except UserError as error:
        _fail(str(error), error)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            _fail(
                f"No space left on the disk of {error.filename or 'the output or cache folder'}: free some and run again.",
                error,
            )
        if isinstance(error, PermissionError):
            _fail(
                f"Not allowed to write or read {error.filename}: choose another --out or --cache, or mend its permissions.",
                error,
            )
        raise


def _fail(message: str, error: BaseException) -> None:
    from adbench.console import complain

    if os.environ.get("ADBENCH_DEBUG"):
        raise error
    complain(message)
    sys.exit(2)


@app.command(
    epilog="Examples:\n\n"
    "  adbench run --method madad --dataset phantom\n\n"
    "  adbench run --method madad,ae,histeq --dataset folder --data-root my_slices --modality FLAIR\n\n"
    "  adbench run --method madad --dataset phantom --seed 0,1,2 --set madad.steps=300"
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
    json_: Json = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
) -> None:
    """Train and score methods on a dataset; print a table and leave records, pictures and histograms.

    Interrupted runs go on where they stopped; finished ones are answered from their records.
    """
    from adbench import config as configs
    from adbench.console import LiveProgress, say

    flags: dict[str, Any] = {
        "method": _split(method),
        "dataset": _split(dataset),
        "modality": _split(modality),
        "protocol": protocol,
        "seed": _split(seed),
        "metrics": _split(metrics),
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
    if not quiet:
        say(configs.resolved(cells, settings).to_yaml().rstrip())
    from adbench.executors import serial
    from adbench.planning import plan

    target = Path(settings.out)
    stores = Path(settings.cache) if settings.cache else configs.default_cache()
    try:
        with LiveProgress(quiet) as progress:
            plans = plan(cells, target, stores, progress)

            def announce(number: int, cell: Any) -> None:
                progress.reset()
                if not quiet:
                    say(f"[{number}/{len(plans)}] {cell.spec.label}")

            outcomes = serial(
                plans,
                progress,
                force=force,
                checkpoint_seconds=checkpoint_seconds,
                save_maps=save_maps,
                before=announce,
            )
    except KeyboardInterrupt:
        say("Interrupted. Run the same command again: it goes on where it stopped.")
        raise typer.Exit(130) from None
    _report(outcomes, json_)


def _split(values: list[str] | None) -> tuple[str, ...]:
    return tuple(part.strip() for value in values or [] for part in value.split(",") if part.strip())


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


@app.command(
    name="eval",
    epilog="Examples:\n\n"
    "  adbench eval runs/phantom/phantom-flair/madad-tiny-seed0-1a2b3c4d5e\n\n"
    "  adbench eval RUN --protocol official-madad      (a run made with --save-maps)\n\n"
    "  adbench eval --maps my_maps --masks my_masks --brain my_brains --out scores",
)
def evaluate(
    run: Annotated[Path | None, typer.Argument(help="A run's folder. Leave it out to score your own maps.")] = None,
    maps: Annotated[Path | None, typer.Option(help="Folder of anomaly maps, NIfTI or PNG, no method needed.")] = None,
    masks: Annotated[Path | None, typer.Option(help="Folder of lesion masks on the same grid.")] = None,
    brain: Annotated[Path | None, typer.Option(help="Folder of brain masks; without it every voxel counts.")] = None,
    val_maps: Annotated[Path | None, typer.Option(help="Maps of other cases, to choose thresholds on.")] = None,
    val_masks: Annotated[Path | None, typer.Option(help="Their lesion masks.")] = None,
    val_brain: Annotated[Path | None, typer.Option(help="Their brain masks.")] = None,
    labels: Annotated[str | None, typer.Option(help="Mask values that are lesion, e.g. 1,2,4; default 1.")] = None,
    metrics: Annotated[list[str] | None, typer.Option("--metrics", help="Plug-in metrics to add.")] = None,
    protocol: Annotated[
        list[str] | None, typer.Option(help="A paper's own rule: official-madad, thor, cddpm or upd.")
    ] = None,
    replicates: Annotated[int | None, typer.Option(min=0, help="Bootstrap replicates; default 1000.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for the JSON and plots of your own maps.")] = Path("eval"),
    json_: Json = False,
) -> None:
    """Evaluate a finished run again, or anyone's maps against their masks, without running a model."""
    from adbench.evaluation import print_evaluation, reevaluate, score_folders

    if (run is None) == (maps is None):
        raise UserError("Name a run, or your own maps with --maps DIR --masks DIR; not both.")
    if run is not None:
        results = reevaluate(run, _split(metrics), _split(protocol), replicates)
    else:
        if maps is None or masks is None:
            raise UserError("--maps needs --masks DIR: the lesion masks that the maps are held against.")
        folders = {"brain": brain, "val_maps": val_maps, "val_masks": val_masks, "val_brain": val_brain}
        results = score_folders(
            maps,
            masks,
            folders,
            labels,
            _split(metrics),
            _split(protocol),
            1000 if replicates is None else replicates,
            out,
        )
    print_evaluation(results, json_)


@app.command(name="list", epilog="Example:  adbench list methods")
def list_(
    kind: Annotated[str, typer.Argument(help="methods, datasets, protocols or metrics.")],
    json_: Json = False,
) -> None:
    """List what there is, plugins included; a plugin that cannot be loaded is shown with the reason."""
    from adbench.catalogue import listing

    rows = listing(kind)
    if json_:
        from adbench.console import print_json

        print_json(rows)
        return
    from adbench.console import table

    table(
        kind,
        [("name", "left"), ("what it is", "left"), ("from", "left"), ("status", "left")],
        ((row["name"], row["summary"], row["origin"], row["problem"] or "available") for row in rows),
        caption="More about one: adbench describe NAME",
    )


@app.command(epilog="Examples:\n\n  adbench describe madad\n\n  adbench describe phantom")
def describe(
    name: Annotated[str, typer.Argument(help="A method, dataset, metric or protocol.")],
    json_: Json = False,
) -> None:
    """Describe one method, dataset, metric or protocol: parameters with types, defaults, units and sources."""
    from adbench.catalogue import description

    what = description(name)
    if json_:
        from adbench.console import print_json

        print_json(what)
        return
    from adbench.console import out, table

    out.print(f"{what['kind']} {what['name']}", style="bold")
    out.print(what["doc"], markup=False)
    for key, value in what["facts"].items():
        out.print(f"{key}: {value}", markup=False, soft_wrap=True)
    if what["params"]:
        presets = list(what["presets"])
        columns = [("parameter", "left"), ("type", "left"), ("default", "right"), *((p, "right") for p in presets)]
        columns += [("unit", "left"), ("meaning", "left"), ("source", "left")]
        rows = []
        for p in what["params"]:
            special = [str(what["presets"][q].get(p["name"], "")) for q in presets]
            rows.append([p["name"], p["type"], str(p["default"]), *special, p["unit"], p["doc"], p["source"]])
        table("parameters", columns, rows, caption="Set one with --set " + what["scope"] + ".NAME=VALUE")


@app.command(epilog="Example:  adbench doctor")
def doctor(json_: Json = False) -> None:
    """Check the installation: versions, device, data roots, plugins, and a foreign package called adbench."""
    from adbench.doctor import examine

    report = examine()
    if json_:
        from adbench.console import print_json

        print_json(report)
    else:
        from adbench.console import table

        rows = [(f["what"], f["found"], f["verdict"]) for f in report["findings"]]
        table("adbench doctor", [("what", "left"), ("found", "left"), ("verdict", "left")], rows)
    if report["problems"]:
        raise typer.Exit(1)


@app.command(name="test", epilog="Examples:\n\n  adbench test histeq\n\n  adbench test my_method --set steps=20")
def conformance(
    name: Annotated[str, typer.Argument(help="A method or dataset, yours included.")],
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A parameter of it.")] = None,
    data_root: Annotated[Path | None, typer.Option(help="Where the dataset lies.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "cpu",
    json_: Json = False,
) -> None:
    """Hold a method or dataset against its contract, rule by rule; exit 1 when one is broken."""
    from dataclasses import asdict

    from adbench.catalogue import conformance as check

    findings = check(name, set_ or [], data_root, device)
    if json_:
        from adbench.console import print_json

        print_json([asdict(finding) for finding in findings])
    else:
        from adbench.console import err, table

        rows = [(f.rule, f"broken: {f.problem}" if f.problem else "holds", f.asks) for f in findings]
        table(f"contract of {name}", [("rule", "left"), ("verdict", "left"), ("it asks", "left")], rows)
        for finding in findings:
            if finding.trace:
                err.print(f"\n{finding.rule}:\n{finding.trace}", markup=False)
    if any(finding.problem for finding in findings):
        raise typer.Exit(1)


@board.command("show", epilog="Example:  adbench leaderboard show --out runs")
def leaderboard_show(
    out: Out = Path("runs"),
    json_: Json = False,
) -> None:
    """Rank the records found below a folder, one table for each protocol, test set and modality."""
    from adbench.leaderboard.show import print_boards
    from adbench.leaderboard.table import boards
    from adbench.results.rundir import records

    found = boards(record for _, record in records(out))
    if not found:
        raise UserError(f"There is no record below {out}. `adbench run` writes them.")
    print_boards(found, json_)


if __name__ == "__main__":
    main()
