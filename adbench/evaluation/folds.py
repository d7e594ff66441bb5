"""Pooled cross-validation: the folds of one division of a dataset as one result, every subject scored once."""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from adbench.errors import UserError
from adbench.metrics import jackknife
from adbench.metrics.columns import WITHOUT_THRESHOLD
from adbench.metrics.evaluate import Estimate, estimate, evaluate
from adbench.metrics.histogram import SubjectHistograms
from adbench.results.explain import differing_fields
from adbench.results.record import Record
from adbench.results.result import Result
from adbench.results.rundir import SPLITS
from adbench.utils.hashing import digest
from adbench.utils.limits import RECORD_BYTES
from adbench.utils.plain_files import read_json


@dataclass(frozen=True)
class PooledFolds:
    """One method and seed over all folds.

    Attributes:
        results: one a fold, by fold.
        metrics: ``auprc`` and ``auroc`` over the voxels of all subjects, the scores of all trainings on one scale;
            ``auprc_subject``, and ``dice@val`` with the threshold that each subject's own fold chose, as means over
            subjects. Intervals are over subjects, for these trainings.
        subjects: that were scored, each once.
    """

    results: tuple[Result, ...]
    metrics: dict[str, Estimate]
    subjects: int

    @property
    def record(self) -> Record:
        """Of the first fold: method, protocol and seed are the same in all."""
        return self.results[0].record

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        record = self.record
        return {
            "protocol": record.protocol["name"],
            "dataset": record.test.name,
            "modality": record.test.modality,
            "method": record.method.name,
            "preset": record.method.preset,
            "seed": record.seed,
            "folds": len(self.results),
            "subjects": self.subjects,
            "metrics": {name: vars(number) for name, number in self.metrics.items()},
            "runs": [result.record.run_key for result in self.results],
        }


def pooled_folds(results: Iterable[Result]) -> list[PooledFolds]:
    """Every method and seed of which all folds are there; of several runs of one fold the newest counts.

    Args:
        results: runs; those of no fold are left aside.

    Raises:
        UserError: there is no run of a fold, a fold is missing, or a subject is tested in two or, of those that were dealt, in
            none.
    """
    groups: dict[str, dict[int, Result]] = {}
    for result in sorted(results, key=lambda result: result.record.created):
        params = result.record.test.params
        if params.get("folds"):
            groups.setdefault(digest(_division(result.record)), {})[params["fold"]] = result
    if not groups:
        raise UserError("None of these runs is of a fold: adbench run ... --set dataset.folds=5 makes them.")
    for by_fold in groups.values():
        _refuse_missing(by_fold, [other for other in groups.values() if other is not by_fold])
    found = [_pooled(by_fold) for by_fold in groups.values()]
    return sorted(found, key=lambda pool: (*pool.as_dict().values(),)[:6])


def _division(record: Record) -> dict[str, Any]:
    """Properties that the folds of one cross-validation share."""
    return {
        "protocol": record.protocol,
        "dataset": record.test.name,
        "modality": record.test.modality,
        "test": {name: value for name, value in record.test.params.items() if name != "fold"},
        "trained on": record.train.name,
        "method": record.method.model_dump(include={"name", "source", "preset", "params"}),
        "seed": record.seed,
    }


def _refuse_missing(by_fold: dict[int, Result], others: Sequence[dict[int, Result]]) -> None:
    """Refuse a cross-validation that lacks a fold; where a run of that fold is of another one, say what is different."""
    first = next(iter(by_fold.values()))
    mine, folds = _division(first.record), int(first.record.test.params["folds"])
    missing = [fold for fold in range(folds) if fold not in by_fold]
    if not missing:
        return
    listed = ",".join(map(str, missing))
    text = f"{first.label} on {first.record.test.name} {first.record.test.modality} lacks fold {listed} of {folds}"
    near = [
        list(differing_fields(mine, _division(other[missing[0]].record), absent="nothing"))
        for other in others
        if missing[0] in other and other[missing[0]].record.method.name == first.record.method.name
    ]
    if near:
        name, own, its = min(near, key=len)[0]
        what = (
            "of another version of the method"
            if name == "method.source"
            else f"with {name}={its}, and these have {own}"
        )
        text += f" (that of fold {missing[0]} is {what})"
    raise UserError(f"{text}: run the same command with --fold {listed}, or pool a folder of these runs alone.")


def _pooled(by_fold: dict[int, Result]) -> PooledFolds:
    first = by_fold[0]
    results = [by_fold[fold] for fold in range(len(by_fold))]
    test, rows, owner = SubjectHistograms(), list[dict[str, Any]](), dict[str, int]()
    for fold, result in enumerate(results):
        for subject in result.subjects:
            if owner.setdefault(subject, fold) != fold:
                raise UserError(
                    f"{subject} is tested in the folds {owner[subject]} and {fold} of {result.record.test.name}, so they are not of "
                    "one division: they read two folders, or files changed between the runs. Run every fold again with --out in a new folder."
                )
        test.merge(result.histograms)
        rows += result.record.subjects
    if first.record.protocol.get("slices") != "largest-lesion":  # which scores no subject without a lesion
        _refuse_untested(results, owner)
    rows.sort(key=lambda row: str(row.get("volume", row["subject"])))
    level = float(first.record.protocol["level"])
    subject_of = {str(row.get("volume", row["subject"])): str(row["subject"]) for row in rows}
    metrics = evaluate(test, level=level, subject_of=subject_of).metrics
    chosen = {name: metrics[name] for name in WITHOUT_THRESHOLD if name in metrics}
    return PooledFolds(tuple(results), {**chosen, "dice@val": _mean(rows, "dice@val", level)}, len(owner))


def _refuse_untested(results: Sequence[Result], tested: Container[str]) -> None:
    """Refuse folds that do not cover their subjects: one that learns in some folds, is unknown to another and tested in none."""
    known: list[dict[str, list[str]]] = [read_json(result.file(SPLITS), RECORD_BYTES) for result in results]
    everyone = [set().union(*lists.values()) for lists in known]
    for subject in sorted(set().union(*everyone)):
        absent = next((fold for fold, names in enumerate(everyone) if subject not in names), None)
        if absent is not None and subject not in tested:
            there = next(fold for fold, names in enumerate(everyone) if subject in names)
            raise UserError(
                f"{subject} is in fold {there} of {results[0].record.test.name}, not in fold {absent}, and is tested in none, so "
                "they are not of one division: they read two folders, or files changed between the runs. Run every fold again with --out in a new folder."
            )


def _mean(rows: Sequence[dict[str, Any]], column: str, level: float) -> Estimate:
    """Mean of a column over the volumes that have it; the interval leaves out one subject at a time."""
    own = [row for row in rows if row.get(column) is not None]
    subjects = {row["subject"] for row in own}
    if not own:
        return estimate(None, None, 0, level, reason="no fold chose a threshold", n_all=len(rows))
    values = np.array([row[column] for row in own], np.float64)
    weights = jackknife.weights_of([row["subject"] for row in own])
    with np.errstate(invalid="ignore"):
        left_out = weights @ values / weights.sum(axis=1)
    return estimate(float(values.mean()), left_out, len(subjects), level, n_all=len({row["subject"] for row in rows}))
