"""Checks that no subject and no scan is in two of training, validation and test, by name and by pixels."""

from __future__ import annotations

from adbench.datasets.io.filename_patterns import person, shared_patients
from adbench.datasets.issues import warn
from adbench.datasets.slices import SliceSet
from adbench.datasets.store import similarity
from adbench.datasets.store.case_file import prints
from adbench.datasets.store.slice_store import SliceStore
from adbench.errors import UserError


def check_names(train: SliceSet, val: SliceSet, threshold: SliceSet, test: SliceSet) -> None:
    """Refuse a person with two roles, under whatever name a release of the data knows them.

    The subjects whose healthy slices choose the checkpoint (``val``) may also choose the threshold.

    Raises:
        UserError: a person has two roles, or two releases meet that share patients under different names.
    """
    names = [{person(subject): subject for subject in data.subjects} for data in (train, val, threshold, test)]
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
) -> None:
    """Refuse slices that occur under the names of two people, and scans with two roles; warn of scans that look alike.

    The ``stores`` are that of ``train`` and ``val``, that of ``threshold``, and that of ``test``.

    Raises:
        UserError: names the two subjects and their roles.
    """
    training, checkpoint = (prints(stores[0], data.rows) for data in (train, val))
    choosing, scored = prints(stores[1], threshold.rows), prints(stores[2], test.rows)
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
            names = f"{one.subjects[pair.one]!r} ({its_role}) and {other.subjects[pair.other]!r} ({other_role})"
            if pair.certain:
                raise UserError(
                    f"{names} are one scan, hardly changed: their fingerprints correlate by {pair.correlation:.4f}, and "
                    f"copies by {similarity.CERTAIN} or more. Leave one of them out."
                )
            warn(
                f"{names} may be one person: their fingerprints correlate by {pair.correlation:.3f}. If they are, leave one out."
            )
