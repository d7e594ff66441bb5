"""Curves against scikit-learn and brute force on tied float16 scores; brackets otherwise."""

import numpy as np
import pytest
import sklearn.metrics as sk
from hypothesis import given, settings
from hypothesis import strategies as st

from adbench.errors import UserError
from adbench.metrics.curves import Curve, best_mean_dice
from adbench.metrics.histogram import ScoreHistogram, SubjectHistograms
from adbench.metrics.partition import Partition
from adbench.metrics.score_bins import CELL_SHIFT, ordered


def curve_of(scores, labels):
    histogram = ScoreHistogram()
    histogram.update(scores, labels)
    return Curve(histogram)


@st.composite
def tied(draw):
    """(float16 scores with many ties, labels with both classes)"""
    seed = draw(st.integers(0, 2**32 - 1))
    size, values = draw(st.integers(2, 400)), draw(st.integers(1, 60))
    rng = np.random.default_rng(seed)
    pool = (rng.standard_normal(values) * 10.0 ** rng.integers(-6, 4)).astype(np.float16)
    labels = rng.random(size) < rng.random()
    labels[:2] = [True, False]
    scores = np.where(labels & (rng.random(size) < 0.5), pool.max(), rng.choice(pool, size)).astype(np.float16)
    return scores, labels


@given(tied())
@settings(max_examples=150)
def test_areas_and_f1_equal_scikit_learn(data):
    scores, labels = data
    curve, exact = curve_of(scores, labels), scores.astype(np.float64)
    assert curve.average_precision() == pytest.approx(sk.average_precision_score(labels, exact), abs=1e-9)
    assert curve.auroc() == pytest.approx(sk.roc_auc_score(labels, exact), abs=1e-9)
    precision, recall, _ = sk.precision_recall_curve(labels, exact)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-300)
    assert curve.best_dice()[0] == pytest.approx(f1.max(), abs=1e-9)


@given(tied(), st.floats(0.01, 0.99))
@settings(max_examples=100)
def test_partial_areas(data, share):
    scores, labels = data
    curve, exact = curve_of(scores, labels), scores.astype(np.float64)
    chance = share / 2
    standardised = 0.5 * (1 + (curve.auroc(share) - chance) / (1 - chance))
    assert standardised == pytest.approx(sk.roc_auc_score(labels, exact, max_fpr=share), abs=1e-9)
    precision, recall, _ = sk.precision_recall_curve(labels, exact, drop_intermediate=False)
    steps = np.minimum(recall[:-1], share) - np.minimum(recall[1:], share)
    assert curve.average_precision(share) == pytest.approx(float(steps @ precision[:-1]) / share, abs=1e-9)


@given(tied())
@settings(max_examples=60)
def test_every_threshold_equals_brute_force(data):
    scores, labels = data
    curve = curve_of(scores, labels)
    assert curve.thresholds.tolist() == sorted(set((scores.astype(np.float32) + 0.0).tolist()), reverse=True)
    for i, threshold in enumerate(curve.thresholds):
        predicted = scores >= threshold
        tp, fp, fn = (predicted & labels).sum(), (predicted & ~labels).sum(), (~predicted & labels).sum()
        assert (curve.tp[i], curve.fp[i]) == (tp, fp)
        assert curve.dice[i] == pytest.approx(2 * tp / (2 * tp + fp + fn), abs=1e-12)
        assert curve.recall[i] == pytest.approx(tp / labels.sum(), abs=1e-12)
        assert curve.fpr[i] == pytest.approx(fp / (~labels).sum(), abs=1e-12)
        assert curve.precision[i] == pytest.approx(tp / predicted.sum(), abs=1e-12)


@given(tied(), st.floats(0.005, 1.0))
@settings(max_examples=100)
def test_a_false_positive_rate_is_kept_by_the_lowest_threshold_that_keeps_it(data, share):
    scores, labels = data
    curve = curve_of(scores, labels)
    candidates = [(scores >= t, float(t)) for t in curve.thresholds]
    allowed = [t for predicted, t in candidates if predicted[~labels].sum() <= share * (~labels).sum()]
    point = curve.at_fpr(share)
    assert point.fpr <= share
    assert point.threshold == min(allowed) if allowed else point.threshold > float(scores.max())


@given(st.integers(0, 2**32 - 1), st.integers(1, 6))
@settings(max_examples=60)
def test_brackets_hold_the_numbers_of_the_single_scores(seed, parts):
    rng = np.random.default_rng(seed)
    scores = rng.choice(rng.random(150), 300)  # ties in the raw scores as well
    labels = rng.random(300) < 0.2 + 0.3 * scores
    labels[:2] = [True, False]
    keys = np.sort(ordered(scores))
    cells = np.unique(keys >> CELL_SHIFT)
    inner = np.setdiff1d(rng.choice(keys, parts), cells << CELL_SHIFT)
    partition = Partition(cells, np.union1d(cells << CELL_SHIFT, inner))
    histogram = ScoreHistogram()
    histogram.update(scores, labels)
    histogram.rebin(partition)
    curve = Curve(histogram)
    assert not curve.exact
    precision, recall, _ = sk.precision_recall_curve(labels, scores)
    truth = {
        "average_precision": sk.average_precision_score(labels, scores),
        "auroc": sk.roc_auc_score(labels, scores),
        "best_dice": float((2 * precision * recall / np.maximum(precision + recall, 1e-300)).max()),
    }
    for name, value in truth.items():
        low, high = getattr(curve, f"{name}_bracket")()
        assert low - 1e-12 <= value <= high + 1e-12, name


def test_bracket_of_untied_bins_is_a_point():
    curve = curve_of(np.float16([4, 3, 2, 1]), [1, 0, 1, 0])
    for name in ("average_precision", "auroc", "best_dice"):
        own = getattr(curve, name)()
        own = own[0] if isinstance(own, tuple) else own
        assert getattr(curve, f"{name}_bracket")() == pytest.approx((own, own), abs=1e-12)


def test_constant_scores_are_chance():
    curve = curve_of(np.full(100, 0.25, np.float32), np.arange(100) < 10)
    assert curve.average_precision() == curve.prevalence == 0.1
    assert curve.auroc() == 0.5
    assert curve.at_fpr(0.05).fpr == 0
    assert curve.at_fpr(0.05).threshold > 0.25


def test_highest_threshold_wins_among_equal_dice():
    # Dice is 2/3 at 4 (tp 1, fp 0, P 2) and at 1 (tp 2, fp 2)
    assert curve_of(np.float16([4, 3, 2, 1]), [1, 0, 0, 1]).best_dice() == (pytest.approx(2 / 3), 4.0)


def test_undefined_says_why():
    with pytest.raises(UserError, match="no lesion voxel here"):
        curve_of([0.5], [0]).average_precision()
    with pytest.raises(UserError, match="no background voxel here"):
        curve_of([0.5], [1]).auroc()
    with pytest.raises(UserError, match=r"max_fpr = 0 is not valid"):
        curve_of([0.5, 1], [1, 0]).auroc(0)


@pytest.mark.parametrize("levels", [3, 40, 800])
def test_the_best_common_threshold_is_that_of_a_look_at_all_of_them(levels: int) -> None:
    rng = np.random.default_rng(levels)
    histograms = SubjectHistograms()
    for i in range(5):
        labels = rng.random(600) < (0.3 if i else 0)  # the first without a lesion
        histograms.update(str(i), rng.integers(0, levels, 600) + labels * rng.integers(0, levels, 600), labels)
    found, threshold = best_mean_dice([Curve(own) for own in histograms.values()], Curve(histograms.pooled()))

    def mean(at: float) -> float:
        bearing = [own for own in histograms.values() if own.n_positive]
        counts = [(*own.positives_at(at), own.n_positive) for own in bearing]
        return float(np.mean([2 * tp / (tp + fp + n) for tp, fp, n in counts]))

    every = Curve(histograms.pooled()).thresholds
    means = np.array([mean(at) for at in every])
    assert found == pytest.approx(means.max(), abs=1e-12)
    assert threshold == every[np.flatnonzero(means >= means.max() - 1e-12)[0]]
