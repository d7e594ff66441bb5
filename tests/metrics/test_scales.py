"""No number depends on the scale of a map: a strictly increasing transform leaves all of them as they are."""

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics as sk

from adbench.metrics import histogram as module
from adbench.metrics.evaluate import choose_thresholds, compact, evaluate
from adbench.metrics.histogram import SubjectHistograms
from adbench.metrics.presets import PresetCase, official_madad, upd
from adbench.metrics.spatial import SpatialAccumulator, froc_thresholds

SHAPE = (4, 12, 12)
TRANSFORMS = {
    "float16": lambda z: z.astype(np.float16),
    "float32": lambda z: z.astype(np.float32),
    "float64": lambda z: z,
    "sigmoid": lambda z: (1 / (1 + np.exp(-4 * z))).astype(np.float32),
    "offset": lambda z: (z + 1000).astype(np.float32),
    "far offset": lambda z: (z - 1e6).astype(np.float32),
    "tiny": lambda z: np.exp(z - 140),
    "huge": lambda z: np.exp(50 * z) * 1e200,
    "denormal": lambda z: (z * 1e-42).astype(np.float32),
    "integers": lambda z: np.round(1000 * z).astype(np.int32),
    "cube": lambda z: z**3,
    "saturating": lambda z: np.tanh(3 * z).astype(np.float32),
}


def study():
    """Volume -> (float64 scores, lesion): nine with lesions and three without; validation 6 and 20."""
    rng = np.random.default_rng(3)
    data = {}
    for split, ill, healthy in (("t", 9, 3), ("v", 6, 20)):
        for i in range(ill + healthy):
            lesion = np.zeros(SHAPE, bool)
            if i < ill:
                row, column = rng.integers(0, 8, 2)
                lesion[1:3, row : row + 2 + i % 3, column : column + 3] = True
            data[f"{split}{i:02}"] = np.clip(rng.standard_normal(SHAPE) + 1.5 * lesion, -4.5, 4.5), lesion
    return data


STUDY = study()


def numbers(maps, few=False, exact=False):
    """(evaluation, with its values by name and stratum) of volume -> scores: ``few`` bins, or ``exact`` with intervals."""
    val, test = SubjectHistograms(), SubjectHistograms()
    for volume, scores in maps.items():
        (test if volume[0] == "t" else val).update(volume, scores, STUDY[volume][1])
    thresholds, froc = choose_thresholds(val)[0], froc_thresholds(val)
    assert {"val", "fpr1", "fpr5", "conformal05", "conformal10"} == set(thresholds)
    spatial = SpatialAccumulator(thresholds, froc)
    for volume in test:
        spatial.add_volume(volume, maps[volume], STUDY[volume][1], np.ones(SHAPE, bool))
    if few:
        compact(test, val, froc)
    result = evaluate(test, val, spatial=spatial, strata=True, intervals=few or exact)
    groups = {("all", ""): result.metrics} | {
        (grouping, group): metrics for grouping, part in result.strata.items() for group, metrics in part.items()
    }
    values = {(*group, name): one.value for group, metrics in groups.items() for name, one in metrics.items()}
    return result, {key: value for key, value in values.items() if value is not None}


def transformed(name):
    """(maps, their ranks over both splits): what ties after rounding ties in both."""
    maps = {volume: TRANSFORMS[name](z) for volume, (z, _) in STUDY.items()}
    ranks = scipy.stats.rankdata(np.stack(list(maps.values())), "dense").reshape(len(maps), *SHAPE)
    return maps, dict(zip(maps, ranks.astype(np.float64), strict=True))


def full(maps):
    """(scores, lesion) of all test voxels."""
    test = [volume for volume in maps if volume[0] == "t"]
    scores = np.stack([maps[v] for v in test]).ravel().astype(np.float64)
    return scores, np.stack([STUDY[v][1] for v in test]).ravel()


@pytest.mark.parametrize("name", TRANSFORMS)
def test_every_number_is_that_of_the_ranks(name):
    maps, ranks = transformed(name)
    result, values = numbers(maps)
    _, expected = numbers(ranks)
    assert len(values) > 60
    assert values == pytest.approx(expected, abs=1e-12)
    scores, labels = full(maps)
    assert result.metrics["auprc"].value == pytest.approx(sk.average_precision_score(labels, scores), abs=1e-12)
    assert result.metrics["auroc"].value == pytest.approx(sk.roc_auc_score(labels, scores), abs=1e-12)
    assert result.brackets == {}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_joining_scores_changes_no_number(name, monkeypatch):
    monkeypatch.setattr(module, "MOST_BINS", 0)
    maps, ranks = transformed(name)
    result, values = numbers(maps, few=True)
    of_ranks, expected = numbers(ranks, exact=True)
    assert values == pytest.approx(expected, abs=1e-4)
    thresholds = ("dice@", "lesion", "froc", "fa_", "image", "fpr", "pq")
    for key, value in values.items():
        if key[-1].startswith(thresholds) and "best" not in key[-1]:
            assert value == pytest.approx(expected[key], abs=1e-12), key
    for metric, truth in zip(("auprc", "auroc"), (sk.average_precision_score, sk.roc_auc_score), strict=True):
        scores, labels = full(maps)
        exact = truth(labels, scores)
        assert result.metrics[metric].value == pytest.approx(exact, abs=1e-4)
        low, high = result.brackets.get(metric, (exact, exact))
        assert low - 1e-12 <= exact <= high + 1e-12
    if name == "float16":
        assert result.brackets == {}
    for metric, one in result.metrics.items():  # intervals too; those of oracles hang on thresholds of fewer subjects
        exact = of_ranks.metrics[metric]
        assert (one.low is None) == (exact.low is None)
        if one.low is not None:
            assert (one.low, one.high) == pytest.approx((exact.low, exact.high), abs=2e-4 if one.oracle else 1e-4), (
                metric
            )


@pytest.mark.parametrize("name", ["sigmoid", "float16", "integers", "tiny", "saturating"])
def test_official_madad_is_that_of_the_scores(name):
    maps, _ = transformed(name)
    low, high = min(m.min() for m in maps.values()), max(m.max() for m in maps.values())
    cases = [
        PresetCase(
            v, (maps[v].astype(np.float64) - low) / (float(high) - float(low)), STUDY[v][1], np.ones(SHAPE, bool)
        )
        for v in maps
        if v[0] == "t"
    ]
    scores = np.stack([case.maps for case in cases]).ravel()
    labels = np.stack([case.lesion for case in cases]).ravel()
    assert upd(cases).values["ap"] == pytest.approx(sk.average_precision_score(labels, scores), abs=1e-12)
    assert official_madad(cases).values == pytest.approx(official_madad(cases[::-1]).values, abs=1e-12)
