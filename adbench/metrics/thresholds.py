"""Thresholds that may be used on a test split: chosen on validation, and on nothing more of it than is kept here."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

from adbench.metrics.curves import Curve
from adbench.metrics.histogram import ScoreHistogram, SubjectHistograms

AT = {f"dice@{rule}": rule for rule in ("val", "fpr1", "fpr5", "conformal05", "conformal10")}  # metric -> rule
CONFORMAL = {"conformal05": 0.05, "conformal10": 0.10}  # rule -> share of healthy subjects it may fail on
SLICES = {"slice05": 0.05, "slice10": 0.10}  # rule -> share of lesion-free validation slices that may have a positive
HEALTHY_FPR = 0.01  # a healthy subject with more false-positive voxels than this is a failure of a conformal rule


class ThresholdCounts(SubjectHistograms):
    """All of a validation split that thresholds depend on, without the counts of each subject.

    Its "subjects" are two: the sum of those with a lesion, and the sum of those without one.

    Args:
        ill: sum over the subjects with a lesion; None without any.
        healthy: sum over the subjects without one, of the same bins; None without any.
        healthy_scores: of each subject without a lesion, the lowest observed score with at most 1 % of its own voxels at
            or above it.
        names: of the two sums.
    """

    def __init__(
        self,
        ill: ScoreHistogram | None,
        healthy: ScoreHistogram | None,
        healthy_scores: Iterable[float],
        names: tuple[str, str] = ("ill", "healthy"),
    ) -> None:
        super().__init__()
        there = {name: part for name, part in zip(names, (ill, healthy), strict=True) if part is not None}
        for part in there.values():
            self.partition = part.partition
        self._by_subject.update(there)
        self.healthy_scores = sorted(healthy_scores)

    @classmethod
    def of(cls, val: SubjectHistograms, names: tuple[str, str] = ("ill", "healthy")) -> ThresholdCounts:
        """The counts of ``val``; the thresholds that follow from them are the same."""
        ill, healthy = val.subset([s for s, histogram in val.items() if histogram.n_positive]), _healthy(val)
        sums = [part.pooled() if len(part) else None for part in (ill, healthy)]
        return cls(sums[0], sums[1], healthy_scores(val), names)


def choose_thresholds(val: SubjectHistograms | None) -> tuple[dict[str, float], dict[str, str]]:
    """Thresholds that may be used on a test split: chosen without it.

    ``val`` maximises the pooled Dice over all validation voxels (the highest threshold among equals); ``fpr1`` and
    ``fpr5`` are the lowest observed scores with at most 1 % and 5 % of the voxels of lesion-free validation subjects
    at or above them.

    ``conformal10`` and ``conformal05`` are split-conformal (Papadopoulos et al. 2002, ECML:345; Angelopoulos and Bates
    2023, Found Trends Mach Learn 16:494, section 1): of each of the n lesion-free validation subjects the lowest
    observed score with at most 1 % of its own voxels at or above it, and of these n scores the
    ``ceil((n + 1)(1 - alpha))``-th smallest. Another healthy subject, exchangeable with them, has more than 1 %
    false-positive voxels there with probability at most alpha, whatever the distribution. Without n >= 9 (alpha 0.10)
    or n >= 19 (0.05) subjects no score is high enough, and there is no threshold.

    Args:
        val: validation subjects, all volumes of a subject together, or None.

    Returns:
        (rule -> threshold, rule -> why there is none).
    """
    if val is None or not len(val):
        return {}, dict.fromkeys(AT.values(), "no validation split was given")
    chosen, missing = {}, {}
    pool = val.pooled()
    if pool.n_positive:
        chosen["val"] = Curve(pool).best_dice()[1]
    else:
        missing["val"] = "the validation split has no lesion, so no threshold maximises its Dice"
    healthy = _healthy(val)
    for rule, rate in (("fpr1", 0.01), ("fpr5", 0.05)):
        if len(healthy):
            chosen[rule] = Curve(healthy.pooled()).at_fpr(rate).threshold
        else:
            missing[rule] = "the validation split has no lesion-free subject to set a false-positive rate on"
    scores = healthy_scores(val)
    for rule, alpha in CONFORMAL.items():
        place = math.ceil((len(scores) + 1) * (1 - alpha) - 1e-9)  # 1 - 0.05 is not .95 to the last digit
        if place <= len(scores):
            chosen[rule] = scores[place - 1]
        else:
            missing[rule] = (
                f"alpha = {alpha:.2f} needs {math.ceil(1 / alpha - 1e-9) - 1} lesion-free validation subjects, and there "
                f"{'is' if len(scores) == 1 else 'are'} {len(scores)}"
            )
    return chosen, missing


def slice_thresholds(highest: Sequence[float]) -> dict[str, float]:
    """The lowest thresholds at which at most 5 % and 10 % of the lesion-free validation slices have a positive voxel.

    Args:
        highest: the highest score of each of these slices, see :func:`adbench.metrics.lesion.free_maxima`.

    Returns:
        rule of :data:`SLICES` -> threshold: the number next above the highest score of the first slice that must stay
        silent. Empty without a slice.
    """
    ordered = np.sort(np.asarray(highest, np.float64))[::-1]
    silent = {rule: math.floor(share * len(ordered) + 1e-9) for rule, share in SLICES.items()}
    return {rule: float(np.nextafter(ordered[first], np.inf)) for rule, first in silent.items() if len(ordered)}


def healthy_scores(val: SubjectHistograms) -> list[float]:
    """Of each lesion-free subject the lowest observed score with at most 1 % of its voxels at or above it, ascending."""
    if isinstance(val, ThresholdCounts):
        return val.healthy_scores
    return sorted(Curve(histogram).at_fpr(HEALTHY_FPR).threshold for _, histogram in _healthy(val).items())


def _healthy(val: SubjectHistograms) -> SubjectHistograms:
    return val.subset([s for s, histogram in val.items() if histogram.n_negative and not histogram.n_positive])
