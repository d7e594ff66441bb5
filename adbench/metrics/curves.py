"""ROC, PR and Dice at every threshold of one histogram: cumulative sums over its bins, from the highest score down."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from adbench.errors import UserError
from adbench.metrics import score_bins as _keys
from adbench.metrics.histogram import ScoreHistogram


@dataclass(frozen=True)
class OperatingPoint:
    """What happens at one threshold.

    Attributes:
        threshold: a voxel is positive when its score is ``>= threshold``.
        recall: share of lesion voxels found, [0, 1]; NaN without lesion voxels.
        fpr: share of background voxels predicted, [0, 1]; NaN without background voxels.
        precision: share of predicted voxels that are lesion, [0, 1]; 1 when nothing is predicted.
    """

    threshold: float
    recall: float
    fpr: float
    precision: float


@dataclass(frozen=True)
class _Steps:
    """The L bins that hold a lesion voxel, in descending score. No area and no best Dice depends on the others.

    Attributes:
        place: (L,) of K bins in ascending score, which one.
        positive: (L,) its lesion voxels.
        negative: (L,) its background voxels.
        tp: (L,) lesion voxels in it and above.
        fp: (L,) background voxels in it and above.
        joined: (L,) bool, whether it may hold different scores.
    """

    place: np.ndarray
    positive: np.ndarray
    negative: np.ndarray
    tp: np.ndarray
    fp: np.ndarray
    joined: np.ndarray


class Curve:
    """Counts at every threshold of a histogram, K occupied bins in descending score.

    Equal scores are predicted together, as scikit-learn treats them. A bin of several scores is predicted together too;
    its lesion voxels are taken to lie evenly among its background when precision is summed.

    Args:
        histogram: of one subject or of a pool.

    Attributes:
        n_positive: lesion voxels in all.
        n_negative: background voxels in all.
    """

    def __init__(self, histogram: ScoreHistogram) -> None:
        self._histogram = histogram
        self._keys, self._positive, self._negative = histogram.counts()
        self.n_positive, self.n_negative = int(self._positive.sum()), int(self._negative.sum())

    @property
    def exact(self) -> bool:
        """Whether no bin may hold different scores."""
        return self._histogram.exact

    @cached_property
    def tp(self) -> np.ndarray:
        """(K,) int64, lesion voxels with ``score >= threshold``."""
        return np.cumsum(self._positive[::-1])

    @cached_property
    def fp(self) -> np.ndarray:
        """(K,) int64, background voxels with ``score >= threshold``."""
        return np.cumsum(self._negative[::-1])

    @cached_property
    def _below(self) -> np.ndarray:
        """(K + 1,) background voxels below each bin, ascending, and all of them."""
        below = np.empty(len(self._negative) + 1, np.int64)
        below[0] = 0
        np.cumsum(self._negative, out=below[1:])
        return below

    @cached_property
    def _steps(self) -> _Steps:
        place = (self._positive != 0).nonzero()[0][::-1]
        positive = self._positive[place]
        joined = self._histogram.partition.joined(self._keys[place])
        fp = self.n_negative - self._below[place]
        return _Steps(place, positive, self._negative[place], np.cumsum(positive), fp, joined)

    @cached_property
    def thresholds(self) -> np.ndarray:
        """(K,) float64 lower edges of the bins, descending."""
        return _keys.edges(self._keys[::-1])

    @property
    def lesion_keys(self) -> np.ndarray:
        """(L,) int64 keys of the bins with a lesion voxel, ascending."""
        return np.asarray(self._keys[self._steps.place][::-1])

    @property
    def recall(self) -> np.ndarray:
        """(K,) share of lesion voxels found."""
        self._need(positive=True)
        return self.tp / self.n_positive

    @property
    def fpr(self) -> np.ndarray:
        """(K,) share of background voxels predicted."""
        self._need(negative=True)
        return self.fp / self.n_negative

    @property
    def precision(self) -> np.ndarray:
        """(K,) share of predicted voxels that are lesion."""
        return np.asarray(self.tp / (self.tp + self.fp))

    @property
    def dice(self) -> np.ndarray:
        """(K,) ``2 tp / (tp + fp + n_positive)``: the Dice coefficient, which is also F1."""
        self._need(positive=True)
        return np.asarray(2 * self.tp / (self.tp + self.fp + self.n_positive))

    @property
    def prevalence(self) -> float:
        """Share of lesion among all voxels: the average precision of chance."""
        return self.n_positive / (self.n_positive + self.n_negative)

    def average_precision(self, max_recall: float = 1.0) -> float:
        """Step sum of precision over recall, up to ``max_recall`` and divided by it, in [0, 1].

        Args:
            max_recall: (0, 1]; 1 is the average precision of scikit-learn.
        """
        self._need(positive=True)
        _check_share("max_recall", max_recall)
        own = self._steps
        steps = own.positive
        if max_recall < 1:
            steps = np.diff(np.minimum(own.tp, max_recall * self.n_positive), prepend=0)
        # Halfway through a bin of several scores: (p + 1) / 2 of its lesion and half of its background voxels.
        half = 0.5 * own.joined
        tp = own.tp - half * (own.positive - 1)
        return float(np.sum(steps * (tp / (tp + own.fp - half * own.negative))) / (max_recall * self.n_positive))

    def auroc(self, max_fpr: float = 1.0) -> float:
        """Area under the ROC curve for false-positive rates up to ``max_fpr``, divided by it, in [0, 1].

        Ties are joined by a straight line, so a bin counts half. Chance is ``max_fpr / 2``; the standardised value of
        McClish (1989, Med Decis Making 9:190) is ``(1 + (area - chance) / (1 - chance)) / 2``.

        Args:
            max_fpr: (0, 1].
        """
        self._need(positive=True, negative=True)
        _check_share("max_fpr", max_fpr)
        if max_fpr == 1:
            own = self._steps
            below = self.n_negative - own.fp + 0.5 * own.negative
            return float(np.sum(own.positive * below) / (float(self.n_positive) * self.n_negative))
        x, y = np.r_[0.0, self.fp], np.r_[0.0, self.tp]
        limit = max_fpr * self.n_negative
        end = int(np.searchsorted(x, limit))  # the first point at or beyond the limit: x[end - 1] < limit <= x[end]
        slope = (y[end] - y[end - 1]) / (x[end] - x[end - 1])
        x, y = np.r_[x[:end], limit], np.r_[y[:end], y[end - 1] + slope * (limit - x[end - 1])]
        return float(np.trapezoid(y, x) / (limit * self.n_positive))

    def best_dice(self) -> tuple[float, float]:
        """(highest Dice, its threshold); among equal Dice the highest threshold."""
        dice, key = self._best_dice
        return dice, float(_keys.edges(np.array([key]))[0])

    @cached_property
    def _best_dice(self) -> tuple[float, int]:
        self._need(positive=True)
        own = self._steps
        dice = 2 * own.tp / (own.tp + own.fp + self.n_positive)
        best = int(np.argmax(dice))
        return float(dice[best]), int(self._keys[own.place[best]])

    def at_fpr(self, rate: float) -> OperatingPoint:
        """The lowest observed threshold with at most ``rate`` false positives among background voxels.

        When even the highest bin exceeds ``rate``, the threshold lies just above it and nothing is predicted.
        """
        self._need(negative=True)
        _check_share("rate", rate)
        return self._point(int(np.searchsorted(self.fp, rate * self.n_negative, side="right")) - 1)

    def average_precision_bracket(self) -> tuple[float, float]:
        """Between these lies the average precision of the scores before they were binned.

        In a bin of several scores: lowest when the background comes first and lesion voxels follow one by one, highest
        when the lesion voxels come first, all tied. Any order and any ties of the raw scores fall between: a lesion
        voxel's precision is taken at the end of its tied block, which holds at least its own rank of the bin's lesion
        voxels and at most all of its background (lowest), at most all of its lesion voxels and at least none of its
        background (highest).
        """
        self._need(positive=True)
        own = self._steps
        tied = np.sum((own.positive * (own.tp / (own.tp + own.fp)))[~own.joined])
        if not own.joined.any():
            return float(tied / self.n_positive), float(tied / self.n_positive)
        p, n, tp, fp = (values[own.joined] for values in (own.positive, own.negative, own.tp, own.fp))
        highest = np.sum(p * tp / (tp + fp - n))
        # j / (j + fp) is concave in j: its sum over a range is at least that of the line between its ends.
        first = tp - p + 1
        lowest = np.sum(p / 2 * (first / (first + fp) + tp / (tp + fp)))
        return float((tied + lowest) / self.n_positive), float((tied + highest) / self.n_positive)

    def auroc_bracket(self) -> tuple[float, float]:
        """Between these lies the area of the scores before they were binned: background or lesion first in each bin."""
        area = self.auroc()
        pairs = float(self.n_positive) * self.n_negative
        own = self._steps
        apart = np.sum((own.negative.astype(np.float64) * own.positive)[own.joined]) / (2 * pairs)
        return area - float(apart), area + float(apart)

    def best_dice_bracket(self) -> tuple[float, float]:
        """Between these lies the highest Dice of the scores before they were binned."""
        self._need(positive=True)
        own = self._steps
        fp = own.fp - own.joined * own.negative
        return self._best_dice[0], float(np.max(2 * own.tp / (own.tp + fp + self.n_positive)))

    def reaching(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(T,) lesion and (T,) background voxels with scores at or above each of (T,) thresholds, given by their keys.

        For a threshold within a bin of several scores, those of the bin count as below it.
        """
        first = np.searchsorted(self._keys, keys)
        tp = self._reached[np.searchsorted(self._steps.place[::-1], first)]
        return tp, self.n_negative - self._below[first]

    @cached_property
    def _reached(self) -> np.ndarray:
        """(L + 1,) lesion voxels in and above each bin with a lesion voxel, ascending, and none above the last."""
        return np.append(self._steps.tp[::-1], 0)

    def _point(self, index: int) -> OperatingPoint:
        tp, fp = (int(self.tp[index]), int(self.fp[index])) if index >= 0 else (0, 0)
        keys = (
            self._keys[len(self._keys) - 1 - index :][:1]
            if index >= 0
            else self._histogram.partition.ends(self._keys[-1:])
        )
        return OperatingPoint(
            threshold=float(_keys.edges(keys)[0]),
            recall=tp / self.n_positive if self.n_positive else float("nan"),
            fpr=fp / self.n_negative if self.n_negative else float("nan"),
            precision=tp / (tp + fp) if tp + fp else 1.0,
        )

    def _need(self, *, positive: bool = False, negative: bool = False) -> None:
        if positive and not self.n_positive:
            raise UserError("There is no lesion voxel here: precision, recall, Dice and their areas are undefined.")
        if negative and not self.n_negative:
            raise UserError("There is no background voxel here: false-positive rates and ROC areas are undefined.")


def best_mean_dice(curves: Sequence[Curve], pool: Curve) -> tuple[float, float]:
    """Highest mean per-volume Dice and its threshold, the highest among equals.

    It lies where a lesion voxel is reached: elsewhere Dice only falls. Some of these thresholds are looked at first; between
    two of them a volume's Dice is at most that of the true positives of the lower with the false positives of the higher.

    Args:
        curves: of the volumes; those without a lesion are left out.
        pool: all of them together, with a lesion voxel.
    """
    bearing = [curve for curve in curves if curve.n_positive]
    keys = pool.lesion_keys[::-1]

    def means(places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        at, between = np.zeros(len(places)), np.zeros(len(places) - 1)
        for curve in bearing:
            tp, fp = curve.reaching(keys[places])
            at += 2 * tp / (tp + fp + curve.n_positive)
            between += 2 * tp[1:] / (tp[1:] + fp[:-1] + curve.n_positive)
        return at / len(bearing), between / len(bearing)

    step = math.isqrt(len(keys))
    some = np.append(np.arange(0, len(keys) - 1, step), len(keys) - 1)
    found, most = means(some)
    places = np.arange(len(keys))
    kept = np.repeat(np.append(most >= found.max(), False), np.diff(some, append=len(keys)))  # of each, all below it
    kept[some] = found == found.max()
    places = places[kept]
    found, _ = means(places)
    best = int(np.argmax(found))
    return float(found[best]), float(_keys.edges(keys[places[best : best + 1]])[0])


def _check_share(name: str, value: float) -> None:
    if not 0 < value <= 1:
        raise UserError(f"{name} = {value!r} is not valid: give a share above 0, up to 1.")
