"""Predict on unlabelled scans with a finished run: maps, pseudo-healthy images, masks and a table."""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from adbench.config import registry
from adbench.config.cell import Post
from adbench.config.run_config import parse_assignment
from adbench.context import Context, Progress
from adbench.datasets.adapters.unlabelled import (
    ANY_MASK,
    UnlabelledSlices,
    UnlabelledVolumes,
    are_volumes,
    open_scans,
    pairs,
)
from adbench.datasets.preprocessing.recipe import RecipeParams
from adbench.datasets.slices import LabelledSet
from adbench.datasets.store.prepare import CasesFailed, prepare
from adbench.datasets.store.slice_store import SliceStore
from adbench.errors import UserError, in_words, unknown
from adbench.evaluation.prediction_files import Prediction, PredictionWriter
from adbench.methods.base import Method
from adbench.metrics.thresholds import AT
from adbench.params import build
from adbench.results.record import Record
from adbench.runner.fit import fitted, load_fit, seed_everything
from adbench.runner.inference import ScoredVolume, score_volumes, usual_batch
from adbench.runner.keys import sources_now
from adbench.utils import compute, seeds, threads
from adbench.utils.console import csv_cell, is_formula
from adbench.utils.files import write_text
from adbench.utils.plain_files import check_plain_folder
from adbench.utils.signals import insisting

log = logging.getLogger("adbench")
DRAWN_SIDE = 256  # px of volumes when the size is not stated
SUMMARY = "summary.csv"
_SHAPING = (*(set(RecipeParams.model_fields) - {"exclude"}), "size")  # parameters of a dataset that shape pixels


class ScansFailed(UserError):
    """Some scans could not be read or scored; all others were answered.

    Attributes:
        found: what was found in the others.
        why: case id -> the sentence.
    """

    def __init__(self, found: list[Prediction], why: Mapping[str, str]) -> None:
        self.found, self.why = found, why
        super().__init__(f"{len(why)} of {len(why) + len(found)} scans have no answer: {' '.join(why.values())}")


def load_method(record: Record, folder: Path, device: str, progress: Progress | None = None) -> Method | None:
    """The method that ``record`` was made with, fitted; None when ``folder`` does not hold that fit.

    Raises:
        UserError: the method is not installed here or of another version, or a file of the fit was changed, or is a link.
    """
    check_plain_folder(folder)
    fit = fitted(folder, record.fit_key)
    if fit is None:
        return None
    name = record.method.name
    post = build(Post, f"post-processing of {name}", record.post)
    context = Context(device, record.seed, folder, progress=progress or Progress(), **post.json_values)
    cls: type[Method] = registry.load("methods", name)
    return load_fit(cls, folder, fit, context, build(cls.Params, f"method {name}", record.method.params))


def predict(
    record: Record,
    method: Method,
    images: Path,
    out: Path,
    *,
    threshold: str | float = "val",
    settings: Sequence[str] = (),
    cache: Path,
    progress: Progress | None = None,
) -> list[Prediction]:
    """Score every scan below ``images``; see :meth:`adbench.evaluation.run.Run.predict`.

    Args:
        record: of the run: its preparation, its thresholds.
        method: fitted, from :func:`load_method`.
        images: folder of NIfTI volumes or PNG slices.
        out: folder to write to.
        threshold: a rule of the record, or a score.
        settings: texts such as ``dataset.exclude=[p07]``, for what the scans need otherwise than the run's data.
        cache: folder of prepared slice stores.
        progress: receives progress.
    """
    progress = progress or Progress()
    rule, level = choose_threshold(record, threshold)
    dataset, said = _dataset(record, Path(images), settings)
    modality = record.test.modality
    there = dataset.available()
    if modality not in there:
        raise UserError(
            f"The names of the scans in {images} say {', '.join(there)}, and {record.method.name} was fitted to {modality}: "
            f"give {modality} scans, or name them so if they are."
        )
    others = dataset.other_sequences(modality)
    if record.method.source and (changed := sources_now(record.identity)):
        said.append(
            f"The code of {' and '.join(changed)} has changed since the run: its maps may differ from those measured."
        )
    store, failed = _prepared(dataset, modality, Path(cache), progress)
    failed |= {
        case: f"{case}: its name says {', '.join(names)}, and {record.method.name} was fitted to {modality}."
        for case, names in others.items()
    }
    failed |= {case: f"{case}: there is no slice with brain in it." for case in store.empty_cases}
    failed |= pairs(Path(images))
    for text in said:
        log.warning(text)
    cases = {case.id: case for case in dataset.discover(modality)}
    remarks = _remarks(store)
    for case, own in remarks.items():
        own += dataset.beside(cases[case], modality)
    writer = PredictionWriter(record, store, cases, Path(images), Path(out), rule, level, remarks)
    data = LabelledSet(store, np.arange(len(store)))
    data.domain = "all" if record.protocol.get("domain") == "all" else "brain"
    writer.refuse_others({*cases, *failed})
    failed |= {
        case: f"{case}: its file {writer.image(case)!r} begins with a sign that a spreadsheet takes for a formula, so {SUMMARY} cannot name "
        "it: rename it."
        for case in data.cases
        if any(map(is_formula, (case, writer.image(case))))
    }
    named = [case for case in data.cases if case not in failed]
    rows = {case: found for case in named if (found := writer.finished(case)) is not None}
    left = [case for case in named if case not in rows]
    writer.forget({*failed, *left})  # which may be at another threshold
    cause: Exception | None = None  # what the method raised first
    log.info("%d of %d scans are answered from %s.", len(rows), len(data.cases), out)
    if left:
        params = method.params
        with threads.limited(threads.count(method.resources(params).cpus)), compute.applied(method.ctx.device):
            seed_everything(seeds.derive(record.seed, "score"))
            for case, scored in _scored(method, store, data, left):
                if isinstance(scored, Exception):
                    cause = cause or scored
                    failed[case] = f"{case}: {in_words(scored)}"
                else:
                    rows[case] = writer.write(data, scored)
                _write_summary(Path(out), [rows[case] for case in data.cases if case in rows], failed)
    every = [rows[case] for case in data.cases if case in rows]
    _write_summary(Path(out), every, failed)
    if every and level > (highest := max(row.highest_score for row in every)):
        log.warning("The threshold %.4g is above every score, the highest is %.4g: nothing is marked.", level, highest)
    if cause is not None and not every:
        raise cause
    if failed:
        raise ScansFailed(every, failed) from cause
    return every


def _prepared(
    dataset: UnlabelledVolumes | UnlabelledSlices, modality: str, cache: Path, progress: Progress
) -> tuple[SliceStore, dict[str, str]]:
    """The scans that can be prepared, and case id -> why another cannot.

    Raises:
        CasesFailed: none can.
    """
    try:
        return prepare(dataset, modality, cache, progress), {}
    except CasesFailed as error:
        if not error.others:
            raise
        dataset.unreadable = frozenset(error.why)
        return prepare(dataset, modality, cache, progress), error.why


def _scored(
    method: Method, store: SliceStore, data: LabelledSet, cases: Sequence[str]
) -> Iterator[tuple[str, ScoredVolume | Exception]]:
    """Each of ``cases`` with its maps, or why it has none; ``data`` is all of ``store``.

    Batches cross scans, until the method fails at one of them: from then on each scan has its own. They are those of a
    prediction of all scans, whichever are asked for, since what a slice's batch holds may change its last bit.
    """
    left, alone = list(cases), False
    size = usual_batch(method.ctx.device)
    while left:
        group = left[:1] if alone else left.copy()
        wanted = np.isin(data.case_index, [data.cases.index(case) for case in group])
        if not alone:
            batch = np.arange(len(data)) // size
            wanted = np.isin(batch, batch[wanted])
        where = np.flatnonzero(wanted)
        part = LabelledSet(store, where)
        volumes = score_volumes(method, part, method.ctx, f"predict {method.name}", size)
        try:
            while True:
                with insisting():
                    volume = next(volumes, None)
                if volume is None:
                    break
                if volume.volume not in left:  # its slices fill a batch
                    continue
                left.remove(volume.volume)
                volume = replace(volume, positions=where[volume.positions])
                finite = np.isfinite(volume.maps[data.counted(volume.positions)]).all()
                yield volume.volume, volume if finite else UserError("its scores hold NaN or infinite values.")
        except (Exception, SystemExit) as error:  # a plug-in may raise anything
            if alone:
                yield left.pop(0), error if isinstance(error, Exception) else RuntimeError(f"SystemExit: {error.code}")
            alone = True


def choose_threshold(record: Record, wanted: str | float) -> tuple[str, float]:
    """The name of a threshold and its score: a rule of the record that never saw the test split ("val", "fpr5", ...),
    or a score.

    Raises:
        UserError: the run has no such threshold (names those it has).
    """
    with suppress(ValueError):
        score = float(wanted)
        if not np.isfinite(score):
            raise UserError(f"The threshold {wanted} is not a finite score.")
        return "given", score
    rules = {rule: record.thresholds[rule] for rule in AT.values() if rule in record.thresholds}
    if wanted in rules:
        return str(wanted), rules[str(wanted)]
    if str(wanted) not in AT.values():
        raise unknown("threshold", str(wanted), rules or AT.values())
    other = (
        f"It has {', '.join(rules)}: name one"
        if rules
        else "No threshold was chosen on validation subjects: give a score"
    )
    raise UserError(
        f"The run of {record.method.name} on {record.test.name} has no threshold {wanted!r}. {other} with --threshold."
    )


def _dataset(
    record: Record, images: Path, settings: Sequence[str]
) -> tuple[UnlabelledVolumes | UnlabelledSlices, list[str]]:
    """The scans as a dataset that is prepared as the run's test data were, and what is to be said about that."""
    side, width = record.test.grid
    if side != width:
        raise UserError(f"The run scored slices of {side} x {width} pixels: only squares can be made of other scans.")
    params, volumes = record.test.params, are_volumes(images)
    pixels_drawn = "field_of_view" not in params or (params.get("size") is None and side != DRAWN_SIDE)
    shaping = _SHAPING if volumes else (() if params.get("size") is None or not pixels_drawn else ("size",))
    own = {name: params[name] for name in shaping if name in params}
    if pixels_drawn:
        own.pop("field_of_view", None)
    given: dict[str, Any] = {}
    for text in settings:
        scope, key, value = parse_assignment(text)
        if scope != "dataset" or key in ANY_MASK:
            raise UserError(
                f"--set {text}: prediction takes parameters of the dataset folder, e.g. dataset.exclude=[p07]."
            )
        given[key] = value
    if given.get("size", side) != side:
        raise UserError(f"{record.method.name} was fitted to slices of {side} px: leave --set dataset.size away.")
    said = [
        f"Not as in the run: dataset.{name} = {given[name]}, there {value}."
        for name, value in own.items()
        if given.get(name, value) != value
    ]
    if volumes and isinstance(resolution := params.get("resolution"), int | float):  # of a phantom
        own["field_of_view"] = resolution * side
    elif volumes and pixels_drawn and "field_of_view" not in given:
        raise UserError(
            f"{record.method.name} was fitted to PNG slices, which do not say how large a pixel is, and {images} holds "
            f"volumes: say how many mm {side} pixels are with --set dataset.field_of_view=MM."
        )
    mm = record.test.mm[1] if record.test.mm else None
    return open_scans(images, {"modality": record.test.modality, **own, **given}, side, mm), said


def _remarks(store: SliceStore) -> dict[str, list[str]]:
    """Case id -> what its preparation remarked."""
    found: dict[str, list[str]] = {case.id: [] for case in store.cases}
    for line in store.manifest["remarks"]:
        case, _, remark = line.partition(": ")
        if case in found:
            found[case].append(remark)
    return found


def _write_summary(out: Path, rows: Sequence[Prediction], failed: Mapping[str, str]) -> None:
    """``summary.csv``: a row a scan, those without an answer last, with the reason as their ``error``."""
    text = io.StringIO()
    table = csv.DictWriter(text, [*(field.name for field in fields(Prediction)), "error"], lineterminator="\n")
    table.writeheader()
    for cells in (*map(asdict, rows), *({"case": case, "error": why} for case, why in failed.items())):
        table.writerow({k: f"{v:.6g}" if isinstance(v, float) else csv_cell(v) for k, v in cells.items()})
    write_text(out / SUMMARY, text.getvalue())
