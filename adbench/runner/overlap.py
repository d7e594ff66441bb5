"""Checks that no subject and no scan is in two of training, validation and test, by name and by pixels."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from adbench.config.cell import Source
from adbench.datasets.io.patient_names import in_set, person, shared_patients
from adbench.datasets.issues import warn
from adbench.datasets.slices import SliceSet
from adbench.datasets.store import similarity
from adbench.datasets.store.case_file import prints
from adbench.datasets.store.slice_store import SliceStore
from adbench.errors import UserError


def sets_of(train: Source, test: Source, train_store: SliceStore, test_store: SliceStore) -> tuple[str, str]:
    """Names of the training and the test data in messages; twice "" where equal names may be one person by their origin.

    That is where the two bear one name, one lies in the other, or they have a file in common.
    """
    if train.title == test.title or train_store is test_store:
        return "", ""
    roots = [Path(source.root).resolve() for source in (train, test) if source.root]
    files = [{row["sha256"] for row in store.manifest["sources"]} for store in (train_store, test_store)]
    nested = len(roots) == 2 and (roots[0].is_relative_to(roots[1]) or roots[1].is_relative_to(roots[0]))
    return ("", "") if nested or files[0] & files[1] else (train.title, test.title)


def check_names(
    train: SliceSet, val: SliceSet, threshold: SliceSet, test: SliceSet, sets: Sequence[str] = ("", "", "", "")
) -> None:
    """Refuse a person with two roles, under whatever name a release of the data knows them.

    The subjects whose healthy slices choose the checkpoint (``val``) may also choose the threshold.

    ``sets`` says what the data set of each role is called: subjects of two of them that have one name, and not one that a
    release gives, are two people unless :func:`check_pixels` finds otherwise.

    Raises:
        UserError: a person has two roles, or two releases meet that share patients under different names.
    """
    roles = (train, val, threshold, test)
    names = [
        {person(in_set(subject, of)): subject for subject in data.subjects}
        for data, of in zip(roles, sets, strict=True)
    ]
    if overlaps := overlapping_ids(*names):
        raise UserError(
            f"{len(overlaps)} subjects have two roles among training, validation and test, e.g. "
            f"{' and '.join(map(repr, overlaps[0]))}: split by subject, or rename them if they are different people."
        )
    learned, measured = ({*one.values(), *other.values()} for one, other in (names[:2], names[2:]))
    if both := shared_patients(learned, measured):
        raise UserError(
            f"Training has subjects of {both[0]} and the test dataset of {both[1]}: they share patients under different "
            "names. Use one of the two."
        )


def overlapping_ids(
    train: dict[str, str], val: dict[str, str], threshold: dict[str, str], test: dict[str, str]
) -> list[list[str]]:
    """The names of every person with two roles, from person -> name of each role.

    Choosing the checkpoint (``val``) and choosing the threshold count as one role.
    """
    learned = val | train
    people = learned.keys() & test.keys() | train.keys() & threshold.keys() | threshold.keys() & test.keys()
    return [sorted({role[key] for role in (learned, threshold, test) if key in role}) for key in sorted(people)]


def check_pixels(
    stores: tuple[SliceStore, SliceStore, SliceStore],
    train: SliceSet,
    val: SliceSet,
    threshold: SliceSet,
    test: SliceSet,
    sets: Sequence[str] = ("", "", "", ""),
) -> None:
    """Refuse slices that occur under the names of two people, and scans with two roles; warn of scans that look alike.

    The ``stores`` are that of ``train`` and ``val``, that of ``threshold``, and that of ``test``; ``sets`` are those of
    :func:`check_names`. Scans of one name in two sets are refused where they look alike, and otherwise are only spoken of.

    Raises:
        UserError: names the two subjects and their roles.
    """
    roles = zip((stores[0], *stores), (train, val, threshold, test), sets, strict=True)
    training, checkpoint, choosing, scored = (_named(prints(store, data.rows), of) for store, data, of in roles)
    sides = (("training", training), ("validation", checkpoint), ("validation", choosing), ("test", scored))
    cases = [(role, *case) for role, side in sides for case in zip(side.subjects, side.hashes, strict=True)]
    for (first, second), count in similarity.shared_slices([case[1:] for case in cases]).items():
        names = " and ".join(f"{cases[index][1]!r} ({cases[index][0]})" for index in (first, second))
        raise UserError(
            f"{names} share {count} slice{'s' * (count > 1)}, pixel by pixel: they are one person under two names. Give both "
            "one name and one role, or leave one of them out."
        )
    for one, its_role, other, other_role in (
        (training, "training", scored, "test"),
        (checkpoint, "validation", scored, "test"),
        (training, "training", choosing, "validation"),
        (choosing, "validation", scored, "test"),
    ):
        for pair in similarity.alike(one, other):
            subjects = one.subjects[pair.one], other.subjects[pair.other]
            names = f"{subjects[0]!r} ({its_role}) and {subjects[1]!r} ({other_role})"
            if pair.certain:
                raise UserError(
                    f"{names} are one scan, hardly changed: their fingerprints correlate by {pair.correlation:.4f}, and "
                    f"copies by {similarity.CERTAIN} or more. Leave one of them out."
                )
            if _plain(subjects[0]) == _plain(subjects[1]):
                raise UserError(
                    f"{names} have one name and look like one person: their fingerprints correlate by {pair.correlation:.3f}. "
                    "Leave one of them out, or rename it if they are different people."
                )
            warn(
                f"{names} may be one person: their fingerprints correlate by {pair.correlation:.3f}. If they are, leave one out."
            )
    learned, measured = ([*a.subjects, *b.subjects] for a, b in ((training, checkpoint), (choosing, scored)))
    people = {_plain(name): name for name in learned}
    if same := sorted(
        {(people[key], name) for name in measured if (key := _plain(name)) in people and people[key] != name}
    ):
        warn(
            f"{len(same)} subjects of two data sets have one name, e.g. {same[0][0]!r} and {same[0][1]!r}: they are taken for "
            "different people, as no scan looks like one of the other. If they are one, leave them out."
        )


_SET = re.compile(r" \(of [^()]*\)$")


def _plain(name: str) -> str:
    """The person that a name means without its data set."""
    return person(_SET.sub("", name))


def _named(found: similarity.Print, dataset: str) -> similarity.Print:
    return replace(found, subjects=[in_set(subject, dataset) for subject in found.subjects])
