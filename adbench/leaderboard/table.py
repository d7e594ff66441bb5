"""Rows of a leaderboard from records: grouped so that only comparable numbers stand together, ranked by AUPRC."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from adbench.results.record import Record

HEADLINE = "auprc"
SHOWN = ("auprc", "auroc", "dice@val", "dice@best")


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
    def title(self) -> str:
        """A heading with what the numbers are about."""
        test = self.records[0].test
        return (
            f"{self.protocol} v{self.protocol_version} · {self.dataset} {self.modality} · "
            f"{test.subjects} test subjects ({test.lesion_subjects} with lesion), {test.slices} slices · "
            f"prevalence {self.records[0].prevalence:.4f}"
        )


def _order(record: Record) -> tuple[bool, float, str, int]:
    number = record.metrics.get(HEADLINE)
    value = number.value if number else None
    if value is None:  # no lesion: by the protocol's false alarms, fewest first
        own = [record.metrics[name].value for name in record.protocol.get("metrics", ()) if name in record.metrics]
        return True, next((v for v in own if v is not None), 1.0), record.method.name, record.seed
    return False, -value, record.method.name, record.seed


def boards(records: Iterable[Record]) -> list[Board]:
    """Group records into tables. Different test slices never share one; of equal keys the newest record counts."""
    newest: dict[str, Record] = {}
    for record in sorted(records, key=lambda r: r.created):
        newest[record.run_key] = record
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
    return [Board(*key, tuple(sorted(group, key=_order))) for key, group in sorted(groups.items())]


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


def cell(record: Record, metric: str, *, interval: bool) -> str:
    """``metric`` for a table: "0.412 [0.371, 0.450]", or a dash when it is undefined."""
    number = record.metrics.get(metric)
    if number is None or number.value is None:
        return "—"
    if interval and number.low is None and number.reason:
        return f"{number.value:.3f} ({number.reason})"
    if not interval or number.low is None or number.high is None:
        return f"{number.value:.3f}"
    return f"{number.value:.3f} [{number.low:.3f}, {number.high:.3f}]"
