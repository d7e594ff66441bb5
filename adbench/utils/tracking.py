"""Experiment trackers: whether one is installed, and the curves of a training written to it. They are offline by default."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

from adbench.errors import UserError, unknown

TRACKERS = {"tensorboard": ("tensorboardX",), "mlflow": ("mlflow", "accelerate"), "wandb": ("wandb", "accelerate")}
_RUN = "mlflow_run.txt"  # in the folder of a stage: the run that a resumed training goes on with


def check_trackers(names: str) -> list[str]:
    """The trackers in ``names`` ("mlflow,tensorboard"), each once.

    Raises:
        UserError: there is no such tracker, or its packages are not installed (says what to install).
    """
    found = list(dict.fromkeys(name.strip() for name in names.split(",") if name.strip()))
    for name in found:
        if name not in TRACKERS:
            raise unknown("tracker", name, TRACKERS)
        if missing := [package for package in TRACKERS[name] if find_spec(package) is None]:
            raise UserError(
                f"The tracker {name} needs {' and '.join(missing)}: pip install {' '.join(missing)}, or leave it out."
            )
    return found


class Tracker(Protocol):
    """Where the curve of one stage of a training goes."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Write the figures of a step."""

    def finish(self) -> None:
        """End the writing."""


def open_trackers(names: str, folder: Path, step: int) -> list[Tracker]:
    """The trackers in ``names`` for one stage of a training.

    ``tensorboard`` writes event files below ``folder``. ``mlflow`` and ``wandb`` are accelerate's trackers: they write to
    ``OUT/mlruns`` and ``OUT/wandb``, unless ``MLFLOW_TRACKING_URI`` or ``WANDB_MODE`` say otherwise.

    Args:
        names: of :data:`TRACKERS`, with commas between.
        folder: of the stage, ``OUT/fits/FIT/STAGE``.
        step: at which the training begins; what TensorBoard has of later ones, of an attempt that was killed, is withdrawn.

    Raises:
        UserError: see :func:`check_trackers`.
    """
    found: list[Tracker] = []
    with ExitStack() as opened:
        for name in check_trackers(names):
            found.append(_open(name, folder, step))
            opened.callback(found[-1].finish)
        opened.pop_all()  # unless one does not start
    return found


def _open(name: str, folder: Path, step: int) -> Tracker:
    if name == "tensorboard":
        return _Events(folder / name, step)
    out, label = folder.absolute().parents[2], f"{folder.parent.name} {folder.name}"
    from accelerate import PartialState, tracking

    PartialState(cpu=True)  # the trackers ask it which process writes; it chooses no device here
    if name == "wandb":
        mode = os.environ.get("WANDB_MODE", "offline")
        found = tracking.WandBTracker("adbench", name=label, dir=str(out), mode=mode)
        found.start()
        return found  # type: ignore[no-any-return]
    import mlflow

    if "MLFLOW_TRACKING_URI" not in os.environ:
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        mlflow.set_tracking_uri((out / "mlruns").as_uri())
    known = folder / _RUN
    run = known.read_text(encoding="utf-8") if known.is_file() else None
    found = tracking.MLflowTracker("adbench", run_id=run, run_name=label)
    found.start()
    folder.mkdir(parents=True, exist_ok=True)
    known.write_text(found.tracker.info.run_id, encoding="utf-8")
    return found  # type: ignore[no-any-return]


class _Events:
    """TensorBoard's event files, flushed every ten seconds."""

    def __init__(self, folder: Path, step: int) -> None:
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=step + 1, flush_secs=10)

    def log(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def finish(self) -> None:
        self._writer.close()
