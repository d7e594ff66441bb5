"""Splits by subject into training, validation and test, stratified by site, equal on every machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Self

from pydantic import model_validator

from adbench.datasets.base import Split
from adbench.errors import UserError
from adbench.params import ParamSet, param
from adbench.utils.seeds import derive

ROLES: tuple[Split, ...] = ("train", "val", "test")


class FoldParams(ParamSet):
    """Cross-validation: which part of the subjects is tested."""

    folds: int = param(
        0,
        "divide the subjects into this many parts, each of which is tested once; 0: divide them by shares",
        source="adbench",
        ge=0,
        le=100,
    )
    fold: int = param(0, "the part that is tested, from 0; the next one validates", source="adbench", ge=0)

    @model_validator(mode="after")
    def _fold_of_folds(self) -> Self:
        if self.folds == 1 or self.fold >= max(self.folds, 1):
            raise ValueError(
                f"fold {self.fold} of {self.folds} folds: there are folds 0 to folds - 1, of at least 2 folds"
            )
        return self


def nothing_to_train(modality: str, where: str) -> str:
    """The error sentence for data without a healthy training slice in ``where``."""
    return (
        f"There is no healthy {modality} slice to train on in {where}: its split `train` is empty. "
        "Train on another folder with --train-on folder --train-root DIR."
    )


def nothing_to_test(modality: str, where: str, which: str) -> str:
    """The error sentence for data without a test slice; ``which`` says what a slice needs (" with a lesion mask")."""
    return f"There is no {modality} slice{which} in the split `test` of {where}."


def assign(
    sites: Mapping[str, str], val: float, test: float, seed: int, name: str, folds: int = 0, fold: int = 0
) -> dict[str, Split]:
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
        folds: 0; or the parts into which the subjects are dealt in that order, whatever the sizes of the shares: part
            ``fold`` is tested, the next one validates, the others train. Where one of the three roles has no share, the
            others are divided between the rest: without test, part ``fold`` validates; without train, the rest does.
        fold: from 0.

    Raises:
        UserError: fewer subjects than folds, or two folds for three roles.
    """
    shares: dict[Split, float] = {"train": 1 - val - test, "val": val, "test": test}
    wanted = [role for role in ROLES if shares[role] > 1e-9]
    order = sorted(sites, key=lambda subject: (sites[subject], derive(seed, "split", name, subject), subject))
    if folds and sites:
        return _dealt(order, wanted, folds, fold, name)
    members: dict[Split, list[str]] = {role: [] for role in wanted}
    for number, subject in enumerate(order, 1):
        members[max(wanted, key=lambda role: shares[role] * number - len(members[role]))].append(subject)
    for role in ("train", "test", "val"):
        largest = max(wanted, key=lambda other: len(members[other]))
        if role in wanted and not members[role] and len(members[largest]) > 1:
            members[role].append(members[largest].pop())
    return {subject: role for role, subjects in members.items() for subject in subjects}


def _dealt(order: Sequence[str], wanted: Sequence[Split], folds: int, fold: int, name: str) -> dict[str, Split]:
    if len(order) < folds or folds < len(wanted):
        few = f"{len(order)} subjects" if len(order) < folds else f"the roles {', '.join(wanted)}"
        raise UserError(
            f"dataset.folds={folds} does not fit {few} of {name}: every fold needs a subject, and every role a fold."
        )
    first, *rest = reversed(wanted)  # of ("train", "val", "test"): the fold itself is tested
    second = rest[0] if rest else first
    roles = {fold: first, (fold + 1) % folds: second}
    return {subject: roles.get(number % folds, rest[-1] if rest else first) for number, subject in enumerate(order)}
