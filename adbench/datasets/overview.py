"""``adbench data info``: the cases of a dataset on disk, and the roles of its subjects."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from adbench.datasets.adapters.volumes import IndexedVolumes
from adbench.datasets.base import Case, Dataset
from adbench.datasets.io.archive import size_of
from adbench.datasets.splits import ROLES


def id_lists(cases: Iterable[Case]) -> dict[str, list[str]]:
    """Subjects by role, sorted."""
    lists: dict[str, set[str]] = {role: set() for role in ROLES}
    for case in cases:
        lists[case.split].add(case.subject)
    return {role: sorted(subjects) for role, subjects in lists.items()}


def overview(dataset: Dataset) -> dict[str, Any]:
    """Counts, sites, sessions, labels, flags, exclusions and id lists, as plain JSON values; nothing is decoded.

    Args:
        dataset: with its root and parameters.

    Raises:
        UserError: from the dataset.
    """
    info = dataset.info
    modalities: dict[str, Any] = {}
    sites: dict[str, dict[str, set[str]]] = defaultdict(lambda: {role: set() for role in ROLES})
    flags: dict[str, set[str]] = defaultdict(set)
    for modality in dataset.available():
        cases = dataset.discover(modality)
        modalities[modality] = {
            "cases": len(cases),
            "bytes": sum(size_of(file) for file in {f for case in cases for f in case.files}),
            "subjects": id_lists(cases),
            "sessions": _sessions(cases),
            "healthy": _healthy(cases),
            "left_out": dataset.exclusions(modality),
        }
        for case in cases:
            sites[case.site][case.split].add(case.subject)
            for flag in case.flags:
                flags[flag].add(case.subject)
    labels = dataset.expected.labels if isinstance(dataset, IndexedVolumes) else {}
    return {
        "dataset": info.name,
        "version": info.version,
        "root": str(dataset.root) if dataset.root else None,
        "licence": info.licence,
        "citation": info.citation,
        "protocol": info.protocol,
        "params": dataset.params.model_dump(mode="json"),
        "modalities": modalities,
        "sites": {site: {role: len(ids) for role, ids in sites[site].items()} for site in sorted(sites)},
        "labels": {str(value): what for value, what in labels.items()},
        "flags": {flag: sorted(subjects) for flag, subjects in sorted(flags.items())},
    }


def _healthy(cases: Iterable[Case]) -> dict[str, list[str]]:
    """Why subjects of training and validation count as healthy -> those subjects."""
    found: dict[str, set[str]] = defaultdict(set)
    for case in cases:
        if case.split != "test":
            found[case.healthy or "slices without lesion, by their mask"].add(case.subject)
    return {why: sorted(subjects) for why, subjects in sorted(found.items())}


def _sessions(cases: Iterable[Case]) -> dict[str, list[str]]:
    """Subject -> sessions, of those that have more than one."""
    found: dict[str, list[str]] = defaultdict(list)
    for case in cases:
        found[case.subject].append(case.session)
    return {subject: sorted(sessions) for subject, sessions in sorted(found.items()) if len(sessions) > 1}
