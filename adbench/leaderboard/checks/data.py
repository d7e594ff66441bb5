"""What can be checked of the subjects and slices of one published result: roles, lists, and what this release knows of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from adbench.datasets.io.patient_names import in_set, person, shared_patients
from adbench.datasets.preprocessing.recipe import MAX_SQUARE
from adbench.leaderboard.checks.issue import RecordIssue, differences
from adbench.leaderboard.submission import FROM_MAPS, Submission
from adbench.results.known import lists, slices
from adbench.results.record import Record

ROLES = ("train", "val", "threshold", "test")


def check_splits(submission: Submission) -> Iterator[RecordIssue]:
    """The lists of subjects have the lengths that the record states, and no subject has two roles."""
    for role in ROLES:
        yield from _check_role(submission, role)
    yield from _check_distinct(submission)
    yield from _check_rows(submission)


def _check_role(submission: Submission, role: str) -> Iterator[RecordIssue]:
    """What the record states of the slices of one role, and the list of its subjects."""
    part, subjects = getattr(submission.record, role), getattr(submission.content.splits, role)
    if subjects != sorted(set(subjects)):
        yield RecordIssue(f"splits.{role}", why="its subjects are not sorted and distinct")
    stated = part.subjects if part is not None else 0
    yield from differences(f"{role}.subjects", stated, len(subjects), f"length of splits.{role}")
    if part is None:
        return
    if part.slices < part.subjects:
        yield RecordIssue(f"{role}.slices", part.slices, why=f"fewer than {part.subjects} subjects")
    if not 0 <= (part.lesion_subjects or 0) <= part.subjects:
        yield RecordIssue(f"{role}.lesion_subjects", part.lesion_subjects, why=f"of {part.subjects} subjects")
    if min(part.grid) < 1:
        yield RecordIssue(f"{role}.grid", list(part.grid), why="a slice has at least one pixel")
    if part.mm is not None and not all(0 < mm <= MAX_SQUARE for mm in part.mm):
        yield RecordIssue(f"{role}.mm", list(part.mm), why=f"a pixel is larger than 0 and at most {MAX_SQUARE} mm wide")


def _check_distinct(submission: Submission) -> Iterator[RecordIssue]:
    """No person has two roles, under another name either."""
    record, splits = submission.record, submission.content.splits
    train, fitted, threshold, test = (
        {person(in_set(subject, part.name if part else "")): subject for subject in own}
        for own, part in (
            (splits.train, record.train),
            ([*splits.val, *splits.train], record.train),
            (splits.threshold, record.threshold),
            (splits.test, record.test),
        )
    )
    for field, one, other in (
        ("splits.train", fitted, test),
        ("splits.train", train, threshold),
        ("splits.threshold", threshold, test),
    ):
        both = sorted(one.keys() & other.keys())
        if both:
            names = sorted({repr(one[both[0]]), repr(other[both[0]])})
            yield RecordIssue(field, why=f"{len(both)} subjects have two roles, e.g. {' and '.join(names)}")
    shared = shared_patients(set(fitted.values()), {*test.values(), *threshold.values()})
    if shared:
        yield RecordIssue("splits.train", why=f"{shared[0]} and {shared[1]} share patients under different names")


def _check_rows(submission: Submission) -> Iterator[RecordIssue]:
    """The rows of the record and the histograms are of the test subjects."""
    record, splits = submission.record, submission.content.splits
    subjects = sorted({str(row.get("subject")) for row in record.subjects})
    volumes = [row.get("volume", row.get("subject")) for row in record.subjects]
    for field, stored, expected, what in (
        ("subjects", subjects, splits.test, "subjects of splits.test"),
        ("histograms.subjects", submission.content.histograms.subjects, volumes, "volumes of subjects"),
    ):
        if stored != expected:
            odd = sorted({str(s) for s in stored} ^ {str(s) for s in expected}) or ["the order, or one is there twice"]
            yield RecordIssue(field, why=f"they are not the {what}: {odd[0]}")


def check_data(submission: Submission) -> Iterator[RecordIssue]:
    """Slices that ship or were published have their name, and slices with such a name are those; published lists are kept."""
    record, splits = submission.record, submission.content.splits
    by_digest = {
        (_kind(role), roles[role]["digest"]): (dataset, modality, roles[role])
        for dataset, modalities in slices().items()
        for modality, roles in modalities.items()
        for role in ROLES
    }
    for role in ROLES:
        part = getattr(record, role)
        if part is None or not (part.digest or record.method.origin != FROM_MAPS):  # said, and known by its name alone
            continue
        shipped = slices().get(part.name, {}).get(part.modality)
        found = by_digest.get((_kind(role), part.digest))
        if found is not None:
            yield from _known_slices(submission, role, *found)
        elif shipped and part.params.keys() != shipped.get("params", part.params).keys():
            odd = ", ".join(sorted(part.params.keys() ^ shipped["params"].keys()))
            yield RecordIssue(f"{role}.params", why=f"{part.name} has not these parameters: {odd} missing or unknown")
        elif (
            shipped
            and part.params == shipped.get("params", part.params)
            and _chosen_alike(record, role, shipped["protocol"])
        ):
            made = "as adbench makes them" if "params" in shipped else "as they were published"
            why = f"{role} slices of {part.name} {part.modality} {made}"
            yield RecordIssue(f"{role}.digest", part.digest, shipped[role]["digest"], why)
    for role, subjects in lists().get(str(record.protocol.get("name")), {}).items():
        if record.method.origin == FROM_MAPS and not getattr(splits, role):
            continue
        yield from _same_list(f"splits.{role}", getattr(splits, role), subjects, "the list that was published")


def _kind(role: str) -> str:
    """Slices of the same pixels have one digest in training and validation, and another where masks are looked at."""
    return "train" if role == "val" else role


def _chosen_alike(record: Record, role: str, protocol: str) -> bool:
    """Whether the slices of a role are those of ``protocol``: it chooses those of threshold and test."""
    return _kind(role) == "train" or record.protocol.get("name") == protocol


def _known_slices(
    submission: Submission, role: str, dataset: str, modality: str, facts: dict[str, Any]
) -> Iterator[RecordIssue]:
    """What the record says about slices that adbench knows, against what they are."""
    part, why = getattr(submission.record, role), f"of the slices with this digest, {dataset} {modality}"
    yield from differences(f"{role}.name", part.name, dataset, why)
    yield from differences(f"{role}.modality", part.modality, modality, why)
    yield from differences(f"{role}.slices", part.slices, facts["slices"], why)
    yield from differences(f"{role}.grid", list(part.grid), facts["grid"], why)
    if "lesion_subjects" in facts:
        yield from differences(f"{role}.lesion_subjects", part.lesion_subjects, facts["lesion_subjects"], why)
    subjects = getattr(submission.content.splits, role)
    yield from _same_list(f"splits.{role}", subjects, facts["subjects"], f"{dataset} {modality}")
    if "voxels" in facts:
        yield from _same_voxels(submission, role, facts["voxels"])


def _same_list(field: str, stored: list[str], expected: list[str], whose: str) -> Iterator[RecordIssue]:
    if stored == expected:
        return
    missing, odd = sorted(set(expected) - set(stored)), sorted(set(stored) - set(expected))
    what = [
        f"{len(names)} {kind}, e.g. {names[0]}" for kind, names in (("missing", missing), ("not in it", odd)) if names
    ]
    yield RecordIssue(field, why=f"it is not {whose}: {'; '.join(what) or 'another order'}")


def _same_voxels(submission: Submission, role: str, voxels: dict[str, list[int]]) -> Iterator[RecordIssue]:
    try:
        counts = submission.test if role == "test" else submission.validation
    except ValueError:
        return  # check_numbers says so
    if counts is None:
        yield RecordIssue("validation", why=f"there is none, and these slices have {len(voxels)} subjects")
        return
    field, parts = "histograms", {name: (one.n_positive, one.n_negative) for name, one in counts.items()}
    expected = {name: (lesion, other) for name, (lesion, other) in voxels.items()}
    if role == "threshold":  # of which the file keeps sums only
        pool, field = counts.pooled(), "validation"
        parts = {"these slices": (pool.n_positive, pool.n_negative)}
        expected = {"these slices": (sum(v[0] for v in voxels.values()), sum(v[1] for v in voxels.values()))}
    for name, true in expected.items():
        stored = parts.get(name, (0, 0))
        if stored != true:
            why = f"its {stored[0]} lesion and {stored[1]} other voxels are not the {true[0]} and {true[1]} of {name}"
            yield RecordIssue(field, why=why)
