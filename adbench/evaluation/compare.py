"""Finished runs side by side: which may be compared, which are seeds of one method, and which method is better."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from adbench.context import Progress
from adbench.errors import UserError
from adbench.evaluation.run import Run
from adbench.metrics.compare import Samples, Table, Trained, sample_method
from adbench.metrics.compare import compare as compare_samples
from adbench.results.names import row_names
from adbench.results.record import Record
from adbench.utils.hashing import digest


def same_test(runs: Sequence[Run]) -> None:
    """Refuse runs whose numbers must not stand side by side.

    Raises:
        UserError: two runs differ in test slices or protocol; says which and how.
    """
    for other in runs[1:]:
        if _board(other.record) != _board(runs[0].record):
            sides = [f"{r.label} in {r.folder} ({_describe(r.record)})" for r in (runs[0], other)]
            raise UserError(
                f"{sides[0]} and {sides[1]} were not measured on the same test slices under the same protocol: "
                "report or compare them separately."
            )


def compare(runs: Iterable[Run], metric: str = "auprc", *, progress: Progress | None = None) -> Table:
    """Paired comparison of the methods behind ``runs``; training seeds of one method are pooled.

    Args:
        runs: of two or more methods, all on the same test set.
        metric: as named in the record.
        progress: receives progress.

    Returns:
        Ranks, in which methods that cannot be told from the best are tied, and the paired differences behind them.

    Raises:
        UserError: fewer than two methods, different test sets, too few subjects, or a metric that a method lacks.
    """
    runs = list(runs)
    same_test(runs)
    groups = method_groups(runs)
    samples: dict[str, Samples] = {}
    for done, (name, members) in enumerate(groups.items(), 1):
        trained = [Trained(one.histograms, one.val_histograms, one.spatial, one.metrics) for one in members]
        samples[name] = sample_method(trained)
        (progress or Progress()).update("compare", done, len(groups))
    return compare_samples(samples, metric)


def method_groups(runs: Iterable[Run]) -> dict[str, list[Run]]:
    """Runs grouped by what was run, seeds aside.

    Returns:
        name -> runs; a name says no more than is needed to tell the methods apart (:mod:`adbench.results.names`).
    """
    groups: dict[str, list[Run]] = {}
    for one in runs:
        groups.setdefault(digest([one.record.method.model_dump(), one.record.train.digest]), []).append(one)
    names = row_names([members[0].record for members in groups.values()])
    return {name.label: members for name, members in zip(names, groups.values(), strict=True)}


def _board(record: Record) -> tuple[Any, ...]:
    protocol = record.protocol
    return (protocol.get("name"), protocol.get("version"), record.test.name, record.test.modality, record.test.digest)


def _describe(record: Record) -> str:
    name, version, dataset, modality, test = _board(record)
    return f"protocol {name} v{version}, {dataset} {modality}, {record.test.slices} test slices {test[:8]}"
