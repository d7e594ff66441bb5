"""Rows of a leaderboard from records: grouped so that only comparable numbers stand together, best first, by AUPRC
unless another metric is named."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from adbench.metrics.spec import WIDE, MetricSpec
from adbench.results.record import Number, Record, asked, facts

if TYPE_CHECKING:
    from adbench.metrics.evaluate import Estimate

HEADLINE = "auprc"


@dataclass(frozen=True)
class Board:
    """One table: the records that share protocol, test slices and modality, best first."""

    protocol: str
    protocol_version: str
    dataset: str
    modality: str
    test_digest: str
    records: tuple[Record, ...]

    @property
    def asked(self) -> list[MetricSpec]:
        """The metrics that some record was asked for, or that the protocol measures beside those of every run."""
        return [facts(name, *self.records) for name in asked(*self.records)]

    @property
    def title(self) -> str:
        """A heading with what the numbers are about."""
        test = self.records[0].test
        domain = " · every voxel of a slice counts" if self.records[0].protocol.get("domain") == "all" else ""
        return (
            f"{self.protocol} v{self.protocol_version} · {self.dataset} {self.modality} · "
            f"{test.subjects} test subjects ({test.lesion_subjects} with lesion), {test.slices} slices · "
            f"prevalence {self.records[0].prevalence:.4f}{domain}"
        )


def _order(record: Record, by: str) -> tuple[bool, float, str, int]:
    number = record.metrics.get(by)
    value = number.value if number else None
    if value is None:  # no lesion: by the first metric of the protocol's own, false alarms
        for name in record.protocol.get("metrics", ()):
            own = record.metrics[name].value if name in record.metrics else None
            if own is not None:
                return True, own if facts(name, record).less_is_better else -own, record.method.name, record.seed
        return True, float("inf"), record.method.name, record.seed
    return False, value if facts(by, record).less_is_better else -value, record.method.name, record.seed


def boards(records: Iterable[Record], by: str = HEADLINE) -> list[Board]:
    """Group records into tables. Different test slices never share one; of equal keys the newest record counts.

    An older one of the same run may have been asked for other metrics: they stand in its row too.

    Args:
        records: of any runs.
        by: the metric whose best value comes first, whichever way is better.
    """
    newest: dict[str, Record] = {}
    for record in sorted(records, key=lambda r: r.created):
        older = newest.get(record.run_key)
        newest[record.run_key] = record if older is None else _joined(record, older)
    groups: dict[tuple[str, str, str, str, str], list[Record]] = {}
    for record in newest.values():
        key = (
            record.protocol["name"],
            record.protocol["version"],
            record.test.name,
            record.test.modality,
            record.test.digest,
        )
        groups.setdefault(key, []).append(record)
    return [
        Board(*key, tuple(sorted(group, key=lambda record: _order(record, by))))
        for key, group in sorted(groups.items())
    ]


def _joined(record: Record, older: Record) -> Record:
    """``record`` with the metrics that only ``older`` was asked for."""
    parts = {name: part for name, part in older.optional.items() if name not in record.optional}
    numbers = {name: older.metrics[name] for name in parts if name in older.metrics}
    update = {"metrics": {**record.metrics, **numbers}, "optional": {**record.optional, **parts}}
    return record.model_copy(update=update) if parts else record


def row(record: Record) -> dict[str, Any]:
    """One row with stable keys and unrounded numbers."""
    return {
        "method": record.method.name,
        "preset": record.method.preset,
        "seed": record.seed,
        "protocol": record.protocol["name"],
        "dataset": record.test.name,
        "modality": record.test.modality,
        "trained_on": record.train.name,
        "train_slices": record.train.slices,
        "prevalence": record.prevalence,
        "metrics": {name: number.model_dump() for name, number in record.metrics.items()},
        "parameters": record.method.parameters,
        "fit_seconds": record.timing["fit"],
        "score_seconds_per_slice": record.timing["score_per_slice"],
        "run_key": record.run_key,
    }


def number(estimate: Estimate | Number | None, interval: bool = False) -> str:
    """ "0.621 [0.399, 0.741]", the reason where there is no interval, or a dash when it is undefined.

    "≈" before a number whose bins leave more than :data:`adbench.metrics.spec.WIDE` open.
    """
    if estimate is None or estimate.value is None:
        return "—"
    value = f"{'≈' if estimate.spread > WIDE else ''}{estimate.value:.3f}"
    if interval and estimate.low is None and estimate.reason:
        return f"{value} ({estimate.reason})"
    if not interval or estimate.low is None or estimate.high is None:
        return value
    return f"{value} [{estimate.low:.3f}, {estimate.high:.3f}]"


def cell(record: Record, metric: str, *, interval: bool) -> str:
    """``metric`` for a table: "0.412 [0.371, 0.450]", or a dash when it is undefined."""
    return number(record.metrics.get(metric), interval)
