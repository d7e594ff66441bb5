"""Compare finished runs: which are comparable, which are seeds of one method, and which method is better."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from adbench.context import Progress
from adbench.errors import UserError
from adbench.evaluation.run import Run
from adbench.metrics.compare import MethodSamples, Table, Trained, sample_method
from adbench.metrics.compare import compare as compare_samples
from adbench.results.names import row_names, told_apart
from adbench.results.record import Record, named_contents
from adbench.utils.hashing import digest

MAX_SIDES, MAX_FOLDERS = 4, 6  # test sets and folders that a refusal names


def same_test(runs: Sequence[Run]) -> None:
    """Refuse runs whose numbers must not stand side by side.

    Raises:
        UserError: two runs differ in test slices or protocol; says which and how, and which may stand together.
    """
    groups: dict[tuple[Any, ...], list[Run]] = {}
    for run in runs:
        groups.setdefault(_board(run.record), []).append(run)
    if len(groups) < 2:
        return
    parts = [run.record.test for run in runs]
    marks: dict[str, str] = {}
    for modality in {part.modality for part in parts}:  # which a side names beside the mark
        own = [part for part in parts if part.modality == modality]
        marks |= zip((part.digest for part in own), told_apart(own), strict=True)
    several_protocols = len({board[:2] for board in groups}) > 1
    sides = []
    for members in groups.values():
        mark = marks[members[0].record.test.digest]
        name, version, dataset, modality, _ = _board(members[0].record)
        what = [f"protocol {name} v{version}"] if several_protocols else []
        folders = [str(run.folder) for run in members[:MAX_FOLDERS]]
        more = f" and {len(members) - MAX_FOLDERS} more" if len(members) > MAX_FOLDERS else ""
        sides.append(f"{', '.join([*what, f'{dataset} {modality}', *filter(None, [mark])])}: {' '.join(folders)}{more}")
    raise UserError(
        "These runs were not measured on the same test slices under the same protocol: name those of one test set alone. "
        + "; ".join(sides[:MAX_SIDES])
        + (f"; and {len(sides) - MAX_SIDES} more test sets." if len(sides) > MAX_SIDES else ".")
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
    samples: dict[str, MethodSamples] = {}
    for done, (name, members) in enumerate(groups.items(), 1):
        trained = [Trained(one.histograms, one.val_histograms, one.spatial, one.metrics) for one in members]
        samples[name] = sample_method(trained)
        (progress or Progress()).update("compare", done, len(groups))
    return compare_samples(samples, metric)


def method_groups(runs: Iterable[Run]) -> dict[str, list[Run]]:
    """Runs grouped by what was run, seeds aside; files of one name that hold something else are not the same.

    Returns:
        name -> runs; a name says no more than is needed to tell the methods apart (:mod:`adbench.results.names`).
    """
    groups: dict[str, list[Run]] = {}
    for one in runs:
        record = one.record
        same = [record.method.model_dump(), record.train.digest, named_contents(record)]
        groups.setdefault(digest(same), []).append(one)
    names = row_names([members[0].record for members in groups.values()])
    return {name.label: members for name, members in zip(names, groups.values(), strict=True)}


def _board(record: Record) -> tuple[Any, ...]:
    protocol = record.protocol
    return (protocol.get("name"), protocol.get("version"), record.test.name, record.test.modality, record.test.digest)
