"""Published results as boards: the seeds of a method together, ranked by paired comparisons."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from adbench.errors import UserError
from adbench.leaderboard import submission as files
from adbench.leaderboard.board import HEADLINE, Board, Entry, TestSet, extra_metrics, test_set
from adbench.leaderboard.submission import Submission
from adbench.leaderboard.verify import check_place, contradictions, shared_fields
from adbench.metrics import bootstrap, jackknife
from adbench.metrics.compare import NOT_ABOVE_CHANCE, Samples, compare
from adbench.metrics.evaluate import Estimate, estimate
from adbench.metrics.spatial import ratios
from adbench.metrics.spec import RANKED_BY
from adbench.results.record import Number, Record, facts, lacking
from adbench.utils.hashing import digest

ALPHA = 0.05  # error rate of the ranks of one board


def read_all(root: Path) -> list[tuple[str, Submission]]:
    """Every result below ``root``, with its path relative to it, in path order.

    Types, digests and places are checked; numbers are not recomputed, which is what ``verify`` is for.

    Raises:
        UserError: no result; one that is not what it says; two with one key and different numbers.
    """
    found = _submissions(root, files.read)
    if not found:
        raise UserError(
            f"There is no result at {root}/<protocol>/records: `adbench leaderboard merge` puts them there."
        )
    for _, submission in found:
        path = submission.path
        if submission.raw["digest"] != files.own_digest(submission.raw):
            raise UserError(f"{path}: digest: it is not that of the content; `adbench leaderboard verify` says more.")
        for issue in check_place(path, submission.record):
            raise UserError(f"{path}: {issue.sentence}.")
    for issue in contradictions([shared_fields(submission, counts=False) for _, submission in found]):
        raise UserError(f"{issue.file}: {issue.sentence}.")
    return found


def glance_all(root: Path) -> list[tuple[str, Submission]]:
    """:func:`read_all` for a quick look: only types are checked."""
    return _submissions(root, files.glance)


def _submissions(root: Path, read: Callable[[Path], Submission]) -> list[tuple[str, Submission]]:
    return [(path.relative_to(root).as_posix(), read(path)) for path in sorted(Path(root).glob("*/records/*.json"))]


def boards(results: Iterable[tuple[str, Submission]], *, lean: bool = False) -> list[Board]:
    """Published results in boards: the seeds of a method together, ranked.

    Args:
        results: from :func:`read_all`.
        lean: leave out the intervals over seeds that need spatial counts.

    Raises:
        UserError: a result lacks what every table needs, or contradicts itself.
    """
    groups: dict[TestSet, dict[str, list[tuple[str, Submission]]]] = {}
    for path, submission in results:
        if problem := lacking(submission.record):
            raise UserError(f"{path}: {problem}; `adbench leaderboard verify` says more.")
        identity = submission.record.identity
        key = digest({name: value for name, value in identity.items() if name != "seed"})[:12]
        groups.setdefault(test_set(submission.record), {}).setdefault(key, []).append((path, submission))
    found = []
    for where, group in sorted(groups.items()):
        try:
            found.append(_ranked(where, group, lean))
        except (ValueError, KeyError, TypeError, IndexError, ArithmeticError) as error:
            raise UserError(
                f"The results of {where.protocol} on {where.dataset} {where.modality} contradict themselves ({error!r}): "
                "`adbench leaderboard verify` says which, and where."
            ) from None
    return found


def _ranked(where: TestSet, group: Mapping[str, list[tuple[str, Submission]]], lean: bool) -> Board:
    extra = extra_metrics([submission.record for members in group.values() for _, submission in members])
    entries, samples = [], {}
    for key, members in group.items():
        members.sort(key=lambda member: (member[1].record.seed, member[0]))
        records = [submission.record for _, submission in members]
        left_out = _left_out([submission for _, submission in members], lean)
        estimates = {name: _estimate(records, name, left_out.get(name)) for name in (*HEADLINE, *extra)}
        entries.append(Entry(key, records, [path for path, _ in members], estimates))
        if RANKED_BY in left_out:
            samples[key] = Samples(
                cohort(records[0]),
                {RANKED_BY: np.array([record.metrics[RANKED_BY].value for record in records], float)},
                {RANKED_BY: left_out[RANKED_BY]},
                {RANKED_BY: estimates[RANKED_BY].n},
                tuple(row["subject"] for row in records[0].subjects),
            )
    board = Board(where, entries, pooled=True)
    _rank(board, samples)
    return board


def _rank(board: Board, samples: Mapping[str, Samples]) -> None:
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


def _left_out(seeds: Sequence[Submission], lean: bool) -> dict[str, np.ndarray]:
    """Metric -> (S, n) each seed's value without one subject each, of the metrics for which that is stored or cheap."""
    found: dict[str, np.ndarray] = {}
    stored = [one for one in (submission.left_out for submission in seeds) if one is not None]
    if len(stored) < len(seeds):
        return found
    found[RANKED_BY] = np.stack(stored)
    if len(seeds) == 1:
        return found  # its record has the other intervals
    weights = jackknife.weights_of([row["subject"] for row in seeds[0].record.subjects])
    parts = [linear(submission, lean) for submission in seeds]
    for metric in (name for name in parts[0] if all(name in part for part in parts)):
        found[metric] = np.stack([bootstrap.ratio(*part[metric], weights) for part in parts])
    return found


def linear(submission: Submission, lean: bool = False) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Metric -> (n,) numerator and (n,) denominator of each volume, of the shown metrics that are such ratios.

    Args:
        submission: one result.
        lean: leave out those that need spatial counts.
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
    for metric in sorted({name for row in rows for name in row.measures}):
        pairs = np.array([row.measures.get(metric, (0.0, 0.0)) for row in rows], float)
        found[metric] = (pairs[:, 0], pairs[:, 1])
    return found


def cohort(record: Record) -> tuple[tuple[str, int, int], ...]:
    """(volume, lesion voxels, background voxels) of each test volume: what must agree to compare."""
    return tuple(
        (row.get("volume", row["subject"]), row["lesion_voxels"], row["brain_voxels"] - row["lesion_voxels"])
        for row in record.subjects
    )
