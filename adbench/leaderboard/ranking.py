"""Published results as boards: the seeds of a method together, ranked by paired comparisons."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from adbench.errors import UserError
from adbench.leaderboard import submission as files
from adbench.leaderboard.board import (
    Board,
    Entry,
    TestSet,
    extra_metrics,
    tell_apart,
    test_set,
)
from adbench.leaderboard.submission import Submission, Submitted
from adbench.leaderboard.verify import SharedFields, check_place, contradictions, shared_fields
from adbench.metrics import bootstrap, jackknife
from adbench.metrics.columns import BOARD_METRICS, FALSE_ALARMS, STRATA_METRICS
from adbench.metrics.compare import NOT_ABOVE_CHANCE, MethodSamples, compare
from adbench.metrics.evaluate import Estimate, estimate
from adbench.metrics.spatial import ratios
from adbench.metrics.spec import RANKED_BY
from adbench.results.record import Number, Record, facts, lacking
from adbench.utils import guarded
from adbench.utils.hashing import digest
from adbench.utils.limits import VERIFY_BYTES, VERIFY_SECONDS
from adbench.utils.plain_files import check_no_link

ALPHA = 0.05  # error rate of the ranks of one board


@dataclass(frozen=True)
class Published:
    """The part of a published result that a board needs, small enough to hold thousands in memory.

    Attributes:
        path: of its file, relative to the leaderboards.
        key: hash of what it shares with its other seeds.
        record: its record, without what no board shows.
        cohort: see :func:`cohort`.
        owners: subject of each test volume.
        left_out: (n,) the ranking metric without one subject each; None where it is undefined.
        linear: see :func:`linear`.
        submitted: who submitted it; None where it is not stated.
    """

    path: str
    key: str
    record: Record
    cohort: tuple[tuple[str, int, int], ...]
    owners: tuple[str, ...]
    left_out: np.ndarray | None
    linear: dict[str, tuple[np.ndarray, np.ndarray]]
    submitted: Submitted | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        """From process to process the record goes as JSON, which takes a third of the time of its hundred parts."""
        others = {one.name: getattr(self, one.name) for one in fields(self) if one.name != "record"}
        return _received, (others, self.record.model_dump_json())


def _received(others: dict[str, Any], record: str) -> Published:
    return Published(record=Record.model_validate_json(record), **others)


def read_all(root: Path, *, lean: bool = False) -> list[Published]:
    """Every result below ``root``, in path order.

    Types, digests and places are checked; numbers are not recomputed, which is what ``verify`` is for.

    Args:
        root: folder of leaderboards, or one of them.
        lean: a quick look: types alone are checked, and what gives intervals over seeds is left out where it takes long.

    Raises:
        UserError: no result; one that is not what it says; a folder that is a link; two with one key and different
            numbers.
    """
    paths = files.published_files(root)
    if not paths:
        raise UserError(
            f"There is no result at {root}/<protocol>/records: `adbench leaderboard merge` puts them there."
        )
    found, shared = [], []
    for path in paths:
        check_no_link(path, Path(root))
    load = partial(_load, Path(root), lean)
    for outcome in guarded.each(load, paths, memory=VERIFY_BYTES, seconds=VERIFY_SECONDS):
        if outcome.result is None:
            named = str(outcome.item) in outcome.why
            raise UserError(outcome.why if named else f"{outcome.item}: {outcome.why}.")
        found.append(outcome.result[0])
        shared.append(outcome.result[1])
    for issue in contradictions([one for one in shared if one is not None]):
        raise UserError(f"{issue.file}: {issue.sentence}.")
    return found


def _load(root: Path, lean: bool, path: Path) -> tuple[Published, SharedFields | None]:
    name = path.relative_to(root).as_posix()
    if lean:
        return published(name, files.glance(path), lean=True), None
    submission = files.read_submission(path)
    if submission.raw["digest"] != files.own_digest(submission.raw):
        raise UserError(f"{path}: digest: it is not that of the content; `adbench leaderboard verify` says more.")
    for issue in check_place(path, submission.record):
        raise UserError(f"{path}: {issue.sentence}.")
    return published(name, submission), shared_fields(submission, counts=False)


def published(path: str, submission: Submission, *, lean: bool = False) -> Published:
    """What boards need of ``submission``, a file at ``path`` below the leaderboards; without spatial counts where
    ``lean``.

    Raises:
        UserError: it lacks what every table needs, or contradicts itself.
    """
    record = submission.record
    if problem := lacking(record):
        raise UserError(f"{submission.path}: {problem}; `adbench leaderboard verify` says more.")
    key = digest({name: value for name, value in record.identity.items() if name != "seed"})[:12]
    made = record.provenance
    packages = made.get("packages")
    slim = {
        "identity": {},
        "subjects": [],
        "files": {},
        "thresholds": {},
        "memory": {},
        "notes": [],
        "fit": {name: record.fit[name] for name in ("steps",) if name in record.fit},
        "strata": {
            grouping: {
                group: {name: numbers[name] for name in (*STRATA_METRICS, *FALSE_ALARMS) if name in numbers}
                for group, numbers in groups.items()
            }
            for grouping, groups in record.strata.items()
        },
        "provenance": {
            name: made[name] for name in ("adbench", "git", "device", "device_name", "threads") if name in made
        }
        | {"packages": {"torch": packages.get("torch") if isinstance(packages, dict) else None}},
    }
    try:
        return Published(
            path,
            key,
            record.model_copy(update=slim),
            cohort(record),
            tuple(row["subject"] for row in record.subjects),
            submission.left_out,
            linear(submission, lean),
            submission.content.submitted,
        )
    except (ValueError, KeyError, TypeError, IndexError, ArithmeticError) as error:
        raise UserError(
            f"{submission.path} contradicts itself ({error!r}): `adbench leaderboard verify` says where."
        ) from None


def boards(results: Iterable[Published], more: tuple[str, ...] = ()) -> list[Board]:
    """Published results in boards, the seeds of a method together, ranked, with columns for ``more`` metrics.

    Raises:
        UserError: results contradict each other.
    """
    groups: dict[TestSet, dict[str, list[Published]]] = {}
    for result in results:
        groups.setdefault(test_set(result.record), {}).setdefault(result.key, []).append(result)
    found = []
    for where, group in sorted(groups.items()):
        try:
            found.append(_ranked(where, group, more))
        except (ValueError, KeyError, TypeError, IndexError, ArithmeticError) as error:
            raise UserError(
                f"The results of {where.protocol} on {where.dataset} {where.modality} contradict themselves ({error!r}): "
                "`adbench leaderboard verify` says which, and where."
            ) from None
    return tell_apart(found)


def _ranked(where: TestSet, group: Mapping[str, list[Published]], more: tuple[str, ...]) -> Board:
    extra = extra_metrics([seed.record for seeds in group.values() for seed in seeds], more)
    entries, samples = [], {}
    for key, seeds in group.items():
        seeds.sort(key=lambda seed: (seed.record.seed, seed.path))
        records = [seed.record for seed in seeds]
        left_out = _left_out(seeds)
        estimates = {name: _estimate(records, name, left_out.get(name)) for name in (*BOARD_METRICS, *extra)}
        said = tuple(dict.fromkeys(seed.submitted for seed in seeds if seed.submitted is not None))
        entries.append(Entry(key, records, [seed.path for seed in seeds], estimates, submitted=said))
        if RANKED_BY in left_out:
            samples[key] = MethodSamples(
                seeds[0].cohort,
                {RANKED_BY: np.array([record.metrics[RANKED_BY].value for record in records], float)},
                {RANKED_BY: left_out[RANKED_BY]},
                {RANKED_BY: estimates[RANKED_BY].n},
                seeds[0].owners,
                brackets=_bracket(records),
            )
    board = Board(where, entries, pooled=True, more=more)
    _rank(board, samples)
    return board


def _bracket(records: Sequence[Record]) -> dict[str, tuple[float, float]]:
    """That of the ranked metric, the mean over seeds; empty where no seed has one."""
    if not any(RANKED_BY in record.brackets for record in records):
        return {}
    ends = [record.brackets.get(RANKED_BY, (record.metrics[RANKED_BY].value or 0.0,) * 2) for record in records]
    low, high = np.mean(np.array(ends, float), axis=0).tolist()
    return {RANKED_BY: (low, high)}


def _rank(board: Board, samples: Mapping[str, MethodSamples]) -> None:
    ranks: Mapping[str, int | None] = {}
    reasons: Mapping[str, str] = {}
    if not samples:
        board.unranked = board.entries[0].estimates[RANKED_BY].reason or f"{RANKED_BY} is undefined"
    elif len(samples) > 1:
        try:
            table = compare(samples, RANKED_BY, level=1 - ALPHA)
            ranks, reasons, board.differences = table.ranks, table.reasons, table.differences
        except UserError as error:
            board.unranked = str(error).rstrip(".")
    else:  # one row is first of one, if its interval is above chance
        (entry,) = (entry for entry in board.entries if entry.key in samples)
        low = entry.estimates[RANKED_BY].low
        if low is None:
            board.unranked = entry.estimates[RANKED_BY].reason
        elif low <= board.record.prevalence:
            reasons = {entry.key: NOT_ABOVE_CHANCE}
        else:
            ranks = {entry.key: 1}
    taken = list(ranks.values())
    for entry in board.entries:
        entry.rank = ranks.get(entry.key)
        entry.tied = entry.rank is not None and taken.count(entry.rank) > 1
        if entry.rank is None:
            entry.reason = reasons.get(entry.key) or entry.estimates[RANKED_BY].reason or board.unranked
    board.sort()
    against = {one.b: one for one in board.differences if one.a == board.entries[0].key}
    for entry in board.entries:
        entry.to_best = against.get(entry.key)


def _estimate(records: Sequence[Record], metric: str, left_out: np.ndarray | None) -> Estimate | Number:
    """A metric of an entry: that of its record, or the mean over its seeds.

    Args:
        records: of its seeds.
        metric: name.
        left_out: (S, n) the values without one subject each; None: there is no interval over seeds.
    """
    numbers = [record.metrics.get(metric) for record in records]
    if len(numbers) == 1 and numbers[0] is not None:
        return numbers[0]
    known = facts(metric, records[0])
    defined = [number for number in numbers if number is not None and number.value is not None]
    if len(defined) < len(numbers):
        reason = next((n.reason for n in numbers if n is not None and n.reason), "")
        if not reason:
            count = sum(number is not None for number in numbers)
            reason = f"measured for {count} of {len(numbers)} seeds" if count else "not measured"
        return Estimate(None, None, None, 0, known.oracle, reason)
    values = np.array([number.value for number in defined], float)
    n, n_all = defined[0].n, defined[0].n_all
    if left_out is None:
        return Estimate(float(values.mean()), None, None, n, known.oracle, "no interval over seeds", n_all)
    ends = [
        record.brackets.get(metric, (number.value, number.value))
        for record, number in zip(records, defined, strict=True)
    ]
    return estimate(
        float(values.mean()),
        left_out,
        n,
        float(records[0].protocol["level"]),
        known.oracle,
        n_all=n_all,
        lesions=known.over_lesions,
        bounds=known.bounds,
        bracket=(float(np.mean([low for low, _ in ends])), float(np.mean([high for _, high in ends]))),
        values=values,
    )


def _left_out(seeds: Sequence[Published]) -> dict[str, np.ndarray]:
    """Metric -> (S, n) each seed's value without one subject each, of the metrics for which that is stored or cheap."""
    found: dict[str, np.ndarray] = {}
    stored = [seed.left_out for seed in seeds if seed.left_out is not None]
    if len(stored) < len(seeds):
        return found
    found[RANKED_BY] = np.stack(stored)
    if len(seeds) == 1:
        return found  # its record has the other intervals
    weights = jackknife.weights_of(seeds[0].owners)
    for metric in (name for name in seeds[0].linear if all(name in seed.linear for seed in seeds)):
        found[metric] = np.stack([bootstrap.ratio(*seed.linear[metric], weights) for seed in seeds])
    return found


def linear(submission: Submission, lean: bool = False) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Metric -> (n,) numerator and (n,) denominator of each volume, of the shown metrics that are such ratios; where
    ``lean``, without those that need spatial counts.
    """
    dice = [row["dice@val"] for row in submission.record.subjects]
    found = {
        "dice@val": (
            np.array([value or 0.0 for value in dice], float),
            np.array([value is not None for value in dice], float),
        )
    }
    if lean:
        return found
    counted, rows = ratios(submission.spatial), submission.spatial.rows
    found |= {name: counted[name] for name in ("lesion_recall@val", "fa_slice") if name in counted}
    for metric in sorted({name for row in rows for name in row.measures}):  # asked for by name: reading refuses others
        pairs = np.array([row.measures.get(metric, (0.0, 0.0)) for row in rows], float)
        found[metric] = (pairs[:, 0], pairs[:, 1])
    return found


def cohort(record: Record) -> tuple[tuple[str, int, int], ...]:
    """(volume, lesion voxels, background voxels) of each test volume: what must agree to compare."""
    return tuple(
        (row.get("volume", row["subject"]), row["lesion_voxels"], row["brain_voxels"] - row["lesion_voxels"])
        for row in record.subjects
    )
