"""The rules that a dataset must keep, and the check of a dataset against them."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from adbench.config.protocols import PROTOCOLS
from adbench.datasets.base import Case, Dataset
from adbench.datasets.store.prepare import prepare
from adbench.datasets.store.slice_store import SliceStore
from adbench.errors import UserError
from adbench.testing.rules import Finding, apply, require
from adbench.utils.hashing import digest


@dataclass
class DatasetUnderTest:
    """The subject of the rules of a dataset: its cases and its prepared slices in one modality."""

    dataset: Dataset
    folder: Path

    @property
    def modality(self) -> str:
        """The first sequence that there is."""
        return self.dataset.available()[0]

    @cached_property
    def cases(self) -> list[Case]:
        """Every case of that sequence."""
        return self.dataset.discover(self.modality)

    @cached_property
    def store(self) -> SliceStore:
        """Their prepared slices."""
        return prepare(self.dataset, self.modality, self.folder)


def rule_says_what_it_is(trial: DatasetUnderTest) -> None:
    """info names the licence, how to get the data and the expected layout; parameters are documented."""
    info = trial.dataset.info
    for field in ("name", "version", "licence", "obtain", "layout", "protocol"):
        require(getattr(info, field), f"info.{field} is empty")
    for name, parameter in trial.dataset.Params.model_fields.items():
        require(parameter.description, f"parameter {name} has no description: make it with adbench.params.param")


def rule_offers_known_modalities(trial: DatasetUnderTest) -> None:
    """available() is a non-empty part of info.modalities, and an unknown modality is a UserError."""
    there = trial.dataset.available()
    require(there, "available() is empty")
    unlisted = set(there) - set(trial.dataset.info.modalities)
    require(not unlisted, f"available() gives {sorted(unlisted)}, which info.modalities does not list")
    try:
        trial.dataset.discover("NO-SUCH-SEQUENCE")
    except UserError:
        return
    require(False, "discover accepted a modality that does not exist")


def rule_finds_unique_cases(trial: DatasetUnderTest) -> None:
    """discover gives the same cases each time; no case twice, no subject in two splits."""
    ids = [(case.id, case.split) for case in trial.cases]
    require(ids, "discover found no case")
    require(ids == [(case.id, case.split) for case in trial.dataset.discover(trial.modality)], "two calls differ")
    require(len(set(ids)) == len(ids), "a case appears twice")
    splits: dict[str, str] = {}
    for case in trial.cases:
        require(case.split in ("train", "val", "test"), f"case {case.id} has split {case.split!r}")
        other = splits.setdefault(case.subject, case.split)
        require(other == case.split, f"subject {case.subject} is in {other} and in {case.split}")


def rule_loads_every_case(trial: DatasetUnderTest) -> None:
    """Every case loads into stacks of the contract's shapes, types and range, on one grid, background 0."""
    store = trial.store
    require(len(store), "no slice was prepared")
    for case in store.cases[:: max(1, len(store.cases) // 8)]:
        outside = store.images[case.rows][~store.brains[case.rows]]
        require(not outside.any(), f"case {case.subject}: the image is not 0 outside the brain")
        beyond = store.lesions[case.rows] & ~store.brains[case.rows]
        share = beyond.sum() / max(1, store.lesions[case.rows].sum())
        require(share < 0.5, f"case {case.subject}: {share:.0%} of the lesion lies outside the brain")


def rule_gives_identical_bytes(trial: DatasetUnderTest) -> None:
    """Preparing twice gives the same bytes."""
    with tempfile.TemporaryDirectory() as name:
        again = prepare(trial.dataset, trial.modality, Path(name))
        same = digest([c.digests for c in again.cases]) == digest([c.digests for c in trial.store.cases])
    require(same, "two preparations differ")


def rule_trains_on_healthy_slices(trial: DatasetUnderTest) -> None:
    """The training slices exist (unless the dataset's protocol trains on another dataset) and none of them holds a lesion voxel."""
    info = trial.dataset.info
    elsewhere = info.protocol in PROTOCOLS and PROTOCOLS[info.protocol].train_on not in ("", info.name)
    rows = trial.store.healthy("train").rows
    require(len(rows) or elsewhere, "there is no healthy training slice")
    require(not np.asarray(trial.store.lesions[rows]).any(), "a training slice holds lesion voxels")


RULES = [rule for name, rule in list(globals().items()) if name.startswith("rule_")]


def check_dataset(dataset: Dataset) -> list[Finding]:
    """Check ``dataset`` (with its root and parameters) against every rule.

    Returns:
        One finding per rule, in order; ``problem`` is empty where the rule holds.
    """
    with tempfile.TemporaryDirectory() as name:
        return apply(RULES, DatasetUnderTest(dataset, Path(name)))
