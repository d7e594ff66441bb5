"""Training, validation and test subjects: split by subject, in proportion within every site, equal on every machine."""

from __future__ import annotations

from collections.abc import Mapping

from adbench.datasets.base import Split
from adbench.utils.seeds import derive

ROLES: tuple[Split, ...] = ("train", "val", "test")


def nothing_to_train(modality: str, where: str) -> str:
    """The error sentence for data without a healthy training slice in ``where``."""
    return (
        f"There is no healthy {modality} slice to train on in {where}: its split `train` is empty. "
        "Train on another folder with --train-on folder --train-root DIR."
    )


def nothing_to_test(modality: str, where: str, which: str) -> str:
    """The error sentence for data without a test slice; ``which`` says what a slice needs (" with a lesion mask")."""
    return f"There is no {modality} slice{which} in the split `test` of {where}."


def assign(sites: Mapping[str, str], val: float, test: float, seed: int, name: str) -> dict[str, Split]:
    """A role for every subject.

    Site after site, the subjects are put into an order drawn from the seed, and each takes the role that is farthest
    behind its share. So the counts follow the shares to within one or two subjects, in every site too, whatever the order
    in which subjects are given. Every role with a share gets a subject when there are enough of them; where there are not,
    train comes before test and test before val.

    Args:
        sites: subject -> site ("" when unknown).
        val: share of the subjects that validate.
        test: share of the subjects that are tested; the rest train.
        seed: of the draw.
        name: of the dataset, so that equal ids of two datasets are drawn independently.
    """
    shares: dict[Split, float] = {"train": 1 - val - test, "val": val, "test": test}
    wanted = [role for role in ROLES if shares[role] > 1e-9]
    order = sorted(sites, key=lambda subject: (sites[subject], derive(seed, "split", name, subject), subject))
    members: dict[Split, list[str]] = {role: [] for role in wanted}
    for number, subject in enumerate(order, 1):
        members[max(wanted, key=lambda role: shares[role] * number - len(members[role]))].append(subject)
    for role in ("train", "test", "val"):
        largest = max(wanted, key=lambda other: len(members[other]))
        if role in wanted and not members[role] and len(members[largest]) > 1:
            members[role].append(members[largest].pop())
    return {subject: role for role, subjects in members.items() for subject in subjects}
