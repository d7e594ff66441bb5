"""``adbench eval``: evaluate finished runs again, or a folder of anomaly maps."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from adbench.cli.app import Json, app, split
from adbench.errors import UserError

if TYPE_CHECKING:
    from adbench.metrics.evaluate import Evaluation
    from adbench.metrics.presets import PresetResult


@app.command(
    name="eval",
    epilog="Examples:\n\n"
    "  adbench eval runs/phantom/phantom-flair/madad-tiny-seed0-1a2b3c4d5e\n\n"
    "  adbench eval RUN --protocol official-madad      (a run made with --save-maps)\n\n"
    "  adbench eval --maps my_maps --masks my_masks --brain my_brains --out scores\n\n"
    "  adbench eval --maps my_maps --masks boxes.csv --brain my_brains      (boxes in the columns of fastMRI+)",
)
def evaluate(
    run: Annotated[Path | None, typer.Argument(help="A run's folder. Leave it out to score your own maps.")] = None,
    maps: Annotated[Path | None, typer.Option(help="Folder of anomaly maps, NIfTI or PNG, no method needed.")] = None,
    masks: Annotated[
        Path | None, typer.Option(help="Folder of lesion masks on the same grid, or a CSV file of boxes.")
    ] = None,
    brain: Annotated[Path | None, typer.Option(help="Folder of brain masks; without it every voxel counts.")] = None,
    val_maps: Annotated[Path | None, typer.Option(help="Maps of other cases, to choose thresholds on.")] = None,
    val_masks: Annotated[Path | None, typer.Option(help="Their lesion masks, or boxes.")] = None,
    val_brain: Annotated[Path | None, typer.Option(help="Their brain masks.")] = None,
    labels: Annotated[str | None, typer.Option(help="Mask values that are lesion, e.g. 1,2,4; default 1.")] = None,
    metrics: Annotated[
        list[str] | None, typer.Option("--metrics", help="Optional or plug-in metrics to add; `adbench list metrics`.")
    ] = None,
    protocol: Annotated[
        list[str] | None, typer.Option(help="A paper's own rule: official-madad, reflect, thor, cddpm or upd.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the JSON and plots of your own maps.")] = Path("eval"),
    json_: Json = False,
) -> None:
    """Evaluate a finished run again, or anyone's maps against their masks, without running a model.

    In a run's folder links are refused. In folders of maps and masks they are followed, as in any folder of data that you
    name; what they lead to is read as an untrusted file, and never shown.
    """
    from adbench.evaluation.run import Run
    from adbench.utils.console import say

    if (run is None) == (maps is None):
        raise UserError("Name a run, or your own maps with --maps DIR --masks DIR; not both.")
    evaluation, found = None, []
    if run is not None:
        finished = Run(run)
        own = str(finished.record.protocol.get("preset", ""))  # of the run's protocol, beside its numbers
        found = [finished.preset(name) for name in split(protocol) or ([own] if own else [])]
        evaluation = None if protocol else finished.evaluate_again(split(metrics))
    else:
        from adbench.config import registry
        from adbench.evaluation.maps import METRICS, evaluate_folders
        from adbench.metrics.presets import PresetResult

        if maps is None or masks is None:
            raise UserError("--maps needs --masks DIR: the lesion masks that the maps are held against.")
        evaluation = evaluate_folders(
            maps,
            masks,
            brain,
            out=out,
            labels=_labels(labels),
            val_maps=val_maps,
            val_masks=val_masks,
            val_brain=val_brain,
            metrics=[registry.load("metrics", name)() for name in split(metrics)],
            presets=split(protocol),
        )
        stored = json.loads((out / METRICS).read_text(encoding="utf-8"))["presets"]
        found = [PresetResult(**preset) for preset in stored]
    _show(evaluation, found, json_)
    if run is None and not json_:
        say(f"JSON, histograms and plots: {out}. A row of a leaderboard: adbench leaderboard submit {out} --help")


def _labels(text: str | None) -> list[int] | None:
    """Mask values, separated by commas."""
    try:
        return None if text is None else [int(value) for value in text.split(",")]
    except ValueError:
        raise UserError(f"--labels {text!r} must be whole numbers separated by commas, e.g. 1,2,4.") from None


def _show(evaluation: Evaluation | None, presets: list[PresetResult], as_json: bool) -> None:
    from adbench.evaluation import maps
    from adbench.utils.console import print_json, say, table

    if as_json:
        plain = evaluation.as_dict() if evaluation else None
        print_json({"evaluation": plain, "presets": [asdict(preset) for preset in presets]})
        return
    if evaluation is not None:
        columns = [(name, "right" if name in ("value", "subjects") else "left") for name in maps.COLUMNS]
        table("evaluation", columns, maps.rows(evaluation), caption=maps.caption(evaluation))
        headings, alarms = maps.alarms_by_stratum(evaluation)
        if alarms:
            strata = [(name, "right" if place else "left") for place, name in enumerate(headings)]
            table("false alarms by stratum", strata, alarms)
        for note in evaluation.notes:
            say(note)
    for preset in presets:
        rows = [[name, "—" if value is None else f"{value:.4f}"] for name, value in preset.values.items()]
        table(f"as published: {preset.name}", [("number", "left"), ("value", "right")], rows)
        for note in preset.notes:
            say(note)
