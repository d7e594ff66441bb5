"""Whether the names, costs and counts of a published result are possible, and fit each other."""

from __future__ import annotations

import math
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import numpy as np

from adbench.config import registry
from adbench.leaderboard.checks.issue import RecordIssue, differences
from adbench.leaderboard.submission import WITH, WITHOUT, Submission
from adbench.metrics.histogram import ScoreHistogram, SubjectHistograms
from adbench.metrics.lesion import VolumeRow
from adbench.metrics.score_bins import key_of, predict
from adbench.metrics.spatial import SpatialAccumulator
from adbench.results.names import BRACKETS, skeleton
from adbench.results.record import lacking, optimiser_steps
from adbench.results.rundir import safe

LONGEST = 1000  # characters of a text
STEP = 1e-5  # s: no optimiser step is faster; launching one operation takes as long
PIXEL = 1e-12  # s: to read one pixel at 4 TB/s
SMALLEST = 0.005  # GiB: an interpreter with NumPy needs more


def check_texts(submission: Submission) -> Iterator[RecordIssue]:
    """Names are ASCII and read like no other; every text is printable and of bounded length."""
    record = submission.record
    names = {
        "method.name": record.method.name,
        "method.version": record.method.version,
        "method.origin": record.method.origin,
        "method.preset": record.method.preset,
        "test.name": record.test.name,
        "test.modality": record.test.modality,
        "train.name": record.train.name,
    }
    for field, name in names.items():
        if not name or len(name) > 80 or not name.isprintable():
            yield RecordIssue(field, name, why="a name has 1 to 80 printable characters")
        elif not name.isascii():
            odd = next(letter for letter in name if not letter.isascii())
            yield RecordIssue(field, name, why=f"a name has ASCII letters, and U+{ord(odd):04X} may pass for one")
        elif field in ("method.name", "method.preset") and BRACKETS & set(name):
            yield RecordIssue(field, name, why="a name has no brackets: the row adds its own")
    for field, kind in (("method.name", "methods"), ("test.name", "datasets"), ("train.name", "datasets")):
        alike = {skeleton(name): name for name in registry.BUILTIN[kind]}.get(skeleton(names[field]))
        if alike not in (None, names[field]):
            yield RecordIssue(field, names[field], why=f"it reads like {alike!r}")
    shown = record.model_dump(mode="json", exclude={"subjects", "fit"})  # subjects are compared with the splits
    for field, text in _texts(shown):
        if field not in names and not (len(text) <= LONGEST and text.isprintable()):
            yield RecordIssue(field, text, why=f"a text has at most {LONGEST} printable characters")
    for name in record.files:
        if name != safe(name) or name.startswith("."):
            yield RecordIssue(f"files.{name}", why="it is not the plain name of a file beside the record")
    try:
        datetime.fromisoformat(record.created)
    except ValueError:
        yield RecordIssue("created", record.created, why="it is no ISO 8601 time")


def _texts(value: Any, field: str = "") -> Iterator[tuple[str, str]]:
    """Every text within a JSON value, names of fields included, with the field it belongs to."""
    if isinstance(value, str):
        yield field, value
    elif isinstance(value, dict):
        for name, part in value.items():
            yield field, name
            yield from _texts(part, f"{field}.{name}" if field else name)
    elif isinstance(value, list):
        for index, part in enumerate(value):
            yield from _texts(part, f"{field}.{index}")


def check_costs(submission: Submission) -> Iterator[RecordIssue]:
    """Times, memory and number of weights are such that a machine can have them."""
    record = submission.record
    if problem := lacking(record):
        field, _, why = problem.partition(": ")
        yield RecordIssue(field, why=why)
        return
    fit, each, count = record.timing["fit"], record.timing["score_per_slice"], optimiser_steps(record)
    if record.fit.get("steps") != count or count < 0:
        yield RecordIssue("fit.steps", record.fit.get("steps"), why="it must be a whole number that is not negative")
    if fit < count * STEP:
        yield RecordIssue("timing.fit", fit, why=f"{count} optimiser steps take more than {count * STEP:g} s")
    fastest = math.prod(record.test.grid) * PIXEL
    if each < fastest:
        yield RecordIssue(
            "timing.score_per_slice", each, why=f"to read the pixels of a slice takes more than {fastest:.1g} s"
        )
    if "score" in record.timing and not math.isclose(record.timing["score"], each * record.test.slices, rel_tol=1e-6):
        yield RecordIssue("timing.score", record.timing["score"], each * record.test.slices, "score_per_slice x slices")
    for name, value in record.memory.items():
        if not (math.isfinite(value) and value >= 0):
            yield RecordIssue(f"memory.{name}", value, why="it must be a number that is not negative")
    weights, memory = record.method.parameters, max(record.memory.values(), default=0.0)
    if weights < 0 or (weights == 0 and count > 0):
        yield RecordIssue(
            "method.parameters", weights, why=f"{count} optimiser steps train a positive number of weights"
        )
    if memory < max(SMALLEST, 2 * weights / 2**30):
        yield RecordIssue(
            "memory", memory, why=f"GiB at most, which is too little for a process with {weights} weights"
        )


def check_validation(submission: Submission) -> Iterator[RecordIssue]:
    """The validation counts are those of the subjects that the record names, and not the test's own.

    Raises:
        ValueError: the stored counts are impossible.
    """
    record, validation, test = submission.record, submission.validation, submission.test
    with_lesion = record.threshold.lesion_subjects or 0
    without = record.threshold.subjects - with_lesion
    if validation is None:
        yield from differences("validation.healthy", 0, without)
        yield from differences("validation.ill", False, with_lesion > 0)
        return
    for name, histogram in validation.items():
        if bool(histogram.n_positive) != (name == WITH):
            yield RecordIssue("validation", why=f"{name}: {histogram.n_positive} lesion voxels")
    healthy, scores = validation.subset([name for name in validation if name == WITHOUT]), validation.healthy_scores
    yield from differences("validation.healthy", len(scores), without)
    yield from differences("validation.ill", WITH in validation, with_lesion > 0)
    if scores:
        yield from _healthy_scores(scores, healthy.pooled())
    for own, ill in ((validation.subset([name for name in validation if name == WITH]), True), (healthy, False)):
        same = test.subset([volume for volume in test if bool(test[volume].n_positive) == ill])
        if len(own) and len(same) and _equal(own.pooled(), same):
            subjects = "with a lesion" if ill else "without a lesion"
            yield RecordIssue("validation", why=f"the counts of subjects {subjects} are those of the test subjects")


def _healthy_scores(scores: list[float], pool: ScoreHistogram) -> Iterator[RecordIssue]:
    keys, _, _ = pool.counts()
    own = pool.partition.of(np.array([key_of(score) for score in scores], np.int64))
    # Just above a subject's highest score, where that is reached by too many of its voxels: a map that is empty, say.
    above = pool.partition.of(pool.partition.ends(keys))
    if not (np.isin(own, keys) | np.isin(own, above)).all():
        yield RecordIssue("healthy_scores", why="one of them is no score of the healthy validation subjects")
    elif pool.positives_at(scores[-1])[1] > 0.01 * pool.n_negative:
        yield RecordIssue(
            "healthy_scores", scores[-1], why="more than 1 % of the voxels of all of them reach the highest"
        )


def _equal(own: ScoreHistogram, test: SubjectHistograms) -> bool:
    """Whether two sums count the same voxels at the same scores, where both are counted at enough different ones."""
    other = test.pooled()
    both = own.partition.meet(other.partition)
    mine, its = (ScoreHistogram.from_counts(*one.counts(), one.partition) for one in (own, other))
    mine.rebin(both)
    its.rebin(both)
    return len(mine.counts()[0]) > 2 and mine == its


def check_volume(
    row: VolumeRow, scores: ScoreHistogram, spatial: SpatialAccumulator, pixels: int
) -> Iterator[RecordIssue]:
    """The lesions and slices of a volume fit its scores, and each other; ``pixels`` of a slice count outside the brain
    too.
    """
    where, same = f"spatial.{row.volume}", "lesion voxels of the histogram"
    yield from differences(f"{where}.lesion_sizes", sum(row.lesion_sizes), scores.n_positive, same)
    yield from differences(f"{where}.slice_lesion", any(row.slice_lesion), bool(scores.n_positive), same)
    yield from _slices(row, scores, pixels, where)
    for place, threshold in enumerate([*(spatial.thresholds[rule] for rule in spatial.rules), *spatial.froc]):
        true, false = scores.positives_at(threshold)
        if row.found[place] > true or row.found[place] + row.false_components[place] > true + false:
            why = f"only {true} lesion voxels of {true + false} are predicted"
            yield RecordIssue(f"{where}.found", row.found[place], why=why)
            break
    if "val" in spatial.rules:
        shared = sum(iou * size for iou, size in zip(row.lesion_ious, row.lesion_sizes, strict=True))
        if shared > scores.positives_at(spatial.thresholds["val"])[0] * (1 + 1e-9):
            yield RecordIssue(f"{where}.lesion_ious", why="their lesions overlap in more voxels than are predicted")
    over = {rule: predict(np.array(row.slice_max), spatial.thresholds[rule]) for rule in spatial.rules}
    alarms = {rule: int(np.sum(above & ~np.array(row.slice_lesion, bool))) for rule, above in over.items()}
    yield from differences(f"{where}.alarms", row.alarms, alarms, "from slice_max")


def _slices(row: VolumeRow, scores: ScoreHistogram, pixels: int, where: str) -> Iterator[RecordIssue]:
    """The highest score of each slice, and the median of its highest 1 %, are scores of the volume, and enough reach them."""
    keys, positive, negative = scores.counts()
    if not row.slice_max or not len(keys):
        return
    lesion = np.array(row.slice_lesion, bool)
    bins = {
        name: scores.partition.of(np.array([key_of(score) for score in getattr(row, name)], np.int64))
        for name in ("slice_max", "slice_top")
    }
    if bins["slice_max"].max() != keys.max():
        yield RecordIssue(
            f"{where}.slice_max", max(row.slice_max), why="the highest score of the histogram is another one"
        )
        return
    if (np.array(row.slice_top) > np.array(row.slice_max)).any():
        yield RecordIssue(
            f"{where}.slice_top", max(row.slice_top), why="the scores of a slice are not above its highest one"
        )
        return
    if lesion.sum() > scores.n_positive:
        yield RecordIssue(f"{where}.slice_lesion", int(lesion.sum()), why=f"of {scores.n_positive} lesion voxels")
    for name, own in bins.items():
        place = np.minimum(np.searchsorted(keys, own), len(keys) - 1)
        there = np.where(lesion, positive[place] + negative[place], negative[place]) * (keys[place] == own)
        if not there.all():
            score = getattr(row, name)[int(np.argmin(there > 0))]
            yield RecordIssue(
                f"{where}.{name}", score, why="no voxel of the histogram has this score where the slice could"
            )
            return
    # The median of the highest n/100 of n scores: half of them reach it, and no more than half lie above it.
    tops, counts, total = np.sort(bins["slice_top"])[::-1], positive + negative, scores.n_positive + scores.n_negative
    reach = np.concatenate([np.cumsum(counts[::-1])[::-1], [0]])  # voxels at or above each key
    slices = len(tops)
    for number, top in enumerate(tops.tolist(), 1):
        if number < slices and tops[number] == top:
            continue
        at_least = total - (slices - number) * pixels  # voxels of these slices
        needed = max(number, (at_least / 100 - number / 2) / 2)
        have = int(reach[np.searchsorted(keys, top)])
        if have < needed:
            yield RecordIssue(
                f"{where}.slice_top", why=f"{number} slices need {needed:.0f} voxels that high, {have} are"
            )
            return
    above = int(reach[np.searchsorted(keys, tops[0], side="right")])
    if above > total / 200 + slices / 4:
        why = f"{above} voxels are higher than in any slice's upper half"
        yield RecordIssue(f"{where}.slice_top", max(row.slice_top), why=why)
