"""``adbench status`` and ``adbench why``: the state of runs, and how the key of one differs from the nearest other."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from adbench.cli.app import Json, Out, app

if TYPE_CHECKING:
    from adbench.results.status import RunState


@app.command(epilog="Examples:\n\n  adbench status\n\n  adbench status --out runs --json")
def status(
    out: Out = Path("runs"),
    all_: Annotated[bool, typer.Option("--all", help="List complete and waiting runs too.")] = False,
    json_: Json = False,
) -> None:
    """Show the runs below a folder: running ones with phase and time left, failed ones with the reason.

    Reads small files that the runs keep up to date, so it works from any terminal and any node. A run whose process was
    killed is shown as lost; the command that started it, run again, goes on with it.
    """
    from adbench.results import status as states
    from adbench.utils.console import print_json

    counts: dict[str, int] = dict.fromkeys(states.STATES, 0)
    listed = []
    for run in states.runs(out):
        counts[run.state] += 1
        if all_ or run.state not in ("complete", "waiting"):
            listed.append(run)
    if json_:
        kept = ("phase", "done", "total", "figures", "host", "pid", "gpus", "started", "error", "message", "time")
        runs = [
            {"folder": str(run.folder), "label": run.label, "state": run.state}
            | {name: run.detail[name] for name in kept if name in run.detail}
            for run in listed
        ]
        print_json({"counts": counts, "runs": runs})
        return
    _print(listed, counts)


def _print(listed: list[RunState], counts: dict[str, int]) -> None:
    import time

    from adbench.executors import monitor
    from adbench.utils.console import say, table

    now = time.time()
    if running := [monitor.row(run.label, run.detail, now) for run in listed if run.state == "running"]:
        table("running", [(name, "left") for name in monitor.COLUMNS], running)
    others = [
        (str(run.folder), run.state, str(run.detail.get("phase", "")), _reason(run))
        for run in listed
        if run.state != "running"
    ]
    if others:
        table("others", [("run", "left"), ("state", "left"), ("in", "left"), ("what happened", "left")], others)
    say(", ".join(f"{count} {state}" for state, count in counts.items() if count) or "There is no run.")
    if counts["failed"] or counts["interrupted"] or counts["lost"]:
        say("Run the command that started them again: it takes up what is failed, interrupted or lost.")


def _reason(run: RunState) -> str:
    """Why a run is where it is, in words."""
    detail = run.detail
    if run.state == "failed":
        return f"{detail.get('error', '')}: {detail.get('message', '')}".strip(": ")
    if run.state in ("lost", "interrupted") and detail:
        at = f" at {detail['done']}/{detail['total']}" if detail.get("total") else ""
        how = "its process was killed, or its machine failed" if run.state == "lost" else "by the user"
        return f"{how}{at}, process {detail.get('pid')} on {detail.get('host')}"
    return "not started" if run.state in ("waiting", "interrupted") else ""


@app.command(
    epilog="Examples:\n\n"
    "  adbench why runs/phantom/phantom-flair/histeq-tiny-seed0-1a2b3c4d5e\n\n"
    "  adbench why 1a2b3c4d --out runs"
)
def why(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run's folder, its name, or the beginning of its key.")],
    out: Annotated[Path | None, typer.Option("--out", help="Folder of runs; default: the one RUN lies in.")] = None,
    json_: Json = False,
) -> None:
    """Say why a run was not answered from a record: the fields in which the nearest other run differs from it."""
    from dataclasses import asdict

    from adbench.results.explain import find
    from adbench.results.explain import why as ask
    from adbench.utils.console import print_json, say, table

    folder = find(run, out or Path("runs"))
    parents = folder.resolve().parents
    answer = ask(folder, out or (parents[2] if len(parents) > 2 else parents[-1]))
    if json_:
        print_json({**asdict(answer), "run": str(answer.run), "other": str(answer.other) if answer.other else None})
        return
    if answer.other is None:
        say(f"{folder} is the only run here.")
        return
    rows = [(d.field, _short(d.this), _short(d.other), d.meaning) for d in answer.differences]
    table(
        f"{folder.name} and the nearest other run, {answer.other.name}",
        [("field", "left"), ("this run", "left"), ("the other", "left"), ("that is", "left")],
        rows,
        caption="Both use one fit." if answer.same_fit else "They need different fits.",
    )


def _short(value: Any) -> str:
    text = str(value)
    return f"{text[:12]}…" if len(text) == 64 and set(text) <= set("0123456789abcdef") else text
