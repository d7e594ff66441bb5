"""What finished runs give the page of their method: maps of a few test slices, learning curves, cost. Used by ``choosing.py``."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from adbench.cli.describe import KEPT
from adbench.datasets.contact_sheet import brain_box
from adbench.evaluation.run import Run
from adbench.metrics.plots import SERIES, STYLE, plain
from adbench.report.collect import DRIFT
from adbench.results.format import number_text, several
from adbench.results.names import method_name
from adbench.results.record import Number, Record
from adbench.runner.samples import choose_positions

ROOT = Path(__file__).resolve().parents[1]
BOARDS = ROOT / "leaderboards"
COMMAND = "python docs/choosing.py"
LOSSES = {"loss": ("training", "-"), "val_loss": ("validation", "--")}  # of a curve's points: name and stroke
COLOURS = [
    *((grey,) * 3 for grey in np.linspace(0, 1, 24)),
    *(tuple(colour[:3]) for colour in matplotlib.colormaps["inferno"](np.linspace(0, 1, 32))),
    *(to_rgb(colour) for colour in ("red", *SERIES[:2])),
]  # of a picture
LOG = 5  # a loss that falls by more than this is drawn on a logarithmic scale


@dataclass(frozen=True)
class Slice:
    """One test slice as a run shows it; all arrays are (H, W), cut to the brain."""

    case: str
    image: np.ndarray
    brain: np.ndarray
    lesion: np.ndarray
    scores: np.ndarray
    reconstruction: np.ndarray | None


@dataclass(frozen=True)
class Seen:
    """A run and what it shows of the chosen slices."""

    run: Run
    slices: list[Slice]

    @property
    def name(self) -> str:
        return method_name(self.run.record)

    @property
    def scale(self) -> tuple[float, float]:
        """Lowest and highest score that is drawn: one colour scale a method."""
        low, high = np.percentile(np.concatenate([one.scores[one.brain] for one in self.slices]), [1, 99.5])
        return float(low), float(max(high, low + 1e-9))


def look(runs: Sequence[Run]) -> list[Seen]:
    """What each run, all of them on one test set, shows of the slices that are chosen by their masks.

    Maps that were not kept are made again from the fit, by the code as it is now. A run whose maps then are not those that were
    measured ends the script: its numbers would stand beside the maps of another.
    """
    test = runs[0].data.test
    positions = choose_positions(test)
    cases = list(dict.fromkeys(test.cases[test.case_index[position]] for position in positions))
    found = []
    for run in runs:
        if run.record.test.digest != runs[0].record.test.digest:
            raise SystemExit(f"{run.folder} has other test slices than {runs[0].folder}: give one board's runs.")
        slices = {}
        for volume in run.each(cases):
            if volume.drift > DRIFT:
                raise SystemExit(
                    f"The maps of {run.folder} cannot be made again: of {volume.volume} {volume.drift:.1%} of the voxels changed "
                    "their rank since they were measured. Make the run again, with --save-maps or with the code as it is now."
                )
            for at, position in enumerate(volume.positions.tolist()):
                if position in positions:
                    box = brain_box(volume.brain[at])
                    slices[position] = Slice(
                        volume.volume,
                        volume.image[at][box],
                        volume.brain[at][box],
                        volume.lesion[at][box],
                        volume.maps[at][box],
                        None if volume.reconstruction is None else volume.reconstruction[at][box],
                    )
        found.append(Seen(run, [slices[position] for position in positions]))
    return found


def show_truth(axes: Axes, one: Slice) -> None:
    axes.imshow(one.image, cmap="gray", vmin=0, vmax=1)
    if one.lesion.any():
        axes.contour(one.lesion, levels=[0.5], colors="red", linewidths=0.8)


def show_map(axes: Axes, one: Slice, scale: tuple[float, float]) -> None:
    axes.imshow(np.where(one.brain, one.scores, np.nan), cmap="inferno", vmin=scale[0], vmax=scale[1])


def save(figure: Figure, path: Path) -> None:
    """Write the picture in :data:`COLOURS`, a third of the bytes, and without a date or a version."""
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Software": None})
    palette = Image.new("P", (1, 1))
    palette.putpalette(np.rint(255 * np.array(COLOURS)).astype(int).ravel().tolist())
    with Image.open(path) as opened:
        reduced = opened.convert("RGB").quantize(palette=palette, dither=Image.Dither.NONE)
    reduced.save(path, optimize=True)


def draw(seen: Seen, path: Path) -> None:
    """A row each: slices with the truth, reconstructions where there are any, maps; beside them the losses, a panel a stage."""
    made = [one for one in seen.slices if one.reconstruction is not None]
    rows = ["truth", *(["reconstruction"] if made else []), "map"]
    curves = {stage: points for stage, points in seen.run.record.fit["curves"].items() if points}
    with matplotlib.rc_context(STYLE):
        tight = ConstrainedLayoutEngine(w_pad=0.01, h_pad=0.01, wspace=0, hspace=0)
        figure = Figure(figsize=(9.0 if curves else 6.5, 1.3 * len(rows)), dpi=90, layout=tight)
        left, *right = figure.subfigures(
            1, 1 + bool(curves), width_ratios=[6.5, 2.5][: 1 + bool(curves)], squeeze=False
        )[0]
        for name, line in zip(rows, left.subplots(len(rows), len(seen.slices), squeeze=False), strict=True):
            for axes, one in zip(line, seen.slices, strict=True):
                axes.set(xticks=[], yticks=[])
                axes.spines[:].set_visible(False)
                if name == "truth":
                    show_truth(axes, one)
                elif name == "map":
                    show_map(axes, one, seen.scale)
                else:
                    axes.imshow(one.reconstruction, cmap="gray", vmin=0, vmax=1)
            line[0].set_ylabel(name, fontsize=8)
        for part in right:
            panels = part.subplots(len(curves), squeeze=False)[:, 0]
            for axes, (stage, points) in zip(panels, curves.items(), strict=True):
                _losses(axes, stage, points)
            panels[0].legend(fontsize=7)
            panels[-1].set_xlabel("step", fontsize=8)
        save(figure, path)


def _losses(axes: Axes, stage: str, points: list[dict[str, float]]) -> None:
    seen: list[float] = []
    for name, (said, stroke) in LOSSES.items():
        logged = [point for point in points if name in point]
        values = [point[name] for point in logged]
        steps = [point["step"] for point in logged]
        axes.plot(steps, values, stroke, color=SERIES[0 if stroke == "-" else 1], label=said, linewidth=1.2)
        seen += values
    if seen and 0 < min(seen) < max(seen) / LOG:
        axes.set_yscale("log")
        plain(axes.yaxis)
    axes.set_title(stage, fontsize=8)
    axes.tick_params(labelsize=7, which="both")


def costs(record: Record) -> dict[str, str]:
    """What a run took, as text: numbers learned, steps, minutes of training, slices scored a second."""
    return {
        "numbers learned": f"{record.method.parameters:,}",
        "steps": f"{record.fit['steps']}",
        "training, min": f"{record.timing['fit'] / 60:.1f}" if record.fit["steps"] else "–",
        "scoring, slices/s": f"{1 / max(record.timing['score_per_slice'], 1e-9):,.0f}",
    }


def table(heads: list[str], rows: Iterable[Iterable[object]], *, numbers: bool = True) -> str:
    rule = ["---", *["--:" if numbers else "---"] * (len(heads) - 1)]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in [heads, rule, *rows])


@dataclass(frozen=True)
class Board:
    """A committed board, ``rows`` as in its ``table.json``."""

    folder: Path
    rows: list[dict[str, Any]]

    @classmethod
    def of(cls, record: Record, boards: Path = BOARDS) -> Board:
        """That with the test slices of ``record``."""
        for path in sorted(boards.glob("*/table.json")):
            for board in json.loads(path.read_text(encoding="utf-8"))["boards"]:
                if board["test_digest"] == record.test.digest:
                    return cls(path.parent, board["entries"])
        raise SystemExit(
            f"No board in {boards} has the test slices of {record.method.name}, {record.test.name} {record.test.modality}: pages "
            "show runs that a board has."
        )

    def number(self, record: Record) -> Number | None:
        """The AUPRC that the board has for this method with these parameters, data and seed, whichever code made it."""
        for row in self.rows:
            same = (row["method"], row["preset"], row["params"]) == (
                record.method.name,
                record.method.preset,
                record.method.params,
            )
            for seed in row["seeds"] if same else ():
                if seed["seed"] == record.seed:
                    path = self.folder.parent / seed["record"]
                    there = json.loads(path.read_text(encoding="utf-8"))["record"]
                    if there["train"]["digest"] == record.train.digest:
                        return Number(**there["metrics"]["auprc"])
        return None


def tail(seen: Seen, board: Board) -> str:
    """The part of a method's page that its run gives."""
    record, link = seen.run.record, f"[board](../../leaderboards/{board.folder.name}/index.md)"
    own, there = number_text(record.metrics["auprc"], interval=True), board.number(record)
    if there is None:
        score = f"{own} (of this run, which is not on the {link})"
    else:
        known = number_text(there, interval=True)
        score = f"{known} ({link})" + ("" if known == own else f"; {own} (the run whose maps these are)")
    threads = record.provenance["threads"]
    facts = {
        "data": f"{record.test.name} {record.test.modality}: {several(record.train.slices, 'training slice')}, "
        f"{several(record.test.slices, 'test slice')}",
        "preset, seed": f"`{record.method.preset}`, {record.seed}",
        f"AUPRC [{100 * record.protocol['level']:.0f} %]": score,
        **costs(record),
        "made on": f"{record.provenance['device']}, {several(threads, 'thread')}; how to read times: "
        "[what it costs](../choosing.md#what-it-costs)",
    }
    root = seen.run.cell.test.root
    given = f" --data-root {Path(root).name}" if root else ""
    rows = [
        "slices with the truth in red",
        *(["reconstructions"] if seen.slices[0].reconstruction is not None else []),
        "maps",
    ]
    losses = " At the right are the losses of its training." if record.fit["curves"] else ""
    return f"""{KEPT}{COMMAND} RUNS -->

## Maps, training, cost

![{seen.name} on test slices: {", ".join(rows)}](../images/methods/{record.method.name}.png)

From above: {", ".join(rows)}, which have one colour scale. The slices are those of
[Choosing a method](../choosing.md#the-same-six-slices), chosen by their masks alone.{losses}

{table(["", f"`{seen.name}`"], facts.items(), numbers=False)}

```
adbench run --grid leaderboards/{board.folder.name}/grid.yaml{given} --out runs/{board.folder.name} --method {record.method.name} --seed {record.seed}
{COMMAND} runs/{board.folder.name}
```
"""


def write(seen: Seen, board: Board, docs: Path) -> None:
    """Draw the picture of a method into ``docs``, and put its part behind what the code says on the page there."""
    name = seen.run.record.method.name
    draw(seen, docs / "images" / "methods" / f"{name}.png")
    page = docs / "methods" / f"{name}.md"
    page.write_text(page.read_text(encoding="utf-8").partition(KEPT)[0] + tail(seen, board), encoding="utf-8")
