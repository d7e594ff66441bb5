"""Boards: results on one test set beside each other, best first.

A board of runs has a row a run. A board of published results (:mod:`adbench.leaderboard.ranking`) has the seeds of a
method together, and ranks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote

import numpy as np

from adbench.config.protocols import PROTOCOLS
from adbench.leaderboard.submission import FROM_MAPS, Submitted
from adbench.metrics.columns import BOARD_METRICS, FALSE_ALARMS, STRATA_METRICS
from adbench.metrics.evaluate import Estimate
from adbench.metrics.spec import RANKED_BY, MetricSpec
from adbench.results.format import NONE, several
from adbench.results.known import is_released
from adbench.results.names import row_names, told_apart, training_names
from adbench.results.record import Number, Record, asked, facts, optimiser_steps
from adbench.results.rundir import safe

if TYPE_CHECKING:
    import pandas as pd

    from adbench.metrics.compare import Difference


class TestSet(NamedTuple):
    """The properties of a test set that two results must share to stand in one table."""

    protocol: str
    version: str  # of the protocol
    dataset: str
    modality: str
    digest: str  # hash of the test slices


def test_set(record: Record) -> TestSet:
    """The test set and the protocol of a result."""
    protocol, test = record.protocol, record.test
    return TestSet(str(protocol["name"]), str(protocol["version"]), test.name, test.modality, test.digest)


@dataclass
class Entry:
    """A row: one run, or the seeds of one method with its parameters and training data.

    Attributes:
        key: run key, or hash of what the seeds share.
        records: its results, by seed.
        paths: where each lies, relative to the leaderboards; empty for runs.
        estimates: metric -> its number; of several seeds their mean, with an interval over subjects and seeds.
        label: name of the row.
        differs: the parameters that other rows of its method have other values of.
        trained_on: name of what it learned from, told apart from others of its board.
        rank: 1 is best; None where ``reason`` says why there is none.
        tied: whether others share the rank.
        to_best: the paired difference between the board's best and this entry; None for the best and without a rank.
        reason: why it has no rank.
        submitted: who submitted its results, where they say so.
    """

    key: str
    records: list[Record]
    paths: list[str]
    estimates: Mapping[str, Estimate | Number]
    label: str = ""
    differs: dict[str, Any] = field(default_factory=dict)
    trained_on: str = ""
    rank: int | None = None
    tied: bool = False
    to_best: Difference | None = None
    reason: str = ""
    submitted: tuple[Submitted, ...] = ()

    @property
    def from_maps(self) -> bool:
        """Whether it was scored from submitted maps: no method was run, and its costs are not known."""
        return self.record.method.origin == FROM_MAPS

    @property
    def submitters(self) -> str:
        """Their names; "" where they are not stated."""
        return ", ".join(dict.fromkeys(one.submitter for one in self.submitted))

    @property
    def record(self) -> Record:
        """The record of the first seed: all that its seeds share may be read there."""
        return self.records[0]

    @property
    def id(self) -> str:
        """A name that is valid in HTML and distinct among the entries of all boards."""
        return f"e-{self.key}-{self.record.test.digest[:6]}"

    @property
    def href(self) -> str:
        """Link of the numbers: to the record, or to the details of several."""
        return quote(self.paths[0]) if len(self.paths) == 1 else f"#{self.id}"

    def value(self, metric: str) -> float | None:
        """The value of a metric; None where it is undefined or was not measured."""
        number = self.estimates.get(metric)
        return None if number is None else number.value

    @property
    def trained(self) -> bool:
        """Whether optimiser steps were taken, so that another seed gives other numbers."""
        return any(optimiser_steps(record) > 0 for record in self.records)

    @property
    def conformance(self) -> str:
        """Whether the method passed the conformance checks: the worst of its seeds, "not said" by older records."""
        if self.from_maps:
            return FROM_MAPS
        outcomes = {_conformance(record) for record in self.records}
        return next(word for word in ("failed", "not said", "not run", "passed") if word in outcomes)

    @property
    def hours(self) -> float:
        """Hours of training and scoring, mean over seeds."""
        spent = [record.timing["fit"] + record.timing.get("score", 0.0) for record in self.records]
        return float(np.mean(spent)) / 3600

    @property
    def device(self) -> str:
        """ "GPU" where every seed ran on one, else "CPU"."""
        devices = [str(record.provenance.get("device", "")) for record in self.records]
        return "GPU" if all(device.startswith("cuda") for device in devices) else "CPU"

    @property
    def volume_seconds(self) -> float:
        """Seconds to score one test subject, mean over seeds."""
        test = self.record.test
        per_slice = float(np.mean([record.timing["score_per_slice"] for record in self.records]))
        return per_slice * test.slices / test.subjects

    @property
    def costs(self) -> dict[str, float | None]:
        """Hours of one seed by device, and seconds a volume; None where they are not known."""
        names = ("gpu_hours", "cpu_hours", "seconds_per_volume")
        if self.from_maps:
            return dict.fromkeys(names)
        spent = (self.hours if self.device == device else 0.0 for device in ("GPU", "CPU"))
        return dict(zip(names, (*spent, self.volume_seconds), strict=True))

    def stratum(self, grouping: str, group: str, metric: str) -> Estimate | None:
        """A metric within a stratum: mean over seeds; with several seeds, the interval spans those of all."""
        found = [record.strata.get(grouping, {}).get(group, {}).get(metric) for record in self.records]
        numbers = [number for number in found if number is not None and number.value is not None]
        if not numbers or len(numbers) < len(self.records):
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
    """The results on one test set: what stands in it can be compared.

    Attributes:
        test_set: what its results share.
        entries: best first.
        pooled: whether an entry is all seeds of a method, ranked; else it is one run.
        differences: the leader of each rank against every entry ranked below it, by key.
        unranked: why there are no ranks; empty when there are.
        mark: what tells it from another board beside it that has the same name; see :func:`tell_apart`.
        more: metrics that are columns beside those of every board, where some entry has them.
    """

    test_set: TestSet
    entries: list[Entry]
    pooled: bool
    differences: list[Difference] = field(default_factory=list)
    unranked: str = ""
    mark: str = ""
    more: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Name rows and what they learned from by what tells them apart, see :mod:`adbench.results.names`."""
        records, submitters = [entry.record for entry in self.entries], [entry.submitters for entry in self.entries]
        named = row_names(records, seeds=not self.pooled, submitters=submitters)
        for entry, name in zip(self.entries, named, strict=True):
            entry.label, entry.differs = name.label, name.differs
        for entry, source in zip(self.entries, training_names(records), strict=True):
            entry.trained_on = source
        self.sort()

    @property
    def record(self) -> Record:
        """Any record: what is said about the test set is the same in all."""
        return self.entries[0].record

    @property
    def id(self) -> str:
        """A name that is valid in HTML and distinct among boards."""
        parts = (self.test_set.protocol, self.test_set.dataset, self.test_set.modality)
        return "-".join(safe(part).replace(".", "_") for part in parts) + f"-{self.test_set.digest[:6]}"

    @property
    def name(self) -> str:
        """Test set, modality and fold, and the mark that tells it from a namesake."""
        params = self.record.test.params
        fold = f", fold {params.get('fold')} of {params['folds']}" if params.get("folds") else ""
        return f"{self.test_set.dataset} {self.test_set.modality}{fold}{self.mark and f' ({self.mark})'}"

    @property
    def title(self) -> str:
        """Title of the board, in one line."""
        test, everywhere = self.record.test, self.record.protocol.get("domain") == "all"
        lesion = "" if test.lesion_subjects is None else f" ({test.lesion_subjects} with lesion)"
        scored = len(self.record.subjects)  # none in a board of published results
        volumes = f", {scored} volumes" if scored > test.subjects else ""
        return (
            f"{self.name}: {several(test.subjects, 'test subject')}"
            f"{lesion}{volumes}, {several(test.slices, 'slice')}{_pixel(test.mm)}, "
            f"prevalence {self.record.prevalence:.4f}"
            f"{'; every voxel of a slice counts, background included' if everywhere else ''}"
        )

    @cached_property
    def metrics(self) -> list[str]:
        """The columns: those of every board where some entry has a number, the protocol's own, and what was asked for."""
        names = [*BOARD_METRICS, *(() if self.pooled else ("auroc",)), *self.extra]
        wanted = {RANKED_BY, *asked(*self._records)}  # shown without a number too: the cell says why
        return [name for name in names if name in wanted or any(e.value(name) is not None for e in self.entries)]

    @cached_property
    def extra(self) -> list[str]:
        """The metrics of the protocol, those that some entry was asked for, and :attr:`more`."""
        return extra_metrics(self._records, self.more)

    @property
    def _records(self) -> list[Record]:
        return [record for entry in self.entries for record in entry.records]

    def facts(self, metric: str) -> MetricSpec:
        """Facts about a column."""
        return facts(metric, *self._records)

    @cached_property
    def columns(self) -> list[MetricSpec]:
        """Facts about each of :attr:`metrics`."""
        return [self.facts(metric) for metric in self.metrics]

    @cached_property
    def groupings(self) -> dict[str, dict[str, int]]:
        """Grouping -> group -> subjects, where there is more than one group."""
        found = {
            grouping: {group: max((n.n for n in metrics.values()), default=0) for group, metrics in groups.items()}
            for grouping, groups in self.record.strata.items()
        }
        return {grouping: groups for grouping, groups in found.items() if len(groups) > 1}

    def strata_metrics(self, grouping: str) -> list[str]:
        """The metrics that tables of a grouping show: those of every table, and false alarms where any row has them."""
        alarms = () if grouping == "lesion_size" else FALSE_ALARMS
        groups = self.groupings[grouping]
        shown = [m for m in alarms if any(e.stratum(grouping, group, m) for e in self.entries for group in groups)]
        return [*STRATA_METRICS, *shown]

    def shown_in(self, grouping: str) -> list[MetricSpec]:
        """What is known about the columns of a grouping on the page: those of :meth:`strata_metrics` that some entry has."""
        known = {RANKED_BY, *self.metrics, *FALSE_ALARMS}
        return [self.facts(metric) for metric in self.strata_metrics(grouping) if metric in known]

    def seeds(self, entry: Entry) -> str:
        """How many seeds an entry has: "3", or "1 of 3" where a trained one has fewer than others here; of a run, its seed.

        A dash where it was scored from one set of maps: what seed they are of, or whether of any, is not known.
        """
        if not self.pooled:
            return str(entry.record.seed)
        if entry.from_maps and len(entry.records) == 1:
            return NONE
        count, most = len(entry.records), self._most_seeds
        return f"{count} of {most}" if entry.trained and count < most else f"{count}"

    @cached_property
    def _most_seeds(self) -> int:
        return max((len(entry.records) for entry in self.entries if entry.trained), default=0)

    def sort(self, by: str | None = None) -> None:
        """Put the best entry first.

        Entries without the metric stand last, ordered by the protocol's own metrics: a test set without lesions has no
        AUPRC, but false alarms. Equal ones are ordered by method and seed.

        Args:
            by: metric, whichever way is better; None: by rank, then by the ranking metric.
        """
        order = [by or RANKED_BY, *self.record.protocol.get("metrics", ())]
        signs = {metric: 1 if self.facts(metric).less_is_better else -1 for metric in order}

        def key(entry: Entry) -> tuple[Any, ...]:
            rank = (entry.rank is None, entry.rank or 0) if by is None else ()
            values = [(place, entry.value(metric), signs[metric]) for place, metric in enumerate(order)]
            first = next(((place, sign * v) for place, v, sign in values if v is not None), (len(order), 0.0))
            return (*rank, *first, entry.record.method.name, entry.record.seed, entry.key)

        self.entries.sort(key=key)

    def rows(self, metrics: Sequence[str] | None = None) -> list[dict[str, Any]]:
        """One dictionary an entry, with the columns of the CSV file."""
        return [self._row(entry, self.metrics if metrics is None else metrics) for entry in self.entries]

    def _row(self, entry: Entry, metrics: Sequence[str]) -> dict[str, Any]:
        record = entry.record
        numbers: dict[str, float | None] = {}
        for metric in metrics:
            number = entry.estimates.get(metric) or Estimate(None, None, None, 0)
            numbers |= {metric: number.value, f"{metric}_low": number.low, f"{metric}_high": number.high}
        return {
            "protocol": self.test_set.protocol,
            "version": self.test_set.version,
            "dataset": self.test_set.dataset,
            "modality": self.test_set.modality,
            "rank": entry.rank,
            "tied": int(entry.tied),
            "method": record.method.name,
            "preset": record.method.preset,
            "label": entry.label,
            "trained_on": entry.trained_on,
            "seeds": len(entry.records),
            "prevalence": record.prevalence,
            **numbers,
            **entry.costs,
            "key": entry.key,
            "records": " ".join(entry.paths),
            **(
                {"weights_by": record.weights.author if record.weights else ""}
                if any(one.record.weights for one in self.entries)
                else {}
            ),
            **{
                name: " ".join(dict.fromkeys(getattr(one, name) for one in entry.submitted))
                for name in (Submitted.model_fields if any(one.submitted for one in self.entries) else ())
            },
        }

    def to_frame(self) -> pd.DataFrame:
        """The board as a table: a row an entry, the columns of :meth:`rows`; numbers are not rounded."""
        import pandas as pd

        return pd.DataFrame(self.rows()).astype({"rank": "Int64"})


def run_boards(records: Iterable[Record], more: tuple[str, ...] = ()) -> list[Board]:
    """Runs in boards, one a row, with columns for ``more`` metrics.

    Of several records of one run the newest counts, with the optional metrics of all.
    """
    newest: dict[str, Record] = {}
    for record in sorted(records, key=lambda record: record.created):
        older = newest.get(record.run_key)
        newest[record.run_key] = record if older is None else _joined(record, older)
    groups: dict[TestSet, list[Entry]] = {}
    for record in newest.values():
        groups.setdefault(test_set(record), []).append(Entry(record.run_key, [record], [], record.metrics))
    ordered = sorted(groups.items(), key=lambda group: (group[0][:4], _fold(group[1][0].record), group[0]))
    return tell_apart([Board(where, entries, pooled=False, more=more) for where, entries in ordered])


def _fold(record: Record) -> int:
    fold = record.test.params.get("fold")
    return fold if isinstance(fold, int) else 0


def tell_apart(boards: list[Board]) -> list[Board]:
    """``boards``, those of one protocol and name marked by what tells their data apart (:mod:`adbench.results.names`)."""
    groups: dict[tuple[str, str], list[Board]] = {}
    for board in boards:
        groups.setdefault((board.test_set.protocol, board.name), []).append(board)
    for group in groups.values():
        parts = [record.test for board in group for record in board._records]
        words = dict(zip((part.digest for part in parts), told_apart(parts), strict=True))
        for board in group:
            board.mark = words[board.test_set.digest]
    return boards


def _joined(record: Record, older: Record) -> Record:
    """``record`` with the metrics that only ``older`` was asked for."""
    parts = {name: part for name, part in older.optional.items() if name not in record.optional}
    numbers = {name: older.metrics[name] for name in parts if name in older.metrics}
    update = {"metrics": {**record.metrics, **numbers}, "optional": {**record.optional, **parts}}
    return record.model_copy(update=update) if parts else record


def _pixel(mm: tuple[float, float] | None) -> str:
    """ ", 1 mm a pixel"; empty where it is unknown."""
    if mm is None:
        return ""
    rows, columns = (f"{value:.3g}" for value in mm)
    return f", {rows if rows == columns else f'{rows} x {columns}'} mm a pixel"


def _conformance(record: Record) -> str:
    method = record.method
    if is_released(method.name, method.origin, method.source):
        return "passed"
    return method.conformance or "not said"


def extra_metrics(records: Sequence[Record], more: Iterable[str] = ()) -> list[str]:
    """The metrics beside :data:`adbench.metrics.columns.BOARD_METRICS` in tables of some records of one protocol: its own, those that were asked for, ``more``."""
    protocol = records[0].protocol
    known = PROTOCOLS.get(str(protocol["name"]))
    names = dict.fromkeys([*(known.columns if known else ()), *protocol.get("metrics", ()), *asked(*records), *more])
    return [name for name in names if name not in BOARD_METRICS]
