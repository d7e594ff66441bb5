"""Uncertainty over subjects: one set of multinomial weights, every number recomputed under each of them.

A replicate draws as many subjects as there are, with replacement, and is a vector of how often each was drawn. Counts
are linear in it, so pooled metrics need one matrix product of weights and per-subject histograms, taken block by block
of bins from the highest score down: memory does not grow with the number of bins.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from adbench.errors import UserError
from adbench.metrics.histogram import SubjectHistograms
from adbench.metrics.partition import distinct

_BLOCK = 384  # bins at a time: a block of 1000 replicates stays in a processor cache


def weights(n: int, replicates: int, seed: int) -> np.ndarray:
    """(replicates, n) float64: how often each of ``n`` subjects is drawn; every row sums to ``n``.

    The same arguments give the same draws, so two methods scored on the same subjects are compared on the same ones.
    """
    if n < 1 or replicates < 1:
        raise UserError(f"A bootstrap of {replicates} replicates over {n} subjects is not possible.")
    draws = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=replicates)
    return draws.astype(np.float64)


def weights_of(owners: Sequence[str], replicates: int, seed: int) -> np.ndarray:
    """(replicates, V) float64: how often the subject of each volume is drawn; all volumes of a subject go together.

    Args:
        owners: subject of each of V volumes; where each subject has one, these are :func:`weights`.
        replicates: R.
        seed: of the draws.
    """
    subjects, place = np.unique(np.asarray(owners, dtype=np.str_), return_inverse=True)
    return weights(len(subjects), replicates, seed)[:, place]


def blocks(histograms: SubjectHistograms, size: int = _BLOCK) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """The bins of n subjects in descending score, ``size`` at a time, neighbouring bins without any lesion voxel as one.

    Between two bins with lesion voxels true positives stay as they are and false positives only rise, so no sum over
    pairs of voxels and no highest precision or Dice changes; most bins of a map are such.

    Yields:
        (n, b) float64 lesion voxels, (n, b) float64 background voxels, (b,) bool: which bins hold different scores.
    """
    counts = [histogram.counts() for histogram in histograms.values()]
    union = _union([own for own, _, _ in counts])
    places = [np.searchsorted(union, own) for own, _, _ in counts]
    bearing = np.zeros(len(union), bool)
    for place, (_, lesion, _) in zip(places, counts, strict=True):
        bearing[place[lesion > 0]] = True
    starts = np.ones(len(union), bool)
    starts[1:] = bearing[1:] | bearing[:-1]
    number = np.cumsum(starts) - 1
    joined = histograms.partition.joined(union)[starts]
    numbered = []  # the bins of each subject, by number
    for place, (_, lesion, background) in zip(places, counts, strict=True):
        own, first = np.unique(number[place], return_index=True)
        if len(first):
            lesion, background = np.add.reduceat(lesion, first), np.add.reduceat(background, first)
        numbered.append((own, lesion, background))
    for stop in range(len(joined), 0, -size):
        start = max(0, stop - size)
        counted = np.zeros((2, len(counts), stop - start))
        for row, (own, *both) in enumerate(numbered):
            first, last = np.searchsorted(own, (start, stop))
            for table, part in zip(counted, both, strict=True):
                table[row, own[first:last] - start] = part[first:last]
        yield counted[0][:, ::-1], counted[1][:, ::-1], joined[start:stop][::-1]


def _union(keys: Sequence[np.ndarray]) -> np.ndarray:
    union = np.zeros(0, np.int64)
    for start in range(0, len(keys), 16):
        union = distinct(np.concatenate([union, *keys[start : start + 16]]))
    return union


def pooled(histograms: SubjectHistograms, draws: np.ndarray) -> dict[str, np.ndarray]:
    """Pooled metrics under each replicate.

    Args:
        histograms: n subjects.
        draws: (R, n) weights.

    Returns:
        ``auprc``, ``auroc``, ``dice_pooled@best`` and ``dice@best`` (whose oracle thresholds are chosen again in each
        replicate), each (R,), NaN where a replicate has no lesion voxel (or, for ``auroc``, no background voxel).
    """
    positives = np.array([histogram.n_positive for histogram in histograms.values()], np.float64)
    negatives = np.array([histogram.n_negative for histogram in histograms.values()], np.float64)
    total_positive, total_negative = draws @ positives, draws @ negatives
    bearing = (positives > 0).astype(np.float64)
    replicates = len(draws)
    precision_sum, pair_sum = np.zeros(replicates), np.zeros(replicates)
    best, best_mean = np.zeros(replicates), np.zeros(replicates)
    tp, fp = np.zeros(replicates), np.zeros(replicates)
    own_tp, own_fp = np.zeros(len(positives)), np.zeros(len(positives))
    floor = np.maximum(positives, 1)
    for positive, negative, joined in blocks(histograms):
        steps = draws @ positive
        here_tp = np.cumsum(steps, axis=1)
        here_tp += tp[:, None]
        steps_fp = draws @ negative
        here_fp = np.cumsum(steps_fp, axis=1)
        here_fp += fp[:, None]
        tp, fp = here_tp[:, -1].copy(), here_fp[:, -1].copy()
        pair_sum += np.einsum("rb,rb->r", steps_fp, here_tp) - 0.5 * np.einsum("rb,rb->r", steps_fp, steps)
        if joined.any():  # precision halfway through the bin, as in Curve.average_precision
            half = 0.5 * joined
            middle_tp = here_tp - half * np.maximum(steps - 1, 0)
            middle = here_fp - half * steps_fp
            middle += middle_tp
            share = np.divide(middle_tp, np.maximum(middle, 1, out=middle), out=middle)
            here_fp += here_tp  # predicted voxels
        else:
            here_fp += here_tp
            share = np.divide(here_tp, np.maximum(here_fp, 1, out=steps_fp), out=steps_fp)
        precision_sum += np.einsum("rb,rb->r", steps, share)
        here_fp += np.maximum(total_positive, 1)[:, None]
        here_tp /= here_fp
        np.maximum(best, 2 * here_tp.max(axis=1), out=best)
        cumulative_tp = np.cumsum(positive, axis=1) + own_tp[:, None]
        cumulative_fp = np.cumsum(negative, axis=1) + own_fp[:, None]
        own_tp, own_fp = cumulative_tp[:, -1].copy(), cumulative_fp[:, -1].copy()
        dice = 2 * cumulative_tp / (cumulative_tp + cumulative_fp + floor[:, None])
        np.maximum(best_mean, (draws @ dice).max(axis=1), out=best_mean)
    return {
        "auprc": _over(precision_sum, total_positive),
        "auroc": _over(pair_sum, total_positive * total_negative),
        "dice_pooled@best": np.where(total_positive > 0, best, np.nan),
        "dice@best": _over(best_mean, draws @ bearing),
    }


def curves(histograms: SubjectHistograms, draws: np.ndarray, points: int = 2000) -> Curves:
    """Pooled counts and mean Dice along the thresholds, under each replicate; for bands in plots.

    Args:
        histograms: n subjects.
        draws: (R, n) weights.
        points: thresholds at most, evenly spread over the occupied bins.
    """
    counts = [histogram.counts() for histogram in histograms.values()]
    union = _union([own for own, _, _ in counts])
    keys = union[np.unique(np.linspace(0, len(union) - 1, min(points, len(union))).astype(np.int64))][::-1]
    tp, fp = np.zeros((2, len(counts), len(keys)))
    for row, (own, lesion, background) in enumerate(counts):
        first = np.searchsorted(own, keys)
        for target, part in ((tp, lesion), (fp, background)):
            target[row] = np.append(np.cumsum(part[::-1])[::-1], 0)[first]
    positives = np.array([lesion.sum() for _, lesion, _ in counts], np.float64)
    bearing = positives > 0
    dice = 2 * tp[bearing] / (tp[bearing] + fp[bearing] + positives[bearing, None])
    weight = (draws @ bearing)[:, None]
    mean = np.divide(draws[:, bearing] @ dice, weight, out=np.full((len(draws), len(keys)), np.nan), where=weight > 0)
    return Curves(keys, draws @ tp, draws @ fp, mean)


@dataclass(frozen=True)
class Curves:
    """P thresholds under R replicates.

    Attributes:
        keys: (P,) int64 bins, descending.
        tp: (R, P) pooled true positives.
        fp: (R, P) pooled false positives.
        dice: (R, P) mean per-volume Dice; NaN where no lesion was drawn.
    """

    keys: np.ndarray
    tp: np.ndarray
    fp: np.ndarray
    dice: np.ndarray


def ratio(above: np.ndarray, below: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """(R,) ``sum(w * above) / sum(w * below)`` under each replicate; NaN where the denominator is 0.

    Args:
        above: (n,) one value a subject. For a mean over some subjects: the value there, 0 elsewhere.
        below: (n,) its denominator. For a mean: 1 where the value counts, 0 elsewhere.
        draws: (R, n) weights.
    """
    return _over(draws @ np.asarray(above, np.float64), draws @ np.asarray(below, np.float64))


def _over(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    return np.asarray(np.divide(above, below, out=np.full(len(above), np.nan), where=below > 0))
