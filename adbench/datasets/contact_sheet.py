"""Contact sheets: prepared slices of some cases in one picture, with the contours of their masks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from adbench.datasets.pixels import StoredCase
from adbench.datasets.store.slice_store import SliceStore
from adbench.errors import unknown
from adbench.utils.files import replacing


def choose_cases(store: SliceStore, subjects: Sequence[str], count: int) -> list[StoredCase]:
    """The cases to show: those of ``subjects``, or ``count`` of them, those with outlying figures first, then spread evenly.

    Raises:
        UserError: a subject (or case id) is not in the store.
    """
    if subjects:
        known = {name for case in store.cases for name in (case.subject, case.id)}
        for name in subjects:
            if name not in known:
                raise unknown(f"subject of {store.manifest['dataset']} {store.modality}", name, known)
        return [case for case in store.cases if case.subject in subjects or case.id in subjects]
    odd = list(dict.fromkeys(found["case"] for found in store.manifest.get("outliers", [])))[: count // 2]
    first = [case for case in store.cases if case.id in odd]
    others = [case for case in store.cases if case.id not in odd]
    places = np.linspace(0, len(others) - 1, min(count - len(first), len(others))).round().astype(int)
    return first + [others[place] for place in places]


def choose_slices(case: StoredCase, count: int) -> list[int]:
    """Positions of ``count`` slices of a case, evenly spread; the one with the largest lesion replaces its neighbour."""
    total = len(case.slices)
    spread = (
        np.linspace(0, total - 1, min(count, total) + 2).round().astype(int)[1:-1]
        if total > count
        else np.arange(total)
    )
    chosen = [int(place) for place in spread]
    if any(case.lesion_voxels):
        largest = int(np.argmax(case.lesion_voxels))
        if largest not in chosen:
            chosen[int(np.argmin(np.abs(np.array(chosen) - largest)))] = largest
    return sorted(set(chosen))


def contact_sheet(
    store: SliceStore, path: Path, *, subjects: Sequence[str] = (), count: int = 8, slices: int = 8
) -> int:
    """Write a PNG with one row a case: slices from the lowest to the highest, brain contour cyan, lesion contour red.

    The patient's left is on the left of the picture.

    Args:
        store: the open store.
        path: the PNG.
        subjects: subjects or case ids to show; empty: a choice.
        count: how many cases, when none is named.
        slices: per case.

    Returns:
        The number of cases shown.

    Raises:
        UserError: a subject is not in the store.
    """
    from matplotlib.figure import Figure

    cases = choose_cases(store, subjects, count)
    shown = np.zeros(store.shape, bool)
    for case in cases:
        shown |= np.asarray(store.brains[case.rows[::5]]).any(axis=0)
    down, across = brain_box(shown)
    figure = Figure(figsize=(1.35 * slices, 1.62 * len(cases) + 0.5), dpi=120, layout="constrained")
    axes = figure.subplots(len(cases), 1, squeeze=False)[:, 0]
    odd = {(found["case"], found["figure"]) for found in store.manifest.get("outliers", [])}
    for axis, case in zip(axes, cases, strict=True):
        rows = case.start + np.array(choose_slices(case, slices))
        image, brain, lesion = (
            np.asarray(a[rows])[:, down, across] for a in (store.images, store.brains, store.lesions)
        )
        axis.imshow(_row(image.astype(np.float32)), cmap="gray", vmin=0, vmax=1)
        for mask, colour, width in ((brain, "cyan", 0.5), (lesion, "red", 0.9)):
            whole = _row(mask)
            if whole.any() and not whole.all():
                axis.contour(whole, levels=[0.5], colors=colour, linewidths=width)
        axis.set_title(_caption(case, odd), fontsize=7, loc="left", pad=2)
        width = image.shape[2]
        axis.set_xticks([width * (i + 0.5) for i in range(len(rows))], [str(case.slices[r - case.start]) for r in rows])
        axis.tick_params(labelsize=5, length=0, pad=1)
        axis.set_yticks([])
        for spine in axis.spines.values():
            spine.set_visible(False)
    figure.suptitle(
        f"{store.manifest['dataset']} {store.modality}, {store.shape[0]} x {store.shape[1]} px: brain cyan, lesion red, "
        "left is left",
        fontsize=8,
    )
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None})
    return len(cases)


def brain_box(brain: np.ndarray, margin: int = 4) -> tuple[slice, slice]:
    """The box around the brain, so that the page is spent on tissue."""
    if not brain.any():
        return slice(None), slice(None)
    cuts = []
    for axis in (1, 0):
        where = np.flatnonzero(brain.any(axis=axis))
        cuts.append(slice(max(0, where[0] - margin), where[-1] + 1 + margin))
    return cuts[0], cuts[1]


def _row(stack: np.ndarray) -> np.ndarray:
    return np.concatenate(list(stack), axis=1)


_FIGURES = {
    "brain_ml": "brain {:.0f} ml",
    "lesion_ml": "lesion {:.2f} ml",
    "registration_overlap": "overlap with the template {:.2f}",
}


def _caption(case: StoredCase, odd: set[tuple[str, str]]) -> str:
    parts = [f"{case.id}  {case.split}{f'  {case.site}' if case.site else ''}"]
    for name, text in _FIGURES.items():
        if name in case.quality:
            parts.append(text.format(case.quality[name]) + (" (!)" if (case.id, name) in odd else ""))
    return "   ".join([*parts, *case.flags]).replace("$", r"\$")  # a name is no formula
