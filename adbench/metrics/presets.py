"""Evaluation rules of papers, implemented to the letter to compare with their numbers; none is a headline metric.

A preset reads whole slices, background included, and none of them gives intervals: use :mod:`adbench.metrics.evaluate`
for results. All are computed on the scores themselves, nothing is binned: a preset holds every score in memory. What each
counts, and why it differs, is in its function's docstring and in ``docs/metrics.md``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from adbench.errors import UserError, unknown
from adbench.metrics.lesion import components


@dataclass(frozen=True)
class PresetCase:
    """One subject as the input of a preset.

    Attributes:
        subject: its id.
        maps: (S, H, W) scores, finite everywhere.
        lesion: (S, H, W) bool, anywhere in the image.
        brain: (S, H, W) bool.
    """

    subject: str
    maps: np.ndarray
    lesion: np.ndarray
    brain: np.ndarray

    def __post_init__(self) -> None:
        for name, array in (("lesion mask", self.lesion), ("brain mask", self.brain)):
            if array.shape != self.maps.shape or array.dtype != np.bool_:
                raise UserError(
                    f"Case {self.subject!r} has maps {self.maps.shape} but its {name} is {array.dtype} {array.shape}."
                )
        if self.maps.ndim != 3 or not np.isfinite(self.maps).all():
            raise UserError(
                f"Case {self.subject!r}: a preset needs slices x height x width of finite scores, background included."
            )


@dataclass
class PresetResult:
    """The output of a preset.

    Attributes:
        name: of the preset.
        values: number -> value, None where the paper's rule leaves it undefined.
        thresholds: those that were chosen.
        notes: what a reader must know.
    """

    name: str
    values: dict[str, float | None]
    thresholds: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


_ON_TEST = "The threshold is chosen on the test split itself."
_UNIT = "Its thresholds lie in [0, 1]: it is for maps in that range."


def _outside(case: PresetCase) -> str:
    """Why a preset with thresholds in [0, 1] has no value for ``case``; "" when it has."""
    low, high = float(case.maps.min()), float(case.maps.max())
    if low >= 0 and high <= 1:
        return ""
    return (
        f"Undefined: its thresholds lie in [0, 1], and the scores of case {case.subject!r} run from {low:.4g} to "
        f"{high:.4g}. Nothing is rescaled."
    )


class _Pool:
    """Scores of lesion and of background, all of them: what is computed is exact.

    Background is kept as sorted parts without their lowest score, which is counted: most of it lies outside the brain.
    """

    def __init__(self) -> None:
        self._lesion: list[np.ndarray] = []
        self._parts: list[tuple[np.ndarray, np.generic, int]] = []  # the rest, sorted; the lowest score, how often
        self.n_positive = self.n_negative = 0

    def add(self, scores: np.ndarray, lesion: np.ndarray) -> None:
        """Take in pixels of any shape."""
        own, background = scores[lesion], scores[~lesion]
        self._lesion.append(own)
        self.n_positive += len(own)
        self.n_negative += len(background)
        if len(background):
            low = background.min()
            rest = background[background > low]
            rest.sort()
            self._parts.append((rest, low, len(background) - len(rest)))

    @cached_property
    def _thresholds(self) -> tuple[np.ndarray, np.ndarray]:
        """((n,) distinct lesion scores, descending, (n,) how often each occurs)."""
        found, counts = np.unique(np.concatenate(self._lesion), return_counts=True)
        return found[::-1], counts[::-1]

    @cached_property
    def _below(self) -> tuple[np.ndarray, np.ndarray]:
        """Background pixels below, and at or below, each distinct lesion score."""
        at = self._thresholds[0]
        below, upto = np.zeros(len(at), np.int64), np.zeros(len(at), np.int64)
        for rest, low, count in self._parts:
            below += np.searchsorted(rest, at, "left") + count * (low < at)
            upto += np.searchsorted(rest, at, "right") + count * (low <= at)
        return below, upto

    def _at_lesion_scores(self) -> tuple[np.ndarray, np.ndarray]:
        """Lesion and background pixels at or above each distinct lesion score, from the highest down.

        No other threshold changes average precision, or has a higher F1: between two of them only background is added.
        """
        return np.cumsum(self._thresholds[1]), self.n_negative - self._below[0]

    def ap(self) -> float | None:
        """Average precision; None without a lesion."""
        if not self.n_positive:
            return None
        found, false = self._at_lesion_scores()
        return float(np.sum(np.diff(found, prepend=0) / self.n_positive * (found / (found + false))))

    def f1max(self) -> float | None:
        """Highest F1 at one threshold; None without a lesion."""
        if not self.n_positive:
            return None
        found, false = self._at_lesion_scores()
        return float(np.max(2 * found / (found + false + self.n_positive)))

    def auroc(self) -> float | None:
        """Share of pairs of lesion and background whose lesion scores higher, ties half; None without both."""
        if not self.n_positive or not self.n_negative:
            return None
        below, upto = self._below
        pairs = np.dot(self._thresholds[1], (below + upto).astype(np.float64)) / 2
        return float(pairs / self.n_positive / self.n_negative)


def reflect(cases: Iterable[PresetCase], val: Iterable[PresetCase] | None = None) -> PresetResult:
    """REFLECT (Beizaee et al. 2025, arXiv:2508.02889): :func:`official_madad` with 101 thresholds instead of 201.

    Its authors score one slice a subject, all of them with a lesion: protocol ``reflect-one-slice``.
    """
    return _mean_of_slices("reflect", 101, cases)


def official_madad(cases: Iterable[PresetCase], val: Iterable[PresetCase] | None = None) -> PresetResult:
    """MAD-AD (Beizaee et al. 2025, arXiv:2502.16943), evaluation script of its repository.

    ``dice``: for each of 201 thresholds from 0 to 1, the mean over **slices** of ``2 tp / (predicted + lesion + 1e-6)``;
    a slice without lesion scores 1 when nothing is predicted there and 0 otherwise; the highest of the 201 means. A
    pixel is predicted when its score is above the threshold, or at least 1 whatever the threshold. ``f1max``, ``auroc``
    and ``ap`` are pooled over all pixels. Background pixels count. Maps with a score outside [0, 1] have no value: what lies
    below 0 would never be predicted and what lies above 1 always.

    It differs from ``dice@val`` in that the threshold is chosen on the test split, that slices and not volumes are
    averaged, and that empty slices with empty predictions score 1, which dominates when lesions are rare.
    """
    return _mean_of_slices("official-madad", 201, cases)


def _mean_of_slices(name: str, count: int, cases: Iterable[PresetCase]) -> PresetResult:
    thresholds = np.linspace(0, 1, count)
    levels, total, slices, pool = _UnitLevels(thresholds), np.zeros(count), 0, _Pool()
    names = ("dice", "f1max", "auroc", "ap")
    for case in _again(cases):
        if outside := _outside(case):
            return PresetResult(name, dict.fromkeys(names), notes=[outside])
        for score, lesion in zip(case.maps, case.lesion, strict=True):
            every, own = levels.above(score, lesion)
            if own is not None:
                total += 2 * own / (every + int(np.count_nonzero(lesion)) + 1e-6)
            else:
                total += every == 0
        slices += len(case.maps)
        pool.add(case.maps, case.lesion)
    if not slices:
        raise UserError("There is no case to evaluate.")
    best = int(np.argmax(total))
    values = {"dice": float(total[best] / slices), "f1max": pool.f1max(), "auroc": pool.auroc(), "ap": pool.ap()}
    return PresetResult(name, values, {"dice": float(thresholds[best])}, [_ON_TEST, _UNIT])


THOR_EDGES = (3, 71, 570, 10_000)
THOR_SIZE = 128  # px, of the slices that the edges are for
_THOR_SLICES = (
    "The script that its authors released scores 21 slice indices that it lists, and leaves out 20 more as artefacts; the "
    "paper does not name them. Here every slice that was given is scored."
)


def thor(
    cases: Iterable[PresetCase], val: Iterable[PresetCase] | None = None, *, edges: Sequence[int] = THOR_EDGES
) -> PresetResult:
    """THOR (Bercea et al. 2024, arXiv:2403.08464), stroke localisation of its repository.

    Slices are binned by their lesion pixels: above one edge, up to the next (3, 71, 570 and 10,000 pixels of a
    128 x 128 slice in the paper; 71 and 570 are the 25th and 75th percentile there). In each bin all pixels of all
    slices are pooled, background included: ``dice_*`` is the highest of 101 thresholds from 0 to 1 of
    ``2 tp / (predicted + lesion + 1e-6)``, ``ap_*`` the average precision. A pixel is predicted when its score is above
    the threshold, or at least 1. Slices outside all bins, those without lesion among them, are not counted. Maps with a
    score outside [0, 1] have no value. The authors' script scores 21 slice indices that it lists and leaves out 20 as
    artefacts; the paper does not list them, so every slice that is given is scored.

    It differs from the strata of ``dice_pooled@best`` in that slices and not subjects are binned, and that no slice
    without lesion counts, so false alarms there cost nothing.
    """
    thresholds = np.linspace(0, 1, 101)
    levels = _UnitLevels(thresholds)
    bins = [(name, low, high) for name, low, high in zip(("small", "medium", "large"), edges, edges[1:], strict=False)]
    if len(edges) != 4 or sorted(set(edges)) != list(edges):
        raise UserError(f"edges = {list(edges)!r} are not valid: give four ascending lesion sizes in pixels.")
    predicted, found = np.zeros((3, 101)), np.zeros((3, 101))
    pools, count = [_Pool() for _ in bins], [0, 0, 0]
    names = [f"{what}_{name}" for name, _, _ in bins for what in ("dice", "ap")]
    sizes: set[tuple[int, int]] = set()
    for case in _again(cases):
        if outside := _outside(case):
            return PresetResult("thor", dict.fromkeys(names), notes=[outside])
        sizes.add((case.maps.shape[1], case.maps.shape[2]))
        for score, lesion in zip(case.maps, case.lesion, strict=True):
            size = int(np.count_nonzero(lesion))
            for i, (_, low, high) in enumerate(bins):
                if low < size <= high:
                    every, own = levels.above(score, lesion)
                    predicted[i] += every
                    found[i] += own if own is not None else 0
                    pools[i].add(score, lesion)
                    count[i] += 1
    result = PresetResult("thor", {}, notes=[_ON_TEST, _UNIT, _THOR_SLICES])
    for height, width in sorted(sizes - {(THOR_SIZE, THOR_SIZE)}):
        result.notes.append(
            f"The bins are pixels of a {THOR_SIZE} x {THOR_SIZE} slice; these slices have {height} x {width}."
        )
    for i, (name, low, high) in enumerate(bins):
        result.values |= {f"dice_{name}": None, f"ap_{name}": None}
        result.notes.append(f"{name}: {count[i]} slices of {low + 1} to {high} lesion pixels.")
        if count[i]:
            dice = 2 * found[i] / (predicted[i] + pools[i].n_positive + 1e-6)
            best = int(np.argmax(dice))
            result.values |= {f"dice_{name}": float(dice[best]), f"ap_{name}": pools[i].ap()}
            result.thresholds[f"dice_{name}"] = float(thresholds[best])
    return result


def cddpm(cases: Iterable[PresetCase], val: Iterable[PresetCase] | None = None) -> PresetResult:
    """Conditioned DDPM (Behrendt et al. 2023, arXiv:2312.04215), evaluation of its repository.

    Each volume's map is multiplied by the brain mask, eroded in each slice by a cross, ``width // 25`` times, and
    filtered by a 5 x 5 x 5 median. The threshold is searched on **all validation volumes**, with and without lesion, all
    voxels pooled: ten times the interval from 0 to the highest score is halved towards the quarter point of higher Dice,
    and the best point seen is taken. On test volumes scores above it are predicted, 26-connected components whose filled
    area is at most 7 voxels are removed, and ``dice`` is the mean over volumes (one with neither lesion nor prediction is
    left out). ``auprc`` is the mean of per-volume average precision of the filtered maps over **all** volumes: one without
    lesion has 0, as scikit-learn since 1.0 gives it, and pulls the mean down. Background voxels count.

    It differs from ``dice@val`` and ``auprc_subject`` by the post-processing, the greedy threshold search, and in that a
    volume without lesion scores 0 when anything is predicted in it, and 0 in average precision whatever is predicted.
    """
    if val is None:
        raise UserError(
            "The preset 'cddpm' chooses its threshold on validation volumes: give some, lesions among them."
        )
    chosen = [(_cddpm_filtered(case), case.lesion) for case in _again(val)]
    if not any(lesion.any() for _, lesion in chosen):
        raise UserError("The preset 'cddpm' chooses its threshold on validation volumes: none of them has a lesion.")
    scores = np.concatenate([filtered.ravel() for filtered, _ in chosen])
    threshold = _cddpm_search(scores, np.concatenate([lesion.ravel() for _, lesion in chosen]))
    dice: list[float] = []
    precision: list[float] = []
    free = 0
    for case in _again(cases):
        filtered = _cddpm_filtered(case)
        predicted = _without_small(filtered > threshold, 7)
        total = int(np.count_nonzero(predicted)) + int(np.count_nonzero(case.lesion))
        if total:
            dice.append(2 * np.count_nonzero(predicted & case.lesion) / total)
        own = _Pool()
        own.add(filtered, case.lesion)
        free += not own.n_positive
        precision.append(own.ap() or 0.0)
    notes = [f"The mean Dice is over {len(dice)} of {len(precision)} volumes."]
    if free:
        notes.append(f"{free} of {len(precision)} volumes have no lesion and count as 0 in auprc.")
    return PresetResult("cddpm", {"dice": _mean(dice), "auprc": _mean(precision)}, {"dice": threshold}, notes)


def upd(cases: Iterable[PresetCase], val: Iterable[PresetCase] | None = None) -> PresetResult:
    """UPD study (Lagogiannis et al. 2024, IEEE TMI 43:241), metrics of its repository.

    Scores outside the brain are set to 0, all pixels are pooled, background included. ``ap`` is the average precision;
    ``dice`` the highest of 100 thresholds in equal steps from the highest to the lowest score, a pixel being predicted
    when its score is above the threshold.

    It differs from ``auprc`` and ``dice_pooled@best`` in that background pixels count (which changes ``ap`` only where
    lesion pixels score as low as the background), and by its grid of thresholds, which a single outlier stretches.
    """
    cases = _again(cases)
    low, high, empty = np.inf, -np.inf, True
    for case in cases:
        inside = case.maps * case.brain
        low, high, empty = min(low, float(inside.min())), max(high, float(inside.max())), False
    if empty:
        raise UserError("There is no case to evaluate.")
    thresholds = np.linspace(low, high, 100)
    predicted, found, pool = np.zeros(100), np.zeros(100), _Pool()
    for case in cases:
        inside = case.maps * case.brain
        for counts, scores in ((predicted, inside.ravel()), (found, inside[case.lesion])):
            above = np.bincount(np.searchsorted(thresholds, scores.astype(np.float64)), minlength=101)
            counts += np.cumsum(above[::-1])[::-1][1:]
        pool.add(inside, case.lesion)
    if not pool.n_positive:
        return PresetResult("upd", {"ap": None, "dice": None}, notes=["There is no lesion: nothing is defined."])
    dice = 2 * found / (predicted + pool.n_positive)
    best = int(np.argmax(dice))
    values = {"ap": pool.ap(), "dice": float(dice[best])}
    return PresetResult("upd", values, {"dice": float(thresholds[best])}, [_ON_TEST])


PRESETS: dict[str, Callable[..., PresetResult]] = {
    "official-madad": official_madad,
    "reflect": reflect,
    "thor": thor,
    "cddpm": cddpm,
    "upd": upd,
}


def evaluate_preset(name: str, cases: Iterable[PresetCase], val: Iterable[PresetCase] | None = None) -> PresetResult:
    """Run a preset by name.

    Args:
        name: ``official-madad``, ``reflect``, ``thor``, ``cddpm`` or ``upd``.
        cases: test cases; iterated more than once, so a list, not a generator.
        val: validation cases, for presets that choose a threshold there.
    """
    if name not in PRESETS:
        raise unknown("preset", name, PRESETS)
    return PRESETS[name](cases, val)


class _UnitLevels:
    """Counts of pixels above each of n equally spaced thresholds from 0 to 1, or at least 1; exact for float32 scores in [0, 1].

    A pixel's level is how many thresholds it is predicted at. It is guessed by a multiplication, slightly too low so
    that the guess is never too high, and looked up exactly where the guess is near the next level.
    """

    def __init__(self, thresholds: np.ndarray) -> None:
        self._steps = len(thresholds) - 1
        first = thresholds.astype(np.float32)  # the lowest float32 above each threshold
        self._first = np.where(first > thresholds, first, np.nextafter(first, np.float32(2)))
        self._first[-1] = 1

    def above(self, scores: np.ndarray, lesion: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """((n,) predicted pixels, (n,) predicted lesion pixels or None without lesion) at each threshold."""
        flat = np.ascontiguousarray(scores, dtype=np.float32).ravel()
        scaled = flat * np.float32(self._steps * (1 - 1e-6))
        guess = scaled.astype(np.int16)
        near = np.flatnonzero((scaled - guess) > np.float32(0.9997))
        level = guess.astype(np.intp)  # one less than the level, except for zeros, which are taken off below
        if len(near):
            level[near] = np.searchsorted(self._first, flat[near], side="right") - 1
        every = self._cumulative(level, flat)
        if not lesion.any():
            return every, None
        inside = np.flatnonzero(lesion)
        return every, self._cumulative(level[inside], flat[inside])

    def _cumulative(self, level: np.ndarray, flat: np.ndarray) -> np.ndarray:
        counts = np.bincount(level, minlength=self._steps + 1)
        counts[0] -= len(flat) - int(np.count_nonzero(flat))
        return np.cumsum(counts[::-1])[::-1]


def _cddpm_filtered(case: PresetCase) -> np.ndarray:
    from scipy.ndimage import binary_erosion, median_filter

    times = case.maps.shape[2] // 25
    if not times:
        raise UserError(
            f"The preset 'cddpm' erodes by width // 25 pixels: case {case.subject!r} is {case.maps.shape[2]} pixels wide."
        )
    cross = np.zeros((3, 3, 3), bool)
    cross[1, 1, :] = cross[1, :, 1] = True  # within the slice
    return np.asarray(median_filter(case.maps * binary_erosion(case.brain, cross, iterations=times), 5))


def _cddpm_search(scores: np.ndarray, lesion: np.ndarray) -> float:
    low, high = 0.0, float(scores.max()) or 1.0
    best, point = 0.0, 0.0
    size, own = int(np.count_nonzero(lesion)), scores[lesion]
    for _ in range(10):
        quarters = (low + (high - low) * 0.25, low + (high - low) * 0.75)
        dice = [2 * np.count_nonzero(own > q) / (np.count_nonzero(scores > q) + size) for q in quarters]
        side = int(dice[0] < dice[1])
        if dice[side] >= best:
            best, point = dice[side], quarters[side]
        middle = low + (high - low) * 0.5
        low, high = (low, middle) if side == 0 else (middle, high)
    return point


def _without_small(mask: np.ndarray, at_most: int) -> np.ndarray:
    """``mask`` without its 26-connected components of at most ``at_most`` voxels, up to 25.

    The area with holes filled (``area_filled`` of scikit-image) decides the same: a hole is closed to its corners, so
    whatever holds one has at least 26 voxels.
    """
    labels, count = components(mask)
    sizes = np.bincount(labels.ravel(), minlength=count + 1)
    sizes[0] = 0
    return np.asarray((sizes > at_most)[labels])


def _again(cases: Iterable[PresetCase]) -> Iterable[PresetCase]:
    if iter(cases) is cases:
        raise UserError("A preset reads its cases more than once: give a list, not a generator.")
    return cases


def _mean(values: list[float]) -> float | None:
    return float(np.mean(values)) if values else None
