"""Published results as boards: one a test set, the seeds of a method together, ranked by paired comparisons."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from adbench.errors import UserError
from adbench.leaderboard import submission as files
from adbench.leaderboard.checks import RANKED_BY
from adbench.leaderboard.consistency import steps
from adbench.leaderboard.submission import Submission
from adbench.metrics import bootstrap, jackknife
from adbench.metrics.compare import NOT_ABOVE_CHANCE, Difference, Samples, compare
from adbench.metrics.evaluate import Estimate, estimate
from adbench.metrics.spatial import ratios
from adbench.metrics.spec import MetricSpec
from adbench.results.known import is_released
from adbench.results.record import Number, Record, asked, facts, lacking
from adbench.results.rundir import safe
from adbench.utils.hashing import digest

HEADLINE = (RANKED_BY, "dice@val", "dice@best", "lesion_recall@val", "fa_slice")
STRATA_METRICS = (RANKED_BY, "dice@val")
ALPHA = 0.05  # error rate of the ranks of one board


@dataclass
class Entry:
    """One method with its parameters and its training data on one test set: a row.

    Attributes:
        key: hash of what its seeds share.
        seeds: its results, by seed.
        paths: where each lies, relative to the leaderboards.
        estimates: metric -> mean over seeds with its interval over subjects and seeds.
        rank: 1 is best; None where ``reason`` says why there is none.
        tied: whether others share the rank.
        to_best: the paired difference between the board's best and this entry; None for the best and without a rank.
        reason: why it has no rank.
    """

    key: str
    seeds: list[Submission]
    paths: list[str]
    estimates: dict[str, Estimate] = field(default_factory=dict)
    rank: int | None = None
    tied: bool = False
    to_best: Difference | None = None
    reason: str = ""
    label: str = ""

    @property
    def record(self) -> Record:
        """The record of the first seed: all that its seeds share may be read there."""
        return self.seeds[0].record

    @property
    def trained(self) -> bool:
        """Whether optimiser steps were taken, so that another seed gives other numbers."""
        return any(steps(s.record) > 0 for s in self.seeds)

    @property
    def conformance(self) -> str:
        """Whether the method passed the conformance checks: the worst of what its seeds say, "not said" by older ones."""
        said = {_conformance(s.record) for s in self.seeds}
        return next(word for word in ("failed", "not said", "not run", "passed") if word in said)

    @property
    def hours(self) -> float:
        """Training and scoring, mean over seeds."""
        spent = [r.timing["fit"] + r.timing.get("score", 0.0) for r in (s.record for s in self.seeds)]
        return float(np.mean(spent)) / 3600

    @property
    def gpu(self) -> bool:
        """Whether every seed ran on a GPU."""
        return all(str(s.record.provenance.get("device", "")).startswith("cuda") for s in self.seeds)

    @property
    def volume_seconds(self) -> float:
        """Scoring time of one test subject, mean over seeds."""
        test = self.record.test
        per_slice = float(np.mean([s.record.timing["score_per_slice"] for s in self.seeds]))
        return per_slice * test.slices / test.subjects

    def stratum(self, grouping: str, group: str, metric: str) -> Estimate | None:
        """A metric within a stratum: mean over seeds; with several seeds, the interval spans those of all."""
        found = [s.record.strata.get(grouping, {}).get(group, {}).get(metric) for s in self.seeds]
        numbers = [number for number in found if number is not None and number.value is not None]
        if not numbers or len(numbers) < len(self.seeds):
            return None
        lows, highs = [n.low for n in numbers if n.low is not None], [n.high for n in numbers if n.high is not None]
        whole = len(lows) == len(highs) == len(numbers)
        return Estimate(
            float(np.mean([n.value for n in numbers if n.value is not None])),
            min(lows) if whole else None,
            max(highs) if whole else None,
            numbers[0].n,
            facts(metric, self.record).oracle,
            next((n.reason for n in numbers if n.reason), ""),
            numbers[0].n_all,
        )


@dataclass
class Board:
    """One test set: what stands in it can be compared.

    Attributes:
        protocol: name.
        version: of the protocol.
        dataset: that is tested on.
        modality: of it.
        test_digest: hash of the test slices.
        entries: best first.
        differences: the leader of each rank against every entry ranked below it, by key.
        unranked: why there are no ranks; empty when there are.
    """

    protocol: str
    version: str
    dataset: str
    modality: str
    test_digest: str
    entries: list[Entry]
    differences: list[Difference] = field(default_factory=list)
    unranked: str = ""

    @property
    def record(self) -> Record:
        """Any record: what is said about the test set is the same in all."""
        return self.entries[0].record

    @property
    def id(self) -> str:
        """A name that is valid in HTML and distinct among boards."""
        parts = (self.protocol, self.dataset, self.modality)
        return "-".join(safe(part).replace(".", "_") for part in parts) + f"-{self.test_digest[:6]}"

    def seeds(self, entry: Entry) -> str:
        """How many seeds an entry has: "3", or "1 of 3" where a trained one has fewer than others here."""
        most = max((len(other.seeds) for other in self.entries if other.trained), default=0)
        return f"{len(entry.seeds)} of {most}" if entry.trained and len(entry.seeds) < most else f"{len(entry.seeds)}"

    @cached_property
    def metrics(self) -> list[str]:
        """The columns that some entry has: those of every board, the protocol's own, and what was asked for."""
        names = [*HEADLINE, *self.extra]
        return [n for n in names if n == RANKED_BY or any(e.estimates[n].value is not None for e in self.entries)]

    @cached_property
    def extra(self) -> list[str]:
        """The metrics of the protocol, and those that some entry was asked for."""
        names = [*self.record.protocol.get("metrics", ()), *asked(*(s.record for e in self.entries for s in e.seeds))]
        return [name for name in dict.fromkeys(names) if name not in HEADLINE]

    def facts(self, metric: str) -> MetricSpec:
        """What is known about a column."""
        return facts(metric, *(s.record for e in self.entries for s in e.seeds))

    @cached_property
    def groupings(self) -> dict[str, dict[str, int]]:
        """Grouping -> group -> subjects, where there is more than one group."""
        found = {
            grouping: {group: _subjects(metrics) for group, metrics in groups.items()}
            for grouping, groups in self.record.strata.items()
        }
        return {grouping: groups for grouping, groups in found.items() if len(groups) > 1}


def read_all(root: Path) -> list[tuple[str, Submission]]:
    """Every result below ``root``, with its path relative to it, in path order.

    Types, digests and places are checked; numbers are not recomputed, which is what ``verify`` is for.

    Raises:
        UserError: no result; one that is not what it says; two with one key and different numbers.
    """
    from adbench.leaderboard.verify import across, facts_of, place

    root = Path(root)
    paths = sorted(root.glob("*/records/*.json"))
    if not paths:
        raise UserError(
            f"There is no result at {root}/<protocol>/records: `adbench leaderboard merge` puts them there."
        )
    found = []
    for path in paths:
        submission = files.read(path)
        if submission.raw["digest"] != files.own_digest(submission.raw):
            raise UserError(f"{path}: digest: it is not that of the content; `adbench leaderboard verify` says more.")
        for finding in place(path, submission.record):
            raise UserError(f"{path}: {finding.sentence}.")
        found.append((path.relative_to(root).as_posix(), submission))
    for finding in across([facts_of(submission, counts=False) for _, submission in found]):
        raise UserError(f"{finding.file}: {finding.sentence}.")
    return found


def glance_all(root: Path) -> list[tuple[str, Submission]]:
    """:func:`read_all` for a quick look: only types are checked."""
    return [
        (path.relative_to(root).as_posix(), files.glance(path)) for path in sorted(Path(root).glob("*/records/*.json"))
    ]


def boards(results: Iterable[tuple[str, Submission]], *, lean: bool = False) -> list[Board]:
    """Results in boards, ranked.

    Args:
        results: from :func:`read_all`.
        lean: leave out the intervals over seeds that need spatial counts.
    """
    groups: dict[tuple[str, ...], dict[str, Entry]] = {}
    for path, submission in results:
        record = submission.record
        if problem := lacking(record):
            raise UserError(f"{path}: {problem}; `adbench leaderboard verify` says more.")
        place = (
            str(record.protocol["name"]),
            str(record.protocol["version"]),
            record.test.name,
            record.test.modality,
            record.test.digest,
        )
        shared = {key: value for key, value in record.identity.items() if key != "seed"}
        key = digest(shared)[:12]
        entry = groups.setdefault(place, {}).setdefault(key, Entry(key, [], []))
        entry.seeds.append(submission)
        entry.paths.append(path)
    made = []
    for (protocol, version, dataset, modality, test_digest), entries in sorted(groups.items()):
        board = Board(protocol, version, dataset, modality, test_digest, list(entries.values()))
        try:
            _fill(board, lean)
        except (ValueError, KeyError, TypeError, IndexError, ArithmeticError) as error:
            raise UserError(
                f"The results of {protocol} on {dataset} {modality} contradict themselves ({error!r}): "
                "`adbench leaderboard verify` says which, and where."
            ) from None
        made.append(board)
    return made


def _fill(board: Board, lean: bool) -> None:
    samples = {}
    for entry in board.entries:
        order = sorted(range(len(entry.seeds)), key=lambda i: (entry.seeds[i].record.seed, entry.paths[i]))
        entry.seeds, entry.paths = [entry.seeds[i] for i in order], [entry.paths[i] for i in order]
        left_out = _left_out(entry, lean)
        for metric in (*HEADLINE, *board.extra):
            entry.estimates[metric] = _estimate(entry, metric, left_out.get(metric))
        if RANKED_BY in left_out:
            values = np.array([s.record.metrics[RANKED_BY].value for s in entry.seeds], float)
            n = entry.estimates[RANKED_BY].n
            owners = tuple(row["subject"] for row in entry.record.subjects)
            samples[entry.key] = Samples(
                cohort(entry.record), {RANKED_BY: values}, {RANKED_BY: left_out[RANKED_BY]}, {RANKED_BY: n}, owners
            )
    _rank(board, samples)
    _label(board)


def _rank(board: Board, samples: Mapping[str, Samples]) -> None:
    ranks: Mapping[str, int | None] = {}
    reasons: Mapping[str, str] = {}
    by_key = {entry.key: entry for entry in board.entries}
    if not samples:
        board.unranked = board.entries[0].estimates[RANKED_BY].reason or f"{RANKED_BY} is undefined"
    elif len(samples) > 1:
        try:
            table = compare(samples, RANKED_BY, level=1 - ALPHA)
            ranks, reasons, board.differences = table.ranks, table.reasons, table.differences
        except UserError as error:
            board.unranked = str(error).rstrip(".")
    else:  # one row is first of one, if it says anything
        ((key, _),) = samples.items()
        estimate, chance = by_key[key].estimates[RANKED_BY], board.record.prevalence
        if estimate.low is None:
            board.unranked = estimate.reason
        elif estimate.low <= chance:
            reasons = {key: NOT_ABOVE_CHANCE}
        else:
            ranks = {key: 1}
    taken = list(ranks.values())

    def order(entry: Entry) -> tuple[Any, ...]:
        value = entry.estimates[RANKED_BY].value
        return entry.rank is None, entry.rank or 0, -(value or 0.0), entry.record.method.name, entry.key

    for entry in board.entries:
        entry.rank = ranks.get(entry.key)
        entry.tied = taken.count(entry.rank) > 1 if entry.rank is not None else False
        if entry.rank is None:
            entry.reason = reasons.get(entry.key) or entry.estimates[RANKED_BY].reason or board.unranked
    board.entries.sort(key=order)
    best = board.entries[0].key
    against = {d.b: d for d in board.differences if d.a == best}
    for entry in board.entries:
        entry.to_best = against.get(entry.key)


def _label(board: Board) -> None:
    """Names of the rows; where the method, preset and training data do not tell them apart, their key does."""
    names = [f"{e.record.method.name} [{e.record.method.preset}]" for e in board.entries]
    full = [(name, e.record.train.name) for name, e in zip(names, board.entries, strict=True)]
    for name, which, entry in zip(names, full, board.entries, strict=True):
        entry.label = name if full.count(which) == 1 else f"{name} {entry.key[:6]}"


def _estimate(entry: Entry, metric: str, left_out: np.ndarray | None) -> Estimate:
    numbers = [s.record.metrics.get(metric) for s in entry.seeds]
    if len(numbers) == 1 and numbers[0] is not None:
        return _as_estimate(numbers[0])
    defined = [number for number in numbers if number is not None and number.value is not None]
    oracle = facts(metric, entry.record).oracle
    if len(defined) < len(numbers):
        reason = next((n.reason for n in numbers if n is not None and n.reason), "")
        if not reason:
            count = sum(number is not None for number in numbers)
            reason = f"measured for {count} of {len(numbers)} seeds" if count else "not measured"
        return Estimate(None, None, None, 0, oracle, reason)
    values = np.array([number.value for number in defined], float)
    n, n_all = defined[0].n, defined[0].n_all
    if left_out is None:
        return Estimate(float(values.mean()), None, None, n, oracle, "no interval over seeds", n_all)
    ends = [
        s.record.brackets.get(metric, (number.value, number.value))
        for s, number in zip(entry.seeds, defined, strict=True)
    ]
    return estimate(
        float(values.mean()),
        left_out,
        n,
        float(entry.record.protocol["level"]),
        oracle,
        n_all=n_all,
        lesions=facts(metric, entry.record).over_lesions,
        bounds=facts(metric, entry.record).bounds,
        bracket=(float(np.mean([low for low, _ in ends])), float(np.mean([high for _, high in ends]))),
        values=values,
    )


def _as_estimate(number: Number) -> Estimate:
    return Estimate(
        number.value, number.low, number.high, number.n, number.oracle, number.reason, number.n_all, number.spread
    )


def _left_out(entry: Entry, lean: bool) -> dict[str, np.ndarray]:
    """Metric -> (S, n) each seed's value without one subject each, of the metrics for which that is stored or cheap."""
    found: dict[str, np.ndarray] = {}
    stored = [one for one in (submission.left_out for submission in entry.seeds) if one is not None]
    if len(stored) < len(entry.seeds):
        return found
    found[RANKED_BY] = np.stack(stored)
    if len(entry.seeds) == 1:
        return found  # its record has the other intervals
    weights = jackknife.weights_of([row["subject"] for row in entry.record.subjects])
    parts = [linear(submission, lean) for submission in entry.seeds]
    for metric in (name for name in parts[0] if all(name in part for part in parts)):
        found[metric] = np.stack([bootstrap.ratio(*part[metric], weights) for part in parts])
    return found


def linear(submission: Submission, lean: bool = False) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Metric -> (n,) numerator and (n,) denominator of each volume, of the shown metrics that are such ratios.

    Args:
        submission: one result.
        lean: leave out those that need spatial counts.
    """
    rows = submission.record.subjects
    dice = [row["dice@val"] for row in rows]
    found = {
        "dice@val": (
            np.array([value or 0.0 for value in dice], float),
            np.array([value is not None for value in dice], float),
        )
    }
    if not lean:
        counted = ratios(submission.spatial)
        found |= {name: counted[name] for name in ("lesion_recall@val", "fa_slice") if name in counted}
        for metric in sorted({name for row in submission.spatial.rows for name in row.measures}):
            pairs = np.array([row.measures.get(metric, (0.0, 0.0)) for row in submission.spatial.rows], float)
            found[metric] = (pairs[:, 0], pairs[:, 1])
    return found


def cohort(record: Record) -> tuple[tuple[str, int, int], ...]:
    """(volume, lesion voxels, background voxels) of each test volume: what must agree to compare."""
    return tuple(
        (row.get("volume", row["subject"]), row["lesion_voxels"], row["brain_voxels"] - row["lesion_voxels"])
        for row in record.subjects
    )


def _conformance(record: Record) -> str:
    method = record.method
    if is_released(method.name, method.origin, method.source, str(record.provenance.get("adbench"))):
        return "passed"
    return method.conformance or "not said"


def _subjects(metrics: Mapping[str, Number]) -> int:
    return max((number.n for number in metrics.values()), default=0)


def by_modality(found: Sequence[Board]) -> list[dict[str, Any]]:
    """Where a dataset is tested in several modalities: the same methods beside each other.

    Returns:
        One table a protocol and dataset: its boards, and rows of (label, training data, {board id: entry}).
    """
    tables = []
    groups: dict[tuple[str, str], list[Board]] = {}
    for board in found:
        groups.setdefault((board.protocol, board.dataset), []).append(board)
    for (protocol, dataset), group in groups.items():
        if len({board.modality for board in group}) < 2:
            continue
        rows: dict[tuple[str, str], dict[str, Entry]] = {}
        for board in group:
            for entry in board.entries:
                rows.setdefault((entry.label, entry.record.train.name), {})[board.id] = entry
        tables.append({"protocol": protocol, "dataset": dataset, "boards": group, "rows": rows})
    return tables
