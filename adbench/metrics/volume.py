"""One volume: its stacked slices, checked, and the connected components of a mask of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from adbench.errors import UserError
from adbench.metrics.counting import as_bool
from adbench.metrics.score_bins import as_array

JOINED = 1.5  # neighbouring slices are joined up to this multiple of their volume's median distance


@dataclass(frozen=True)
class Volume:
    """The stacked slices of one volume (one session of one subject), S of them on the prepared grid.

    Attributes:
        maps: (S, H, W) scores in the type that the map has, higher is more anomalous, finite inside the brain.
        lesion: (S, H, W) bool, inside the brain.
        brain: (S, H, W) bool.
        slices: (S,) slice indices, or positions in mm, ascending.
        recon: (S, H, W) float32 pseudo-healthy image in [0, 1], or None.
        image: (S, H, W) float32 input image in [0, 1], or None.
        spacing: mm from one slice index to the next, from row to row, from column to column; None where it is unknown.
    """

    maps: np.ndarray
    lesion: np.ndarray
    brain: np.ndarray
    slices: np.ndarray
    recon: np.ndarray | None = None
    image: np.ndarray | None = None
    spacing: tuple[float, float, float] | None = None

    def components(self, mask: np.ndarray) -> tuple[np.ndarray, int]:
        """Connected components of an (S, H, W) bool ``mask`` of this volume, as every lesion metric counts them.

        Returns:
            (S, H, W) labels from 1, and how many; see :func:`components`.
        """
        return components(mask, breaks(self.slices))


def checked_volume(
    subject: str,
    maps: object,
    lesion: object,
    brain: object,
    slices: Sequence[int] | np.ndarray | None,
    recon: object = None,
    image: object = None,
    spacing: tuple[float, float, float] | None = None,
) -> Volume:
    """A :class:`Volume` from arrays or tensors, in slice order.

    Args:
        subject: for messages.
        maps: (S, H, W) scores.
        lesion: (S, H, W) bool or 0/1; voxels outside the brain are not evaluated.
        brain: (S, H, W) bool or 0/1.
        slices: (S,) distinct slice indices, or positions in mm; None for 0, 1, 2, ...
        recon: (S, H, W) or None; with ``image``.
        image: (S, H, W) or None.
        spacing: mm from one slice index to the next, from row to row, from column to column; None where unknown.

    Raises:
        UserError: shapes differ, masks are not binary, the brain mask is empty, or a score in the brain is not finite.
    """
    where = f"case {subject!r}"
    stack = as_array(maps)
    masks = as_bool(brain, f"{where} (brain)"), as_bool(lesion, where)
    pictures = {"reconstruction": recon, "image": image}
    arrays = {"brain mask": masks[0], "lesion mask": masks[1]}
    arrays |= {name: as_array(value) for name, value in pictures.items() if value is not None}
    if stack.ndim != 3:
        raise UserError(f"Maps of {where} have shape {stack.shape}: give slices x height x width.")
    for name, array in arrays.items():
        if array.shape != stack.shape:
            raise UserError(f"Maps of {where} have shape {stack.shape} but its {name} has shape {array.shape}.")
    indices = np.arange(len(stack)) if slices is None else np.asarray(slices)
    if indices.shape != (len(stack),) or len(set(indices.tolist())) != len(stack):
        raise UserError(f"Case {subject!r} has {len(stack)} maps but its slice indices are {indices.tolist()}.")
    if not masks[0].any():
        raise UserError(f"Case {subject!r} has no brain voxel: its brain mask is empty. Correct the mask.")
    wrong = int(np.count_nonzero(~np.isfinite(stack[masks[0]])))
    if wrong:
        raise UserError(
            f"Scores of {where} hold {wrong} NaN or infinite value{'s' if wrong > 1 else ''} inside the brain: "
            "repair the map; nothing is replaced silently."
        )
    order = np.argsort(indices)
    if (order != np.arange(len(order))).any():
        stack, masks, indices = stack[order], (masks[0][order], masks[1][order]), indices[order]
        arrays = {name: array[order] for name, array in arrays.items()}
    return Volume(
        stack, masks[1] & masks[0], masks[0], indices, arrays.get("reconstruction"), arrays.get("image"), spacing
    )


def breaks(slices: np.ndarray) -> np.ndarray:
    """Where a volume is cut: (k,) places p such that nothing is joined between its planes p - 1 and p.

    Two neighbours adjoin when their distance is at most 1.5 times the median distance of the volume's own neighbours.
    That is a ratio: for slices of one regular grid, as all volumes here are, indices and millimetres give the same.

    Args:
        slices: (S,) slice indices, or positions in mm, ascending.
    """
    gaps = np.diff(slices)
    if len(gaps) < 2:
        return np.zeros(0, np.int64)
    return np.flatnonzero(gaps > JOINED * np.median(gaps) * (1 + 1e-9)) + 1  # positions in mm carry round-off


def components(mask: np.ndarray, cuts: np.ndarray | None = None) -> tuple[np.ndarray, int]:
    """Connected components: voxels that touch by a face, an edge or a corner (26 neighbours).

    Args:
        mask: (S, H, W) bool.
        cuts: from :func:`breaks`; None: every plane adjoins the next.

    Returns:
        (S, H, W) labels from 1, and how many.
    """
    import cc3d

    if cuts is None or not len(cuts):
        labels, count = cc3d.connected_components(mask, connectivity=26, return_N=True)
        return labels, int(count)
    # An empty plane in each cut keeps apart what lies on its two sides.
    labels, count = cc3d.connected_components(np.insert(mask, cuts, False, axis=0), connectivity=26, return_N=True)
    return np.delete(labels, cuts + np.arange(len(cuts)), axis=0), int(count)
