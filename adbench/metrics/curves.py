"""ROC, PR and Dice at every threshold of one histogram: cumulative sums over its bins, from the highest score down."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from adbench.errors import UserError
from adbench.metrics import keys as _keys
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


class Curve:
    """Counts at every threshold of a histogram, K occupied bins in descending score.

    Equal scores are predicted together, as scikit-learn treats them. A bin of several scores is predicted together too;
    its lesion voxels are taken to lie evenly among its background when precision is summed.

    Args:
        histogram: of one subject or of a pool.

    Attributes:
        thresholds: (K,) float64, lower edges of the bins, descending.
        tp: (K,) int64, lesion voxels with ``score >= threshold``.
        fp: (K,) int64, background voxels with ``score >= threshold``.
        n_positive: lesion voxels in all.
        n_negative: background voxels in all.
    """

    def __init__(self, histogram: ScoreHistogram) -> None:
        keys, positive, negative = histogram.counts()
        self._keys = keys[::-1]
        self._partition = histogram.partition
        self._joined = histogram.joined[::-1]
        self._positive, self._negative = positive[::-1], negative[::-1]
        self.tp, self.fp = np.cumsum(self._positive), np.cumsum(self._negative)
        self.n_positive, self.n_negative = int(positive.sum()), int(negative.sum())

    @property
    def exact(self) -> bool:
        """Whether no bin may hold different scores."""
        return not self._joined.any()

    @cached_property
    def thresholds(self) -> np.ndarray:
        return _keys.edges(self._keys)

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
        return self.tp / (self.tp + self.fp)

    @property
    def dice(self) -> np.ndarray:
        """(K,) ``2 tp / (tp + fp + n_positive)``: the Dice coefficient, which is also F1."""
        self._need(positive=True)
        return 2 * self.tp / (self.tp + self.fp + self.n_positive)

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
        ends = np.minimum(self.tp, max_recall * self.n_positive)
        steps = np.diff(ends, prepend=0)
        # Halfway through a bin of several scores: (p + 1) / 2 of its lesion and half of its background voxels.
        half = 0.5 * self._joined
        tp = self.tp - half * np.maximum(self._positive - 1, 0)
        fp = self.fp - half * self._negative
        return float(np.sum(steps * _ratio(tp, tp + fp)) / (max_recall * self.n_positive))

    def auroc(self, max_fpr: float = 1.0) -> float:
        """Area under the ROC curve for false-positive rates up to ``max_fpr``, divided by it, in [0, 1].

        Ties are joined by a straight line, so a bin counts half. Chance is ``max_fpr / 2``; the standardised value of
        McClish (1989, Med Decis Making 9:190) is ``(1 + (area - chance) / (1 - chance)) / 2``.

        Args:
            max_fpr: (0, 1].
        """
        self._need(positive=True, negative=True)
        _check_share("max_fpr", max_fpr)
        x, y = np.r_[0.0, self.fp], np.r_[0.0, self.tp]
        limit = max_fpr * self.n_negative
        if max_fpr < 1:
            end = int(np.searchsorted(x, limit))  # the first point at or beyond the limit: x[end - 1] < limit <= x[end]
            slope = (y[end] - y[end - 1]) / (x[end] - x[end - 1])
            x, y = np.r_[x[:end], limit], np.r_[y[:end], y[end - 1] + slope * (limit - x[end - 1])]
        return float(np.trapezoid(y, x) / (limit * self.n_positive))

    def best_dice(self) -> tuple[float, float]:
        """(highest Dice, its threshold); among equal Dice the highest threshold."""
        dice = self.dice
        best = int(np.argmax(dice))
        return float(dice[best]), float(self.thresholds[best])

    def at_fpr(self, rate: float) -> OperatingPoint:
        """The lowest observed threshold with at most ``rate`` false positives among background voxels.

        When even the highest bin exceeds ``rate``, the threshold lies just above it and nothing is predicted.
        """
        self._need(negative=True)
        _check_share("rate", rate)
        return self._point(int(np.searchsorted(self.fp, rate * self.n_negative, side="right")) - 1)

    def at_recall(self, share: float) -> OperatingPoint:
        """The highest observed threshold that finds at least ``share`` of the lesion voxels."""
        self._need(positive=True)
        _check_share("share", share)
        needed = np.ceil(share * self.n_positive - 1e-9 * self.n_positive)
        return self._point(int(np.searchsorted(self.tp, needed, side="left")))

    def at_precision(self, share: float) -> OperatingPoint | None:
        """The lowest observed threshold of at least this precision (the most recall); None when no threshold has it."""
        self._need(positive=True)
        _check_share("share", share)
        reached = np.flatnonzero(self.precision >= share)
        return self._point(int(reached[-1])) if len(reached) else None

    def average_precision_bracket(self) -> tuple[float, float]:
        """Between these lies the average precision of the scores before they were binned.

        In a bin of several scores: lowest when the background comes first and lesion voxels follow one by one, highest
        when the lesion voxels come first, all tied. Any order and any ties of the raw scores fall between: a lesion
        voxel's precision is taken at the end of its tied block, which holds at least its own rank of the bin's lesion
        voxels and at most all of its background (lowest), at most all of its lesion voxels and at least none of its
        background (highest).
        """
        self._need(positive=True)
        before_tp, before_fp = self.tp - self._positive, self.fp - self._negative
        tied = np.sum((self._positive * self.precision)[~self._joined])
        if not self._joined.any():
            return float(tied / self.n_positive), float(tied / self.n_positive)
        lesion = (self._positive > 0) & self._joined
        p, before, tp, fp = self._positive[lesion], before_tp[lesion], self.tp[lesion], self.fp[lesion]
        highest = np.sum(p * tp / (tp + before_fp[lesion]))
        # j / (j + fp) is concave in j: its sum over a range is at least that of the line between its ends.
        lowest = np.sum(p / 2 * ((before + 1) / (before + 1 + fp) + tp / (tp + fp)))
        return float((tied + lowest) / self.n_positive), float((tied + highest) / self.n_positive)

    def auroc_bracket(self) -> tuple[float, float]:
        """Between these lies the area of the scores before they were binned: background or lesion first in each bin."""
        area = self.auroc()
        pairs = float(self.n_positive) * self.n_negative
        apart = np.sum((self._negative.astype(np.float64) * self._positive)[self._joined]) / (2 * pairs)
        return area - float(apart), area + float(apart)

    def best_dice_bracket(self) -> tuple[float, float]:
        """Between these lies the highest Dice of the scores before they were binned."""
        self._need(positive=True)
        before_fp = np.where(self._joined, self.fp - self._negative, self.fp)
        return self.best_dice()[0], float(np.max(2 * self.tp / (self.tp + before_fp + self.n_positive)))

    def _point(self, index: int) -> OperatingPoint:
        tp, fp = (int(self.tp[index]), int(self.fp[index])) if index >= 0 else (0, 0)
        keys = self._keys[index : index + 1] if index >= 0 else self._partition.ends(self._keys[:1])
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


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    return np.divide(above, below, out=np.zeros(len(above)), where=below > 0)


def _check_share(name: str, value: float) -> None:
    if not 0 < value <= 1:
        raise UserError(f"{name} = {value!r} is not valid: give a share above 0, up to 1.")
