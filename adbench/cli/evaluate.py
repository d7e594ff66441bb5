"""``adbench eval``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from adbench.cli.app import Json, app, split
from adbench.errors import UserError


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
    metrics: Annotated[
        list[str] | None, typer.Option("--metrics", help="Optional or plug-in metrics to add; `adbench list metrics`.")
    ] = None,
    protocol: Annotated[
        list[str] | None, typer.Option(help="A paper's own rule: official-madad, thor, cddpm or upd.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the JSON and plots of your own maps.")] = Path("eval"),
    json_: Json = False,
) -> None:
    """Evaluate a finished run again, or anyone's maps against their masks, without running a model."""
    from adbench.evaluation.runs import print_evaluation, reevaluate, score_folders

    if (run is None) == (maps is None):
        raise UserError("Name a run, or your own maps with --maps DIR --masks DIR; not both.")
    if run is not None:
        results = reevaluate(run, split(metrics), split(protocol))
    else:
        if maps is None or masks is None:
            raise UserError("--maps needs --masks DIR: the lesion masks that the maps are held against.")
        folders = {"brain": brain, "val_maps": val_maps, "val_masks": val_masks, "val_brain": val_brain}
        results = score_folders(maps, masks, folders, labels, split(metrics), split(protocol), out)
    print_evaluation(results, json_)
