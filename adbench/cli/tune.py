"""``adbench tune``: hyper-parameter search."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

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
)


@app.command(
    epilog="Examples:\n\n"
    "  adbench tune --method madad --dataset brats21 --trials 50 --budget 8h\n\n"
    "  adbench tune --method madad --dataset brats21 --trials 80 --time-limit 30m --resume\n\n"
    "  adbench tune --method dae --dataset phantom --objective pseudo --space space.yaml --set method.steps=300\n\n"
    "  adbench run --config runs/searches/NAME/best.yaml      (what it found, on the test split)"
)
def tune(
    method: Annotated[str | None, typer.Option("--method", "-m", help="The method.")] = None,
    dataset: Annotated[
        str | None, typer.Option("--dataset", "-d", help="The dataset; its test split is never opened.")
    ] = None,
    objective: Annotated[
        str,
        typer.Option(
            help="val_auprc: lesions of the validation split; pseudo: synthetic lesions in healthy validation slices; "
            "recon: error of their reconstruction."
        ),
    ] = "val_auprc",
    trials: Annotated[int, typer.Option(min=1, help="Trials in all, those of earlier sessions included.")] = 20,
    budget: Annotated[
        str | None, typer.Option(help="Time this call may take, e.g. 90m or 8h; default: until all trials are done.")
    ] = None,
    time_limit: TimeLimit = None,
    space: Annotated[
        Path | None, typer.Option(help="YAML that narrows or replaces the method's own search space.")
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Name of the search; default: method-preset-dataset-modality-objective.")
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Go on with the search of this name. Ray's state is a pickle: resume only searches you trust.",
        ),
    ] = False,
    search_seed: Annotated[int, typer.Option(min=0, help="Seed of the proposals.")] = 0,
    val_slices: Annotated[
        int, typer.Option(min=1, help="Validation slices the objective looks at, at most, evenly spread.")
    ] = 512,
    stop_early: Annotated[
        bool, typer.Option("--stop-early/--no-stop-early", help="Stop trials that fall behind at 10 % and 30 %.")
    ] = True,
    modality: Annotated[
        str | None, typer.Option(help="Sequence (T1, FLAIR, ...); default: the dataset's first.")
    ] = None,
    protocol: Protocol = None,
    seed: Annotated[int | None, typer.Option("--seed", "-s", min=0, help="Seed of every fit.")] = None,
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
            help="Parameter of the method, dataset, train or pseudo (the synthetic lesions); what is set is not searched.",
        ),
    ] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file as for adbench run; flags win over it.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of runs, fits and searches; default: runs.")] = None,
    cache: Cache = None,
    cpus_per_run: Cpus = None,
    gpus_per_run: Gpus = None,
    max_concurrent: AtMost = None,
    address: Address = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Show the search space, data and first trial, and check draws of it. Runs nothing."
        ),
    ] = False,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Search for good parameters of a method on validation slices; the test split is never opened.

    Leaves the best configuration as YAML, a table of the trials and plots. A search that was killed goes on with --resume.
    """
    duration = None if budget is None else seconds(budget)
    limit = None if time_limit is None else seconds(time_limit)
    from adbench.utils.supervisor import supervised

    if not dry_run:
        supervised(resume="Run the same command with --resume: it goes on where it stopped.")

    from adbench.config import run_config as configs
    from adbench.executors.resources import parse
    from adbench.tune.search import search
    from adbench.tune.task import SearchOptions
    from adbench.utils.console import LiveProgress, print_json, say

    flags = as_settings(method=method, dataset=dataset, modality=modality, protocol=protocol, seed=seed, preset=preset)
    flags |= as_settings(data_root=data_root, train_on=train_on, train_root=train_root)
    flags |= as_settings(device=device, out=out, cache=cache)
    settings: configs.RunConfig = configs.load(config, flags, set_ or [])
    options = SearchOptions(
        objective=objective,
        trials=trials,
        budget=duration,
        time_limit=limit,
        space=space,
        name=name,
        resume=resume,
        seed=search_seed,
        slices=val_slices,
        halving=stop_early,
        cpus=parse(cpus_per_run, "--cpus-per-run"),
        gpus=parse(gpus_per_run, "--gpus-per-run"),
        max_concurrent=max_concurrent,
        address=address,
    )
    if dry_run:
        from adbench.tune.rehearsal import rehearse

        with LiveProgress(quiet) as progress:
            rehearsal = rehearse(settings, options, progress)
        print_json(rehearsal.to_json()) if json_ else _print_plan(rehearsal)
        return
    try:
        with LiveProgress(quiet) as progress:
            result = search(settings, options, progress, (lambda text: None) if quiet else say)
    except KeyboardInterrupt as stop:
        stop.add_note("Interrupted. Run the same command with --resume: it goes on where it stopped.")
        raise
    if json_:
        print_json(result.to_json())
    else:
        _print(result)
    if result.config is None:
        raise typer.Exit(1)


OTHERS = 10  # trials that are not complete, in the table


def _print(result: Any) -> None:
    """The ten best trials, some that were stopped or failed, what was gained, and what to do next."""
    from adbench.tune.task import OBJECTIVES
    from adbench.tune.trials import count, hours, ranked
    from adbench.utils.console import say, table

    task, trials = result.task, result.trials
    names = list(task.space)
    cpu_hours, gpu_hours = hours(trials)
    states = {"complete": "complete", "stopped": "stopped early", "failed": "failed", "waiting": "waiting"}
    counts = ", ".join(f"{count(trials, state)} {words}" for state, words in states.items() if count(trials, state))
    best = ranked(trials, task.mode)[:10]
    others = [trial for trial in trials if trial.state != "complete"]
    headings = ("trial", "state", task.objective, "seconds", *names)
    table(
        f"{task.cell.label}: {task.objective}",
        [(heading, "left" if heading == "state" else "right") for heading in headings],
        [
            [
                str(t.number),
                f"{states[t.state]}{f' at {max(t.reports):.0f} %' if t.state == 'stopped' and t.reports else ''}",
                "—" if t.value is None else f"{t.value:.4f}",
                f"{t.seconds:.0f}",
                *(_shown(t.params[name]) if name in t.params else "—" for name in names),
            ]
            for t in [*best, *others[:OTHERS]]
        ],
    )
    say(f"{task.objective}: {OBJECTIVES[task.objective][1]}. Trial 0 has the default parameters.")
    say(f"{counts}; {cpu_hours:.2f} CPU-hours, {gpu_hours:.2f} GPU-hours.")
    if result.best is None:
        say(f"No trial is complete yet. Go on with the same command and --resume. Trials: {result.folder}")
        return
    say(f"Table and plots: {result.folder}")
    say(f"Next: adbench run --config {result.config}")


def _print_plan(rehearsal: Any) -> None:
    """What ``--dry-run`` shows."""
    from adbench.tune.rehearsal import DRAWS
    from adbench.tune.task import OBJECTIVES
    from adbench.utils.console import say, table

    task, options = rehearsal.task, rehearsal.options

    def between(entry: dict[str, Any]) -> str:
        if "choices" in entry:
            return ", ".join(map(_shown, entry["choices"]))
        return f"{_shown(entry['low'])} to {_shown(entry['high'])}{', logarithmic' if entry['log'] else ''}"

    table(
        f"{task.cell.label}: what is searched",
        [("parameter", "left"), ("values", "left"), ("trial 0", "right")],
        [[name, between(entry), _shown(task.defaults[name])] for name, entry in task.space.items()],
    )
    ends = ("" if options.budget is None else f" or {options.budget:g} s") + (
        "" if options.time_limit is None else f", of {options.time_limit:g} s each at most"
    )
    slices = rehearsal.slices
    say(f"{options.trials} trials{ends}; {task.objective}: {OBJECTIVES[task.objective][1]}.")
    say(
        f"Slices: {slices['train']} to learn from, {slices['val']} for the checkpoint, {slices['objective']} for the objective."
    )
    say(f"{DRAWS} random draws of the space are valid. Trials would go to {rehearsal.folder}")
    say(f"Trial 0:\n{rehearsal.first_trial()}")


def _shown(value: Any) -> str:
    """A parameter value as a person reads it."""
    return f"{value:.4g}" if isinstance(value, float) else value if isinstance(value, str) else json.dumps(value)
