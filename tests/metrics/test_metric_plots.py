"""Plots are written, say what they show, and refuse what cannot be drawn."""

import numpy as np
import pytest

from adbench.metrics import bootstrap, plots, score_bins
from adbench.metrics.evaluate import evaluate
from adbench.metrics.histogram import ScoreHistogram, SubjectHistograms
from adbench.metrics.spatial import SpatialAccumulator


def dice_at(histogram, threshold):
    tp, fp = histogram.positives_at(threshold)
    return 2 * tp / (tp + fp + histogram.n_positive)


def histograms(prefix, lesion=0.1, subjects=4):
    rng = np.random.default_rng(len(prefix))
    result = SubjectHistograms()
    for i in range(subjects):
        labels = rng.random(400) < lesion
        result.update(f"{prefix}{i}", (rng.standard_normal(400) + labels).astype(np.float16), labels)
    return result


def test_plots_are_written_and_repeat(tmp_path):
    test = histograms("t")
    result = evaluate(test, histograms("va"))
    assert plots.all_plots(test, result, tmp_path / "deep" / "one") == []
    assert plots.all_plots(test, result, tmp_path / "two") == []
    for name in ("pr.png", "roc.png", "dice.png"):
        first = (tmp_path / "deep" / "one" / name).read_bytes()
        assert first[:4] == b"\x89PNG"
        assert (tmp_path / "two" / name).read_bytes() == first


def test_without_a_lesion_nothing_is_drawn(tmp_path):
    healthy = histograms("h", lesion=0)
    assert plots.all_plots(healthy, evaluate(healthy), tmp_path) == [
        "No plot was drawn: no lesion voxel in the whole test split."
    ]
    assert not list(tmp_path.iterdir())


def test_bands_hold_the_curves_of_their_replicates():
    test = histograms("t")
    draws = np.array([[1, 1, 1, 1], [0, 2, 2, 0]], float)
    sampled = bootstrap.curves(test, draws, points=10**6)
    for row, draw in enumerate(draws):
        pool, means = ScoreHistogram(), []
        for (_, histogram), times in zip(test.items(), draw, strict=True):
            for _ in range(int(times)):
                pool.merge(histogram)
                means.append(histogram)
        for key, tp, fp, dice in zip(sampled.keys, sampled.tp[row], sampled.fp[row], sampled.dice[row], strict=True):
            threshold = float(score_bins.edges(np.array([key]))[0])
            assert pool.positives_at(threshold) == (tp, fp)
            assert dice == pytest.approx(np.mean([dice_at(h, threshold) for h in means]), abs=1e-12)
    thinned = bootstrap.curves(test, draws, points=7)
    assert len(thinned.keys) == 7
    place = [sampled.keys.tolist().index(key) for key in thinned.keys]
    np.testing.assert_array_equal(thinned.tp, sampled.tp[:, place])
    assert thinned.keys[-1] == sampled.keys[-1]


def test_one_subject_has_no_band_and_plots_anyway(tmp_path):
    test = histograms("t", subjects=1)
    assert plots.all_plots(test, evaluate(test), tmp_path) == []
    assert {path.name for path in tmp_path.iterdir()} == {"pr.png", "roc.png", "dice.png"}


def test_what_is_not_drawn_is_said(tmp_path):
    only = SubjectHistograms()
    only.update("a", [1.0, 2.0], [1, 1])
    notes = plots.all_plots(only, evaluate(only), tmp_path, spatial=SpatialAccumulator({}))
    assert notes == [
        "No ROC plot was drawn: no background voxel in the whole test split.",
        "No plot of lesion recall by size was drawn: no lesion.",
        "No FROC plot was drawn: no FROC thresholds were given.",
    ]


def test_scores_without_an_axis_lose_no_other_plot(tmp_path):
    test = SubjectHistograms()
    for i in range(6):
        labels = np.arange(50) % 10 == i
        test.update(f"s{i}", np.linspace(-1, 1, 50) * 1.7e308 * 0.9 ** (i % 2), labels)
    result = evaluate(test)
    notes = plots.all_plots(test, result, tmp_path)
    assert notes == ["No plot of Dice against the threshold was drawn: scores of 1e+300 and more have no axis."]
    assert {path.name for path in tmp_path.iterdir()} == {"pr.png", "roc.png"}
