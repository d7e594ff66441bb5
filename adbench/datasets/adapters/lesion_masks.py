"""Lesion masks: integer labels, and several masks of one scan merged by vote."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from pathlib import PurePosixPath

import numpy as np

from adbench.datasets.io.archive import File
from adbench.datasets.preprocessing.recipe import lesion_of
from adbench.errors import UserError

LABEL_TOLERANCE = 1e-3  # by which a label may differ from a whole number: rounding in floats
LABELS_VERSION = "2"  # raised when a mask may be read as another one
_LARGEST = 2**31 - 1  # label


def whole_numbers(data: np.ndarray, file: File) -> np.ndarray:
    """``data`` as integers from 0.

    Raises:
        UserError: a value differs from a whole number by more than :data:`LABEL_TOLERANCE`, is below 0 or above 2^31 - 1:
            names the file and the value.
    """
    rounded = data if data.dtype.kind in "iub" else np.rint(data)
    wrong = np.abs(data - rounded) > LABEL_TOLERANCE if rounded is not data else np.False_
    if np.any(wrong):
        value = float(data[wrong][0])
        raise UserError(f"{file} holds the value {value:g}, expected whole numbers: it is not a label mask.")
    least, most = float(rounded.min(initial=0)), float(rounded.max(initial=0))
    if least < 0:  # everything but 0 would count
        raise UserError(
            f"{file} holds the value {least:g}, where 0 is the background and values above mark something: write it again "
            "with 0."
        )
    if most > _LARGEST:
        raise UserError(f"{file} holds the value {most:g}, which is too large for a label: it is not a label mask.")
    if rounded is data:
        return data
    return np.asarray(rounded, np.int16 if most < 2**15 else np.int32)


def labels_in(masks: Iterable[np.ndarray]) -> tuple[int, ...]:
    """The values above 0 of whole numbers, ascending."""
    return tuple(sorted({int(label) for mask in masks for label in np.unique(mask.T[mask.T != 0])}))


def not_there(asked: Iterable[int], held: Iterable[Collection[int]], root: object) -> str:
    """Message where ``dataset.lesion_labels`` names labels that no mask holds; "" where each is in one, or no mask is known.

    Args:
        asked: the labels.
        held: :func:`labels_in` each mask.
        root: of the data, for the sentence.
    """
    masks = list(held)
    found = sorted({label for mask in masks for label in mask})
    missing = sorted(set(asked) - set(found))
    if not (masks and missing):
        return ""
    shown = ", ".join(map(str, found[:20])) + (", ..." if len(found) > 20 else "")
    return (
        f"dataset.lesion_labels asks for {', '.join(map(str, missing))}, which no lesion mask in {root} holds: "
        f"{f'their labels are {shown}; name those that are lesion' if found else 'they are all empty'}."
    )


def named_by(masks: Sequence[File], word: str) -> tuple[File, ...]:
    """The ``masks`` that ``word`` means: a whole word of their names, else a part of them, else a folder above them.

    ``L`` is the left one of ``p1_L_seg`` and ``p1_R_seg``, and ``rater1`` is not rater 10.
    """
    wanted = word.casefold()
    names = [file.name.casefold() for file in masks]
    by_rule = (
        [wanted in re.split(r"[\W_]+", name) for name in names],
        [wanted in name for name in names],
        [wanted in PurePosixPath(str(file).casefold()).parts[:-1] for file in masks],
    )
    fits = next((fits for fits in by_rule if any(fits)), ())
    return tuple(file for file, fit in zip(masks, fits, strict=False) if fit)


def words_for(masks: Sequence[File]) -> str:
    """The words by which :func:`named_by` takes one of ``masks`` each: "L or R"; "" where one of them has none."""
    words = []
    for file in masks:
        inside = sorted(re.split(r"[\W_]+", file.name), key=str.isdigit)
        folders = reversed(PurePosixPath(str(file)).parts[:-1])
        found = next((word for word in (*inside, *folders) if word and named_by(masks, word) == (file,)), "")
        if not found:
            return ""
        words.append(found)
    shown = words[:_OFFERED]
    return f"{', '.join(shown)}, ..." if shown != words else " or ".join([", ".join(words[:-1]), words[-1]])


_OFFERED = 4
_SIDES = (("left", "right"), ("l", "r"), ("lh", "rh"))


def no_majority(masks: Sequence[File]) -> str:
    """Why a majority of ``masks`` of one scan says nothing: they are two, or of two sides by a word of their names; else ""."""
    words = [set(re.split(r"[\W_]+", str(file).casefold())) for file in masks]
    own = set().union(*words) - set.intersection(*words)
    if any({left, right} <= own for left, right in _SIDES):
        return "are of two sides, which have no majority"
    return "are two, of which neither is a majority" if len(masks) == 2 else ""


def not_one(masks: Sequence[File], wanted: str, case: str) -> str:
    """Why ``dataset.lesion_masks=wanted`` makes no mask of those of ``case``, and what does."""
    one = words_for(masks) or "a word in the name, or the folder, of one"
    why, said = no_majority(masks), f"dataset.lesion_masks={wanted}"
    there = f"{case} ({', '.join(file.name for file in masks)})"
    if wanted == "majority":
        return f"{said}: the lesion masks of {there} {why}: say union, or {one}."
    what = "several lesion masks" if len(named_by(masks, wanted)) > 1 else "no lesion mask"
    return f"{said} is in the name of {what} of {there}: say union, {'' if why else 'majority, '}or {one}."


def merged(
    masks: Sequence[np.ndarray], share: float, labels: tuple[int, ...] | None, not_counted: tuple[int, ...]
) -> np.ndarray:
    """Several masks of one scan as one: 1 lesion, 2 neither lesion nor healthy, 0 healthy.

    Args:
        masks: of one shape, whole numbers.
        share: of the masks; lesion is where more say so, and what more of them do not call healthy is not healthy.
        labels: that are lesion; None: every value but 0 and ``not_counted``.
        not_counted: labels that are neither lesion nor healthy.
    """
    lesion, ill = (np.zeros(masks[0].shape, np.uint16) for _ in range(2))
    for mask in masks:
        marked = lesion_of(mask, labels, not_counted)
        lesion += marked
        ill += marked | np.isin(mask, not_counted)
    most = share * len(masks)
    return np.where(lesion > most, 1, np.where(ill > most, 2, 0)).astype(np.uint8)
