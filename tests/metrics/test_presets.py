"""Each preset against a slow implementation of its paper's rule, written out from the rule, not from the fast code."""

import warnings

import numpy as np
import pytest
import sklearn.metrics as sk
from scipy import ndimage

from adbench.errors import UserError
from adbench.metrics.presets import PresetCase, _Pool, _without_small, cddpm, evaluate_preset, official_madad, thor, upd


def make(seed, subjects=3, shape=(4, 32, 30), kind="smooth", dtype=np.float32):
    rng = np.random.default_rng(seed)
    cases = []
    for i in range(subjects):
        brain = np.zeros(shape, bool)
        brain[:, 3:-3, 3:-3] = True
        lesion = np.zeros(shape, bool)
        for s in range(shape[0]):
            if rng.random() < 0.7:
                size = int(rng.integers(2, 9))
                y, x = rng.integers(4, 18, 2)
                lesion[s, y : y + size, x : x + size] = True
        noise = rng.random(shape)
        maps = {
            "smooth": ndimage.gaussian_filter(noise, (0, 1, 1)) * 0.8 + 0.3 * lesion,
            "steps": np.round(noise * 200) / 200 * (0.5 + 0.5 * lesion),  # exactly on the thresholds
            "wide": noise * 3 - 1,  # below 0 and above 1
        }[kind]
        cases.append(PresetCase(f"s{i}", (maps * brain).astype(dtype).astype(np.float32), lesion, brain))
    return cases


def slices_of(cases):
    return [pair for case in cases for pair in zip(case.maps, case.lesion, strict=True)]


def binarised(scores, threshold):
    """Above the threshold is set to 1, then whatever is below 1 is set to 0."""
    scores = scores.astype(np.float64)
    scores[scores > threshold] = 1
    scores[scores < 1] = 0
    return scores >= 1


@pytest.mark.parametrize("kind", ["smooth", "steps"])
@pytest.mark.parametrize("seed", range(3))
def test_official_madad_equals_the_literal_loop(kind, seed):
    cases = make(seed, kind=kind)
    slices, means = slices_of(cases), []
    for threshold in np.linspace(0, 1, 201):
        values = []
        for score, lesion in slices:
            predicted = binarised(score, threshold)
            if lesion.sum() == 0:
                values.append(1 if predicted.sum() == 0 else 0)
            else:
                values.append(2.0 * (predicted * lesion).sum() / (predicted.sum() + lesion.sum() + 1e-6))
        means.append(np.mean(values))
    assert any(not lesion.any() for _, lesion in slices)
    result = official_madad(cases)
    assert result.values["dice"] == pytest.approx(max(means), abs=1e-9)
    assert result.thresholds["dice"] == np.linspace(0, 1, 201)[int(np.argmax(means))]


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_official_madad_pools_all_pixels_unbinned(dtype):
    cases = make(5, dtype=dtype)
    scores = np.concatenate([case.maps.ravel() for case in cases])
    labels = np.concatenate([case.lesion.ravel() for case in cases])
    precision, recall, _ = sk.precision_recall_curve(labels, scores)
    values = official_madad(cases).values
    assert values["ap"] == pytest.approx(sk.average_precision_score(labels, scores), abs=1e-9)
    assert values["auroc"] == pytest.approx(sk.roc_auc_score(labels, scores), abs=1e-9)
    assert values["f1max"] == pytest.approx(np.max(2 * precision * recall / (precision + recall + 1e-300)), abs=1e-9)


def test_the_pool_is_exact_where_scores_are_close():
    """Scores that differ in their last bit, ties within and between the classes, all dtypes."""
    rng = np.random.default_rng(0)
    for dtype, scale in ((np.float32, 2.0**-24), (np.float64, 2.0**-53), (np.int16, 1)):
        labels = rng.random(4000) < 0.1
        steps = rng.integers(0, 300, 4000) + 60 * labels
        scores = (steps * scale + (0 if dtype is np.int16 else 0.5)).astype(dtype)
        pool = _Pool()
        for part in np.split(np.arange(4000), [100, 100, 2500]):
            pool.add(scores[part], labels[part])
        precision, recall, _ = sk.precision_recall_curve(labels, scores)
        assert pool.ap() == pytest.approx(sk.average_precision_score(labels, scores), abs=1e-12)
        assert pool.auroc() == pytest.approx(sk.roc_auc_score(labels, scores), abs=1e-12)
        assert pool.f1max() == pytest.approx(np.max(2 * precision * recall / (precision + recall + 1e-300)), abs=1e-12)
        assert 0.1 < pool.ap() < 0.9


def test_maps_outside_the_unit_interval_have_no_value():
    for name, preset in (("official-madad", official_madad), ("thor", thor)):
        result = preset(make(1, kind="wide"))
        assert set(result.values.values()) == {None}
        assert set(result.values) == set(preset(make(1)).values)
        assert not result.thresholds
        (note,) = result.notes
        assert note.startswith("Undefined: its thresholds lie in [0, 1], and the scores of case 's0' run from -0.99"), (
            note
        )
        assert any("thresholds lie in [0, 1]" in note for note in preset(make(1)).notes), name


def test_official_madad_gives_the_floor_of_an_empty_map():
    lesion = np.zeros((10, 8, 8), bool)
    lesion[0, 2, 2] = True
    blank = PresetCase("a", np.zeros((10, 8, 8), np.float32), lesion, np.ones((10, 8, 8), bool))
    assert official_madad([blank]).values["dice"] == pytest.approx(0.9), "nine empty slices score 1 for nothing"


@pytest.mark.parametrize("kind", ["smooth", "steps"])
def test_thor_equals_the_literal_loop(kind):
    cases, edges = make(1, subjects=5, kind=kind), (3, 16, 40, 64)
    result = thor(cases, edges=edges)
    used = 0
    for name, low, high in (("small", 3, 16), ("medium", 16, 40), ("large", 40, 64)):
        chosen = [(s, m) for s, m in slices_of(cases) if low < m.sum() <= high]
        used += len(chosen)
        scores, labels = (np.concatenate([pair[i].ravel() for pair in chosen]) for i in range(2))
        dice = []
        for threshold in np.linspace(0, 1, 101):
            predicted = binarised(scores, threshold)
            dice.append(2.0 * (predicted * labels).sum() / (predicted.sum() + labels.sum() + 1e-6))
        assert result.values[f"dice_{name}"] == pytest.approx(max(dice), abs=1e-9)
        assert result.values[f"ap_{name}"] == pytest.approx(sk.average_precision_score(labels, scores), abs=1e-9)
    assert 0 < used < len(slices_of(cases))


def test_thor_without_slices_in_a_bin():
    result = thor(make(1), edges=(3, 10, 500, 600))
    assert result.values["dice_large"] is None
    assert "large: 0 slices of 501 to 600 lesion pixels." in result.notes
    assert any("scores 21 slice indices that it lists, and leaves out 20 more" in note for note in result.notes)
    assert "The bins are pixels of a 128 x 128 slice; these slices have 32 x 30." in result.notes
    assert not any("128 x 128" in note for note in thor(make(1, shape=(4, 128, 128))).notes)
    with pytest.raises(UserError, match=r"edges = \[3, 2, 4, 5\] are not valid"):
        thor(make(1), edges=(3, 2, 4, 5))


def slow_cddpm_filter(case):
    filtered = np.zeros_like(case.maps)
    strel = ndimage.generate_binary_structure(2, 1)
    for s in range(len(case.maps)):
        eroded = ndimage.binary_erosion(case.brain[s], structure=strel, iterations=case.maps.shape[2] // 25)
        filtered[s] = case.maps[s] * eroded
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(filtered, 2, mode="symmetric"), (5, 5, 5))
    return np.median(windows, axis=(3, 4, 5)).astype(filtered.dtype)


def slow_search(scores, labels, low, high, steps, best=0, point=0):
    if steps == 0:
        return point
    center, q_low, q_high = low + (high - low) * 0.5, low + (high - low) * 0.25, low + (high - low) * 0.75
    d_low, d_high = (2 * ((scores > q) & labels).sum() / ((scores > q).sum() + labels.sum()) for q in (q_low, q_high))
    if d_low >= d_high:
        best, point = (d_low, q_low) if d_low >= best else (best, point)
        return slow_search(scores, labels, low, center, steps - 1, best, point)
    best, point = (d_high, q_high) if d_high >= best else (best, point)
    return slow_search(scores, labels, center, high, steps - 1, best, point)


def filled_area(component):
    """``area_filled`` of scikit-image's region properties, which is this call."""
    return ndimage.binary_fill_holes(component, np.ones((3, 3, 3))).sum()


def slow_without_small(mask, at_most=7):
    labels, count = ndimage.label(mask, structure=np.ones((3, 3, 3)))
    for i in range(1, count + 1):
        if filled_area(labels == i) <= at_most:
            mask = mask & (labels != i)
    return mask


def test_small_components_go_by_their_filled_area():
    rng = np.random.default_rng(0)
    for share in (0.02, 0.1, 0.3, 0.6):
        mask = rng.random((6, 12, 12)) < share
        np.testing.assert_array_equal(_without_small(mask, 7), slow_without_small(mask))
    shell = np.zeros((5, 5, 5), bool)
    shell[1:4, 1:4, 1:4] = True
    shell[2, 2, 2] = False
    assert (shell.sum(), filled_area(shell)) == (26, 27)
    for at_most in (7, 25):
        assert _without_small(shell, at_most).sum() == slow_without_small(shell, at_most).sum() == 26
    faces = np.zeros((5, 5, 5), bool)  # a hole that is open at its edges is none
    faces[[1, 3, 2, 2, 2, 2, 4], [2, 2, 1, 3, 2, 2, 2], [2, 2, 2, 2, 1, 3, 2]] = True
    assert (faces.sum(), filled_area(faces)) == (7, 7)
    assert not _without_small(faces, 7).any()


def with_blobs(seed, subjects):
    """Smooth maps in which lesions stand out and small false components remain."""
    rng = np.random.default_rng(seed)
    cases = []
    for i in range(subjects):
        shape = (8, 30, 52)
        brain = np.zeros(shape, bool)
        brain[:, 3:-3, 3:-3] = True
        lesion = np.zeros(shape, bool)
        if i:
            lesion[2:6, 10:17, 10:17] = True
        maps = ndimage.gaussian_filter(rng.random(shape), 1) + 0.12 * lesion
        cases.append(PresetCase(f"s{i}", maps.astype(np.float16).astype(np.float32), lesion, brain))
    return cases


def test_cddpm_equals_the_literal_steps():
    val, cases = with_blobs(0, 3), with_blobs(1, 4)
    filtered = [(slow_cddpm_filter(case), case.lesion) for case in val]
    assert [lesion.any() for _, lesion in filtered] == [False, True, True]
    scores, labels = (np.concatenate([pair[i].ravel() for pair in filtered]) for i in range(2))
    threshold = slow_search(scores, labels, 0.0, float(scores.max()), 10)
    dice, precision, removed = [], [], 0
    for case in cases:
        own = slow_cddpm_filter(case)
        raw = own > threshold
        predicted = slow_without_small(raw)
        removed += int(raw.sum() - predicted.sum())
        total = predicted.sum() + case.lesion.sum()
        dice.append(2 * (predicted & case.lesion).sum() / total if total else np.nan)
        with warnings.catch_warnings():  # "No positive class found": it then gives 0
            warnings.simplefilter("ignore")
            precision.append(sk.average_precision_score(case.lesion.ravel(), own.ravel()))
    assert precision[0] == 0
    assert not cases[0].lesion.any()
    result = cddpm(cases, val)
    assert removed > 0
    assert result.thresholds["dice"] == pytest.approx(threshold, abs=1e-12)
    assert result.values["dice"] == pytest.approx(np.nanmean(dice), abs=1e-9)
    assert result.values["auprc"] == pytest.approx(np.mean(precision), abs=1e-9)
    assert 0.2 < result.values["dice"] < 1
    assert "1 of 4 volumes have no lesion and count as 0 in auprc." in result.notes


def test_cddpm_pools_validation_volumes_without_lesion_too():
    val, cases = with_blobs(0, 3), with_blobs(1, 4)
    loud = PresetCase("loud", val[0].maps + np.float32(0.1) * val[0].brain, val[0].lesion, val[0].brain)
    with_it, without = (cddpm(cases, own).thresholds["dice"] for own in ([loud, *val[1:]], val[1:]))
    assert with_it != without, "the search is greedy: more false alarms may move it either way"


def test_cddpm_needs_lesions_on_validation():
    cases = with_blobs(0, 2)
    with pytest.raises(UserError, match="on validation volumes: give some"):
        cddpm(cases)
    with pytest.raises(UserError, match="none of them has a lesion"):
        cddpm(cases, cases[:1])
    with pytest.raises(UserError, match="case 's0' is 20 pixels wide"):
        cddpm(make(0, shape=(4, 32, 20)), make(0, shape=(4, 32, 20)))


@pytest.mark.parametrize("kind", ["smooth", "steps", "wide"])
def test_upd_equals_the_literal_loop(kind):
    cases = make(2, kind=kind)
    maps = np.concatenate([(case.maps * case.brain).ravel() for case in cases]).astype(np.float64)
    labels = np.concatenate([case.lesion.ravel() for case in cases])
    dice = []
    for threshold in np.linspace(maps.max(), maps.min(), 100):
        predicted = np.where(maps > threshold, 1, 0)
        dice.append(2 * predicted[labels].sum() / (predicted.sum() + labels.sum()))
    values = upd(cases).values
    assert values["dice"] == pytest.approx(max(dice), abs=1e-9)
    assert values["ap"] == pytest.approx(sk.average_precision_score(labels, maps), abs=1e-9)


def test_presets_by_name_and_their_refusals():
    cases = make(0)
    assert evaluate_preset("upd", cases).values == upd(cases).values
    with pytest.raises(UserError, match=r"Unknown preset 'madad'\. Did you mean 'official-madad'"):
        evaluate_preset("madad", cases)
    with pytest.raises(UserError, match="give a list, not a generator"):
        upd(case for case in cases)
    for preset in (official_madad, upd):
        with pytest.raises(UserError, match="There is no case to evaluate"):
            preset([])
    with pytest.raises(UserError, match=r"Case 'x' has maps \(1, 2, 2\) but its lesion mask is bool \(1, 2, 3\)"):
        PresetCase("x", np.zeros((1, 2, 2), np.float32), np.zeros((1, 2, 3), bool), np.ones((1, 2, 2), bool))
    with pytest.raises(UserError, match="Case 'x': a preset needs slices x height x width of finite scores"):
        PresetCase("x", np.full((1, 2, 2), np.nan, np.float32), np.zeros((1, 2, 2), bool), np.ones((1, 2, 2), bool))


def test_without_lesion_nothing_is_invented():
    healthy = [
        PresetCase("a", np.full((2, 30, 30), 0.5, np.float32), np.zeros((2, 30, 30), bool), np.ones((2, 30, 30), bool))
    ]
    assert upd(healthy).values == {"ap": None, "dice": None}
    assert official_madad(healthy).values == {"dice": 1.0, "f1max": None, "auroc": None, "ap": None}
