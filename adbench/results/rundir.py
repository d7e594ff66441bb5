"""Layout of the output folder: the paths of runs and fits, and which of them are complete.

::

    OUT/<protocol>/<dataset>-<modality>/<method>-<preset>[-fold<fold>of<folds>]-seed<seed>-<run key>/
        record.json      put there last: the run is complete when it is there and its key matches
        .new/            what an attempt in progress has made; replaces the files above when it is complete
        failure.json     the last failed attempt, with its traceback; removed by a success
        identity.json  status.json  .lock     of a run that is not complete: what it will be, what it is doing, who does it
        config.yaml  splits.json  histograms.npz  val_histograms.npz  spatial.json
        samples.npz      slices to be drawn; removed when the pictures are there
        samples.png  pr.png  roc.png  dice.png  lesion_recall.png  froc.png    drawn after the record
    OUT/fits/<method>-<fit key>/
        fit.json         written last: the fit is complete; holds the SHA-256 of the files that the method saved
        model.safetensors  method.json  <stage>/ checkpoints
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from adbench.errors import UserError, text_of, trace_of
from adbench.metrics.histogram import SubjectHistograms
from adbench.metrics.spatial import SpatialAccumulator
from adbench.results.record import RECORD, Record, read_record
from adbench.utils.files import write_json
from adbench.utils.limits import RECORD_VALUES
from adbench.utils.plain_files import check_json, open_plain

FAILURE = "failure.json"
IDENTITY = "identity.json"
CONFIG = "config.yaml"
SPLITS = "splits.json"  # subjects by role
HISTOGRAMS, VAL_HISTOGRAMS, SPATIAL = "histograms.npz", "val_histograms.npz", "spatial.json"  # counts of the scores
FITS = "fits"
MAPS, VAL_MAPS = "maps.npy", "val_maps.npy"  # with --save-maps: (N, H, W) float32, in the order of the test set
OWN_JSON = (RECORD, SPLITS, SPATIAL, FAILURE, IDENTITY, "status.json")  # of a run
SAMPLES = "samples.npz"
RECORDED = {SPLITS, HISTOGRAMS, VAL_HISTOGRAMS, SPATIAL, MAPS, VAL_MAPS}  # a record lists those that are there
DRAWN = {"samples.png", "pr.png", "roc.png", "dice.png", "lesion_recall.png", "froc.png"}
NEW, READY = ".new", "ready.json"  # an attempt in progress, and its record
_HEAD = 512  # bytes of a record that hold its key
_IDENTITY = 1 << 18  # bytes that hold its identity too
_SAFE = re.compile(r"[^A-Za-z0-9._-]+")


@lru_cache(maxsize=1024)
def safe(text: str) -> str:
    """``text`` as part of a file name: letters, digits, ".", "_" and "-" alone."""
    return _SAFE.sub("_", text.replace("->", "-to-"))


def run_folder(
    out: Path, protocol: str, dataset: str, modality: str, method: str, preset: str, seed: int, key: str, fold: str = ""
) -> Path:
    """The folder of the run with ``key``; ``fold``: "0of5", or "" where there are none."""
    board = f"{safe(protocol)}/{safe(f'{dataset}-{modality.lower()}')}"
    return Path(
        f"{os.fspath(out)}/{board}/{safe(method)}-{safe(preset)}{fold and f'-fold{fold}'}-seed{seed}-{key[:10]}"
    )


def fit_folder(out: Path, method: str, key: str) -> Path:
    """The folder of the fit with ``key``."""
    return Path(f"{os.fspath(out)}/{FITS}/{safe(method)}-{key[:16]}")


def complete(folder: Path, key: str) -> Record | None:
    """The record in ``folder`` if it is there and belongs to ``key``."""
    if not (folder / RECORD).exists():
        return None
    record = read_record(folder)
    return record if record.run_key == key else None


def recorded(folder: Path, key: str) -> bool:
    """Whether the record of ``key`` is in ``folder``, told from its two ends: ten thousand take a second."""
    try:
        with open(f"{folder}/{RECORD}", "rb") as file:
            head = file.read(_HEAD)
            file.seek(-2, os.SEEK_END)
            return f'"run_key": "{key}"'.encode() in head and file.read() == b"}\n"
    except OSError:
        return False


def read_identity(folder: Path) -> dict[str, Any] | None:
    """``run_key``, ``fit_key`` and ``identity`` of the run in ``folder``, complete or not; None when it does not say."""
    for name in (RECORD, IDENTITY):
        try:
            with open_plain(folder / name) as file:
                head = file.read(_IDENTITY).decode("utf-8", errors="ignore")
        except (OSError, UserError):
            continue
        found: dict[str, Any] = {}
        for field in ("run_key", "fit_key", "identity"):  # they stand first: the rest of a record is not read
            start = head.find(f'"{field}": ')
            with suppress(ValueError, RecursionError):
                value, end = json.JSONDecoder().raw_decode(head, start + len(field) + 4) if start >= 0 else (None, 0)
                check_json(head[start:end].encode(), RECORD_VALUES)
                found[field] = value
        if isinstance(found.get("identity"), dict):
            return found
    return None


def write_identity(folder: Path, fit_key: str, run_key: str, identity: dict[str, Any]) -> None:
    """Say what the run in ``folder`` will be, before there is a record of it."""
    write_json(folder / IDENTITY, {"run_key": run_key, "fit_key": fit_key, "identity": identity})


def begin(folder: Path) -> Path:
    """An empty folder inside the run's folder for what a new attempt makes; what is complete stays as it is."""
    new = folder / NEW
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    return new


def write_counts(
    folder: Path, test: SubjectHistograms, validation: SubjectHistograms | None, spatial: SpatialAccumulator
) -> None:
    """Write what every number is computed from into ``folder``: histograms of both splits, and spatial counts."""
    test.to_npz(folder / HISTOGRAMS)
    if validation is not None:
        validation.to_npz(folder / VAL_HISTOGRAMS)
    spatial.to_json(folder / SPATIAL)


def abandon(folder: Path) -> None:
    """Remove what a failed attempt has made."""
    if not (folder / NEW / READY).exists():
        shutil.rmtree(folder / NEW, ignore_errors=True)


def commit(record: Record, folder: Path) -> None:
    """Put the files of a complete attempt, and last its record, in the place of what was there before."""
    write_json(folder / NEW / READY, record.model_dump(mode="json"))
    promote(folder)


def promote(folder: Path) -> bool:
    """Move a complete attempt to its place; called again after a kill in the middle, it continues.

    Once the new record is written, only renaming is left to do.

    Returns:
        Whether there was one.
    """
    new = folder / NEW
    if not (new / READY).exists():
        return False
    listed = json.loads((new / READY).read_text(encoding="utf-8"))["files"]
    for name in (RECORD, FAILURE, IDENTITY, SAMPLES, *DRAWN, *(RECORDED - listed.keys())):
        (folder / name).unlink(missing_ok=True)
    for path in new.iterdir():
        if path.name != READY:
            path.replace(folder / path.name)
    (new / READY).replace(folder / RECORD)
    new.rmdir()
    return True


def write_failure(folder: Path, error: BaseException, phase: str, trace: str = "") -> None:
    """Record a failed attempt, with the ``trace`` of another process where it was raised in one; it never counts as
    done.
    """
    write_json(
        folder / FAILURE,
        {
            "phase": phase,
            "error": type(error).__name__,
            "message": text_of(error),
            "traceback": trace or trace_of(error),
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
        },
    )


def records(folder: Path) -> Iterator[tuple[Path, Record]]:
    """Every record below ``folder`` with its path, in path order.

    Raises:
        UserError: the folder does not exist, or holds an unreadable record.
    """
    if not Path(folder).is_dir():
        raise UserError(
            f"There is no folder {folder}. Name the one that `adbench run --out` wrote, or run something first."
        )
    for path in sorted(Path(folder).rglob(RECORD)):
        yield path, read_record(path)
