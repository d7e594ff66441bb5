"""Pictures of a finished run: a few test slices with input, reconstruction, map and truth, and the curves of its numbers.

They are drawn after the record is committed: a number never waits for a picture, and no picture can fail a run.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

import numpy as np

from adbench.context import Progress
from adbench.datasets.contact_sheet import brain_box
from adbench.metrics.plots import all_plots
from adbench.results import rundir
from adbench.results.result import Result
from adbench.results.rundir import SAMPLES
from adbench.results.status import STATUS
from adbench.runner.samples import Sample, load_samples
from adbench.utils import distributed
from adbench.utils.files import replacing, sweep
from adbench.utils.locks import LOCK, acquire

log = logging.getLogger("adbench")
VARIABLE = "ADBENCH_PICTURES"


def illustrate(folder: Path, progress: Progress | None = None) -> None:
    """Draw ``samples.png`` and the plots of the finished run in ``folder``, unless that was done, and tidy up there.

    Nothing is drawn while $ADBENCH_PICTURES is 0; a later call draws. The folder is locked meanwhile; another process that
    has it draws when it is done. What goes wrong is logged, never raised; the next call on the folder tries again.
    """
    folder = Path(folder)
    kept = folder / SAMPLES
    wanted = kept.exists() and os.environ.get(VARIABLE) != "0"
    left = (folder / rundir.NEW, folder / STATUS, folder / LOCK)  # by a process that was killed behind its record
    if distributed.rank() > 0 or not (wanted or any(path.exists() for path in left)):
        return
    try:
        with acquire(folder, _leave):
            sweep(folder)
            rundir.promote(folder)
            rundir.abandon(folder)
            (folder / STATUS).unlink(missing_ok=True)
            if wanted and kept.exists():  # else another process has drawn them
                (progress or Progress()).update("pictures", 0, 0)
                _draw(folder)
                kept.unlink()
    except _Occupied:
        return
    except Exception as error:
        log.warning("The pictures of %s could not be drawn (%s: %s).", folder, type(error).__name__, error)


class _Occupied(Exception):
    """Another process works on the run."""


def _leave(owner: str) -> None:
    raise _Occupied


def _draw(folder: Path) -> None:
    run = Result(folder)
    title = f"{run.label} · {run.record.test.name} {run.record.test.modality} · {run.record.protocol['name']}"
    sample_sheet(load_samples(folder / SAMPLES), folder / "samples.png", title, run.record.thresholds.get("val"))
    for problem in all_plots(run.histograms, run.stored_evaluation, folder, spatial=run.spatial):
        log.info("%s: %s", folder, problem)


def sample_sheet(samples: list[Sample], path: Path, title: str, threshold: float | None) -> None:
    """Write a PNG with one row a sample: input with the true contour, reconstruction, map, and found (at ``threshold``)
    against true.
    """
    import matplotlib as mpl

    with mpl.rc_context({"text.parse_math": False}):  # names may hold a $
        _draw_sheet(samples, path, title, threshold)


def _draw_sheet(samples: list[Sample], path: Path, title: str, threshold: float | None) -> None:
    from matplotlib.figure import Figure

    columns = ["input", "reconstruction", "anomaly map", "truth (red), found (cyan)"]
    height = 2.1 * len(samples) + 0.7
    figure = Figure(figsize=(2.1 * len(columns), height), dpi=110)
    figure.subplots_adjust(
        0.03, 0.05 / height, 0.995, 1 - 0.6 / height, 0.03, 0.03
    )  # to work a layout out takes a second
    axes = figure.subplots(len(samples), len(columns), squeeze=False)
    inside = np.concatenate([sample.map[sample.brain] for sample in samples])
    common = np.percentile(inside, [1, 99.5]) if inside.size else (0.0, 1.0)
    for row, sample in zip(axes, samples, strict=True):
        low, high = sample.window or common
        limit = threshold if sample.threshold is None else sample.threshold
        frame = brain_box(sample.brain)
        image, lesion, found_map = sample.image[frame], sample.lesion[frame], sample.map[frame]
        row[0].imshow(image, cmap="gray", vmin=0, vmax=1)
        if sample.reconstruction is None:
            row[1].text(0.5, 0.5, "none", ha="center", va="center", transform=row[1].transAxes, color="0.5")
        else:
            row[1].imshow(sample.reconstruction[frame], cmap="gray", vmin=0, vmax=1)
        shown = np.where(sample.brain[frame], found_map, np.nan)
        row[2].imshow(shown, cmap="inferno", vmin=low, vmax=max(high, low + 1e-9))
        row[3].imshow(image, cmap="gray", vmin=0, vmax=1)
        if lesion.any():
            row[3].contour(lesion, levels=[0.5], colors="red", linewidths=1)
        found = (found_map >= limit) & sample.brain[frame] if limit is not None else np.zeros_like(lesion)
        if found.any() and not found.all():
            row[3].contour(found, levels=[0.5], colors="cyan", linewidths=0.8)
        row[0].set_ylabel(sample.title, fontsize=7)
    for axis, column in zip(axes[0], columns, strict=True):
        axis.set_title(column, fontsize=9)
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
        for spine in axis.spines.values():
            spine.set_visible(False)
    figure.suptitle(title, y=1 - 0.15 / height, va="top", fontsize=10)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None})
