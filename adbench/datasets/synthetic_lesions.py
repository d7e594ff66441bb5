"""Synthetic lesions in healthy slices: labels where there are no annotated lesions.

They serve to choose between parameters, not to measure methods: what finds these blobs need not find real lesions. There
are four kinds, so that no single cue (brightness, say) is enough:

* ``bright`` and ``dark``: the intensity is raised or lowered, with a coarse texture;
* ``warp``: the tissue is swirled and swollen in place, no intensity is new;
* ``foreign``: the gradients of another subject's healthy tissue are blended in, after foreign patch interpolation
  (Tan et al. 2022, MELBA 1, 013) in its Poisson form (Tan et al. 2021, arXiv 2107.02622; Pérez et al. 2003, eq. 7).

Everything about a lesion except the other subject of a foreign one follows from the seed and the id of its slice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
from pydantic import model_validator

from adbench.params import ParamSet, param
from adbench.utils.seeds import derive

Kind = Literal["bright", "dark", "warp", "foreign"]
KINDS: tuple[Kind, ...] = ("bright", "dark", "warp", "foreign")
VERSION = "1"  # raised when the same seed gives other lesions
SMALLEST = 9  # px; anything smaller is lost in a map that is smoothed
SliceId = tuple[str, int]  # (subject, slice index)


class SyntheticLesionParams(ParamSet):
    """Kinds, number and size of synthetic lesions."""

    kinds: tuple[Kind, ...] = param(
        KINDS, "Kinds, drawn with equal probability: bright, dark, warp, foreign.", source="adbench", min_length=1
    )
    smallest: float = param(0.003, "Smallest area of a lesion.", unit="of the slice's brain", source="adbench", gt=0)
    largest: float = param(
        0.08, "Largest area; areas are log-uniform.", unit="of the slice's brain", source="adbench", le=0.5
    )
    lesions: int = param(1, "Lesions in a slice that has any.", unit="lesions", source="adbench", ge=1, le=20)
    share: float = param(1.0, "Share of the slices that get lesions.", source="adbench", gt=0, le=1)
    seed: int = param(0, "Seed of every lesion.", source="adbench", ge=0)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.smallest > self.largest:
            raise ValueError("smallest may not exceed largest")
        return self


@dataclass(frozen=True)
class Inserted:
    """Slices with lesions.

    Attributes:
        images: (N, H, W) float32 in [0, 1]; equal to the input outside ``lesions``.
        lesions: (N, H, W) bool, within the brain.
        kinds: per slice, the kinds put in, in order; empty for a slice that stayed healthy.
    """

    images: np.ndarray
    lesions: np.ndarray
    kinds: list[tuple[Kind, ...]]


def insert(images: np.ndarray, brains: np.ndarray, ids: Sequence[SliceId], params: SyntheticLesionParams) -> Inserted:
    """Put lesions into healthy slices.

    Args:
        images: (N, H, W), any float type, in [0, 1], 0 outside the brain.
        brains: (N, H, W) bool.
        ids: of every slice. Foreign tissue is taken from the other subjects among them.
        params: how many, how large, of what kind.
    """
    changed = np.array(images, dtype=np.float32)
    lesions = np.zeros(changed.shape, bool)
    kinds: list[tuple[Kind, ...]] = []
    order = np.array(sorted(range(len(ids)), key=lambda position: ids[position]))  # whatever order they came in
    subjects = np.array([ids[position][0] for position in order])
    for index, (subject, number) in enumerate(ids):
        rng = np.random.default_rng(derive(params.seed, "pseudo", subject, number))
        brain = brains[index]
        if rng.random() >= params.share or brain.sum() * params.largest < SMALLEST:
            kinds.append(())
            continue
        others = order[subjects != subject] if (subjects != subject).any() else order
        other = int(others[derive(params.seed, "pseudo donor", subject, number) % len(others)])
        chosen = []
        for _ in range(params.lesions):
            kind = params.kinds[rng.integers(len(params.kinds))]
            free = brain & ~lesions[index]
            wanted = brain.sum() * np.exp(rng.uniform(np.log(params.smallest), np.log(params.largest)))
            count = min(max(SMALLEST, round(wanted)), int(free.sum()))
            if count < SMALLEST:
                break
            blob = _blob(free, count, _likely(changed[index], kind), rng)
            tissue = np.asarray(images[other], np.float32), brains[other]
            changed[index][blob.mask] = _new_values(changed[index], brain, blob, kind, tissue, rng)
            lesions[index] |= blob.mask
            chosen.append(kind)
        kinds.append(tuple(chosen))
    return Inserted(changed, lesions, kinds)


@dataclass(frozen=True)
class _Blob:
    """A lesion's place: its centre (row, column), its pixels, and for each of them, in the order of ``np.nonzero``, the
    offset from the centre (2, n) and the distance as a share of the distance of the outline (n,)."""

    centre: np.ndarray
    mask: np.ndarray
    offset: np.ndarray
    depth: np.ndarray


def _likely(image: np.ndarray, kind: Kind) -> np.ndarray:
    """(H, W) weights of where a lesion of ``kind`` would show: bright ones in dark tissue, warps at edges."""
    from scipy import ndimage

    likely: np.ndarray = np.ones_like(image)
    if kind == "bright":
        likely = np.clip(1 - image, 0.05, 1)
    elif kind == "dark":
        likely = np.clip(image, 0.05, 1)
    elif kind == "warp":
        likely = ndimage.gaussian_gradient_magnitude(image, 2.0) + 1e-3
    return likely


def _blob(free: np.ndarray, count: int, likely: np.ndarray, rng: np.random.Generator) -> _Blob:
    """The ``count`` free pixels nearest to a random centre, in the metric of a random smooth outline."""
    rows, columns = np.nonzero(free)
    weights = likely[rows, columns].astype(np.float64)
    at = rng.choice(len(rows), p=weights / weights.sum())
    centre = np.array([rows[at], columns[at]])
    offset = np.stack([rows, columns]) - centre[:, None]
    angle = np.arctan2(offset[0], offset[1])
    outline = np.zeros(len(rows))
    for wave in range(1, 5):  # log radius as a Fourier series: smooth, star-shaped, never negative
        outline += rng.normal(0, 0.3 / wave) * np.cos(wave * angle + rng.uniform(0, 2 * np.pi))
    distance = np.hypot(*offset) / np.exp(outline)
    nearest = np.sort(np.argsort(distance, kind="stable")[:count])
    mask = np.zeros_like(free)
    mask[rows[nearest], columns[nearest]] = True
    inside = distance[nearest]
    return _Blob(centre, mask, offset[:, nearest], inside / max(inside.max(), 1e-6))


def _new_values(
    image: np.ndarray,
    brain: np.ndarray,
    blob: _Blob,
    kind: Kind,
    foreign: tuple[np.ndarray, np.ndarray],
    rng: np.random.Generator,
) -> np.ndarray:
    """(n,) values of the blob's pixels."""
    if kind == "warp":
        values = _warped(image, blob, rng)
    elif kind == "foreign":
        values = _foreign(image, brain, blob, foreign, rng)
    else:
        values = image[blob.mask] + (1 if kind == "bright" else -1) * _shift(image, brain, blob, rng)
    return np.asarray(np.clip(values, 0, 1))


def _shift(image: np.ndarray, brain: np.ndarray, blob: _Blob, rng: np.random.Generator) -> np.ndarray:
    """A change of one to three interquartile ranges of the brain, with a coarse texture, halved at the outline."""
    from scipy import ndimage

    low, high = np.percentile(image[brain], (25, 75))
    height = rng.uniform(1, 3) * max(high - low, 0.05)
    texture = ndimage.gaussian_filter(rng.standard_normal(image.shape), 2.0)[blob.mask]
    soft = ndimage.gaussian_filter(blob.mask.astype(np.float32), 1.0)[blob.mask]
    return np.asarray(height * (1 + 0.25 * texture / max(texture.std(), 1e-6)).clip(0.3) * soft / soft.max())


def _warped(image: np.ndarray, blob: _Blob, rng: np.random.Generator) -> np.ndarray:
    """Tissue turned and swollen about the centre, less and less towards the outline."""
    from scipy import ndimage

    fade = 1 - blob.depth
    turn = rng.choice([-1, 1]) * rng.uniform(1.0, 2.0) * fade
    swell = 1 - rng.uniform(0.3, 0.7) * fade
    rows, columns = blob.offset
    source = np.stack([
        swell * (np.cos(turn) * rows - np.sin(turn) * columns),
        swell * (np.sin(turn) * rows + np.cos(turn) * columns),
    ])  # fmt: skip
    return np.asarray(ndimage.map_coordinates(image, source + blob.centre[:, None], order=1, mode="nearest"))


def _foreign(
    image: np.ndarray,
    brain: np.ndarray,
    blob: _Blob,
    foreign: tuple[np.ndarray, np.ndarray],
    rng: np.random.Generator,
) -> np.ndarray:
    """The solution of Poisson's equation with the gradients of foreign tissue inside and the slice's values around.

    There is no condition at pixels outside the brain: the background's 0 would bleed in. Where the foreign slice has no
    brain, the slice's own gradients stay.
    """
    from scipy.sparse import csr_matrix
    from scipy.sparse.linalg import spsolve

    rows, columns = np.nonzero(blob.mask)
    guide = _guide(image, blob, foreign, rng)
    number = np.full(image.shape, -1)
    number[rows, columns] = np.arange(len(rows))
    diagonal, right = np.zeros(len(rows)), np.zeros(len(rows))
    entries: list[tuple[np.ndarray, np.ndarray]] = []
    for down, across in ((0, 1), (1, 0), (0, -1), (-1, 0)):
        r, c = rows + down, columns + across
        there = (r >= 0) & (r < image.shape[0]) & (c >= 0) & (c < image.shape[1])
        there[there] = brain[r[there], c[there]]
        here = np.flatnonzero(there)
        r, c = r[here], c[here]
        diagonal[here] += 1
        right[here] += guide[rows[here], columns[here]] - guide[r, c]
        neighbour = number[r, c]
        inside = neighbour >= 0
        entries.append((here[inside], neighbour[inside]))
        right[here[~inside]] += image[r[~inside], c[~inside]]
    i, j = (np.concatenate(part) for part in zip(*entries, strict=True))
    links = csr_matrix((np.ones(len(i)), (i, j)), shape=(len(rows), len(rows)))
    own = 1e-6  # holds on to the slice where a blob fills an island of brain and nothing around it is fixed
    matrix = csr_matrix((diagonal + own, (np.arange(len(rows)), np.arange(len(rows)))), shape=links.shape) - links
    return np.asarray(spsolve(matrix, right + own * image[rows, columns]))


def _guide(
    image: np.ndarray, blob: _Blob, foreign: tuple[np.ndarray, np.ndarray], rng: np.random.Generator
) -> np.ndarray:
    """(H, W): the foreign slice, moved so that a random place of its brain lies on the blob; the slice itself elsewhere."""
    tissue, covered = foreign
    rows, columns = np.nonzero(covered)
    mine = np.stack(np.nonzero(blob.mask))
    best, most = np.zeros(2, int), -1
    for at in rng.integers(len(rows), size=16) if len(rows) else ():
        shift = np.array([rows[at], columns[at]]) - blob.centre
        place = mine + shift[:, None]
        inside = ((place >= 0) & (place < np.array(image.shape)[:, None])).all(0)
        found = int(covered[place[0, inside], place[1, inside]].sum())
        if found > most:
            best, most = shift, found
    grid = np.indices(image.shape) + best[:, None, None]
    inside = ((grid >= 0) & (grid < np.array(image.shape)[:, None, None])).all(0)
    guide = image.astype(np.float64)
    where = np.array(inside, dtype=bool)
    where[inside] = covered[grid[0, inside], grid[1, inside]]
    guide[where] = tissue[grid[0, where], grid[1, where]]
    return guide
