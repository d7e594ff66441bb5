"""Lesions, slices, image scores and reconstruction against slow literal definitions, and hand-made volumes."""

import itertools
import warnings
from fractions import Fraction

import numpy as np
import pytest
import scipy.ndimage
import sklearn.metrics as sk
import torch

from adbench.errors import UserError
from adbench.metrics import bootstrap, component_tree, lesion
from adbench.metrics.base import Metric
from adbench.metrics.evaluate import choose_thresholds, evaluate, lesion_size_groups
from adbench.metrics.histogram import SubjectHistograms
from adbench.metrics.similarity import ssim_map
from adbench.metrics.spatial import SpatialAccumulator, froc_curve, froc_thresholds, sample_spatial
from adbench.metrics.spec import MAP_METRICS

FROC = [1.2, 1.0, 0.99, 0.98, 0.9]


def volume(seed, shape=(5, 12, 11), lesion_share=0.04):
    rng = np.random.default_rng(seed)
    brain = rng.random(shape) < 0.8
    mask = rng.random(shape) < lesion_share
    maps = (rng.random(shape) + 0.4 * mask).astype(np.float16).astype(np.float32)
    return maps, mask, brain


def accumulate(seeds, thresholds=None, froc=(), **more):
    spatial = SpatialAccumulator({"val": 0.95} if thresholds is None else thresholds, froc, **more)
    data = {f"s{seed}": volume(seed, lesion_share=0.04 if seed % 4 else 0.0) for seed in seeds}
    for subject, (maps, mask, brain) in data.items():
        spatial.add_volume(subject, maps, mask, brain)
    return spatial, data


def slabs(mask, slices):
    """(labels, count) by SciPy, the volume cut wherever a gap is above 1.5 times its median gap."""
    gaps = [b - a for a, b in itertools.pairwise(slices)]
    labels, count, start = np.zeros(mask.shape, int), 0, 0
    for stop in [i + 1 for i, gap in enumerate(gaps) if gap > 1.5 * np.median(gaps)] + [len(slices)]:
        part, found = scipy.ndimage.label(mask[start:stop], np.ones((3, 3, 3)))
        labels[start:stop] = np.where(part > 0, part + count, 0)
        count, start = count + found, stop
    return labels, count


def matched(mask, predicted, slices):
    """(IoU of each lesion with its component or 0, false components), literally: sets of voxels, closest pair first."""
    sets = []
    for array in (mask, predicted):
        labels, count = slabs(array, slices)
        sets.append([set(np.flatnonzero(labels == i + 1).tolist()) for i in range(count)])
    lesions, parts = sets
    pairs = [(Fraction(len(a & b), len(a | b)), i, j) for i, a in enumerate(lesions) for j, b in enumerate(parts)]
    ious, free = [0.0] * len(lesions), set(range(len(parts)))
    for iou, i, j in sorted(pairs, key=lambda pair: (-pair[0], pair[1], pair[2])):
        shared, size, predicted_size = len(lesions[i] & parts[j]), len(lesions[i]), len(parts[j])
        enough = Fraction(shared, size) >= Fraction(1, 10) and Fraction(shared, predicted_size) >= Fraction(3, 10)
        if enough and ious[i] == 0 and j in free:
            ious[i] = float(iou)
            free.remove(j)
    return ious, len(free)


SLICES = [3, 5, 7, 9, 13, 14, 16]  # a cut between 9 and 13


def test_lesions_are_matched_as_defined():
    spatial = SpatialAccumulator({"val": 0.95}, FROC)
    data = {f"s{seed}": volume(seed, (7, 12, 11), lesion_share=0.06 if seed % 4 else 0.0) for seed in range(1, 7)}
    for subject, (maps, mask, brain) in data.items():
        spatial.add_volume(subject, maps, mask, brain, SLICES)
    every = [0.95, *FROC]
    found, false, lesions, overlap = np.zeros(6), np.zeros(6), 0, 0.0
    for row, (maps, mask, brain) in zip(spatial.rows, data.values(), strict=True):
        lesions += slabs(mask & brain, SLICES)[1]
        for i, t in enumerate(np.float32(every)):
            ious, wrong = matched(mask & brain, (maps >= t) & brain, SLICES)
            found[i] += sum(iou > 0 for iou in ious)
            false[i] += wrong
            if i == 0:
                overlap += sum(ious)
                assert row.lesion_ious == pytest.approx(ious)
    assert 0 < found[0] < lesions
    assert false[0] > 0
    values = {name: one.value for name, one in sample_spatial(spatial, None).items()}
    assert values["lesion_recall@val"] == pytest.approx(found[0] / lesions, abs=1e-12)
    precision, recall = found[0] / (found[0] + false[0]), found[0] / lesions
    assert values["lesion_f1@val"] == pytest.approx(2 * precision * recall / (precision + recall), abs=1e-12)
    assert values["lesion_iou@val"] == pytest.approx(overlap / lesions, abs=1e-12)
    quality = overlap / found[0] * values["lesion_f1@val"]
    assert values["pq@val"] == pytest.approx(quality, abs=1e-12), "segmentation times recognition quality"
    own_recall, own_false = froc_curve(spatial, np.ones((1, 6)))
    np.testing.assert_allclose(own_recall[0], found[1:] / lesions, atol=1e-12)
    np.testing.assert_allclose(own_false[0], false[1:] / 6, atol=1e-12)
    at = {
        r: max([x for x, f in zip(own_recall[0], own_false[0], strict=True) if f <= r], default=0) for r in (1, 2, 4, 8)
    }
    for rate, expected in at.items():
        assert values[f"froc@{rate}"] == pytest.approx(expected, abs=1e-12)
    assert values["froc"] == pytest.approx(np.mean(list(at.values())), abs=1e-12)
    assert len(set(at.values())) > 1


@pytest.mark.parametrize(
    ("lesion_box", "predicted_box", "found"),
    [
        ((0, 10, 0, 10), (0, 1, 0, 10), True),  # 10 % of the lesion
        ((0, 10, 0, 10), (0, 1, 0, 9), False),
        ((0, 3, 0, 10), (0, 10, 0, 10), True),  # 30 % of the component
        ((0, 3, 0, 10), (0, 10, 0, 11), False),
        ((0, 10, 0, 10), (9, 12, 0, 10), True),
        ((0, 10, 0, 10), (9, 13, 0, 10), False),
    ],
)
def test_the_limits_of_a_match(lesion_box, predicted_box, found):
    arrays = []
    for top, bottom, left, right in (lesion_box, predicted_box):
        arrays.append(np.zeros((1, 20, 20), bool))
        arrays[-1][:, top:bottom, left:right] = True
    spatial = SpatialAccumulator({"val": 0.5})
    spatial.add_volume("a", arrays[1] * 1.0, arrays[0], np.ones((1, 20, 20), bool))
    iou = (arrays[0] & arrays[1]).sum() / (arrays[0] | arrays[1]).sum()
    assert spatial.rows[0].lesion_ious == [pytest.approx(iou) if found else 0]
    assert spatial.rows[0].false_components == [not found]


def test_a_map_that_covers_everything_finds_nothing():
    mask, brain = np.zeros((6, 20, 20), bool), np.ones((6, 20, 20), bool)
    mask[1:3, 2:6, 2:6] = mask[4, 15:18, 15:18] = True
    maps = {"constant": np.ones(mask.shape), "lesions": mask.astype(float)}
    values = {}
    for name, scores in maps.items():
        spatial = SpatialAccumulator({"val": 1.0}, [1.0])
        spatial.add_volume("a", scores, mask, brain)
        values[name] = {metric: one.value for metric, one in sample_spatial(spatial, None).items()}
    for metric in ("lesion_recall@val", "lesion_f1@val", "lesion_iou@val", "pq@val", "froc"):
        assert (values["constant"][metric], values["lesions"][metric]) == (0, 1), metric


@pytest.mark.parametrize(
    ("slices", "cuts"),
    [
        ([44, 47, 50, 54, 57], []),
        ([0, 1, 2, 5, 6], [3]),
        ([0, 2, 4, 6, 9], []),
        ([0, 2, 4, 6, 10], [4]),
        ([0.0, 1.2, 2.4, 4.2], []),
        ([0.0, 1.2, 2.4, 4.3], [3]),
        ([4, 90], []),
        ([7], []),
    ],
)
def test_a_volume_is_cut_where_its_own_gaps_say(slices, cuts):
    assert lesion.breaks(np.array(slices)).tolist() == cuts
    assert lesion.breaks(np.array(slices) * 0.9).tolist() == cuts, "the same in mm"


def test_one_irregular_volume_cuts_no_other():
    mask = np.ones((5, 4, 4), bool)
    spatial = SpatialAccumulator({})
    for name, slices in {"a": [0, 1, 2, 3, 4], "b": [0, 3, 6, 10, 13], "c": [0, 1, 2, 8, 9]}.items():
        spatial.add_volume(name, mask * 1.0, mask, mask, slices)
        (row,) = (row for row in spatial.rows if row.volume == name)
        assert row.lesion_sizes == [int((slabs(mask, slices)[0] == i + 1).sum()) for i in range(slabs(mask, slices)[1])]
    assert [len(row.lesion_sizes) for row in spatial.rows] == [1, 1, 2]


def test_plugin_metrics_see_the_same_components():
    maps, mask, brain = volume(3, (7, 12, 11))
    checked = lesion.checked_volume("a", maps, mask, brain, SLICES)
    labels, count = checked.components(checked.lesion)
    expected, number = slabs(mask & brain, SLICES)
    assert count == number
    np.testing.assert_array_equal(labels, expected)


def test_neighbours_touch_by_a_corner():
    mask = np.zeros((3, 4, 4), bool)
    mask[0, 0, 0] = mask[1, 1, 1] = mask[2, 2, 2] = True
    assert lesion.components(mask)[1] == 1
    full = np.ones_like(mask)
    scores = np.float32([0.1, 0.9, 0.5])[:, None, None] * mask

    def sizes(slices):
        row = SpatialAccumulator({"val": 0.5})
        row.add_volume("a", scores, mask, full, slices)
        return row.rows[0].lesion_sizes, row.rows[0].lesion_ious

    assert sizes([4, 5, 6]) == ([3], [pytest.approx(2 / 3)])
    assert sizes([4, 5, 9]) == ([2, 1], [0.5, 1])
    assert sizes([6, 4, 5]) == ([2, 1], [1, 0]), "slices are put in order first"


def test_false_alarms_and_image_scores():
    spatial, data = accumulate(range(8))
    free = alarm = 0
    top, highest, labels = [], [], []
    for maps, mask, brain in data.values():
        for score, truth, inside in zip(maps, mask & brain, brain, strict=True):
            own = np.sort(score[inside])[::-1]
            top.append(np.percentile(own[: max(1, round(len(own) / 100))], 50, method="lower"))
            highest.append(own[0])
            labels.append(truth.any())
            free += not truth.any()
            alarm += not truth.any() and own[0] >= np.float32(0.95)
    values = {name: one.value for name, one in sample_spatial(spatial, None).items()}
    assert values["fa_slice"] == pytest.approx(alarm / free, abs=1e-12)
    assert values["image_auroc"] == pytest.approx(sk.roc_auc_score(labels, top), abs=1e-9)
    assert values["image_auprc"] == pytest.approx(sk.average_precision_score(labels, top), abs=1e-9)
    assert values["image_auroc@max"] == pytest.approx(sk.roc_auc_score(labels, highest), abs=1e-9)
    assert values["image_auprc@max"] == pytest.approx(sk.average_precision_score(labels, highest), abs=1e-9)


def test_top_share_is_one_percent():
    maps = np.arange(1000, dtype=np.float32).reshape(1, 25, 40)
    spatial = SpatialAccumulator({})
    spatial.add_volume("a", maps, np.zeros_like(maps), np.ones_like(maps))
    assert (spatial.rows[0].slice_top, spatial.rows[0].slice_max) == ([994.0], [999.0])


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int16])
def test_maps_keep_their_type(dtype):
    maps, mask, brain = volume(1)
    scores = (maps * 1000).astype(dtype)
    if dtype == np.float64:
        scores = scores * 1e300  # far beyond float32
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        checked = lesion.checked_volume("a", scores, mask, brain, None)
    assert checked.maps.dtype == dtype
    _, highest, _ = lesion.slice_scores(checked)
    assert highest == [float(scores[k][brain[k]].max()) for k in range(5)]


@pytest.mark.parametrize("increasing", [lambda z: 2.0 ** (8 * z), lambda z: 8 * z + 500, lambda z: z**3])
def test_an_increasing_function_of_the_map_changes_no_number(increasing):
    """Maps that the histogram holds exactly before and after; thresholds, FROC and image scores among the numbers."""
    values = []
    for function in (lambda z: z, increasing):
        val, test = SubjectHistograms(), SubjectHistograms()
        split = {"v": [smooth(100 + seed, seed < 4) for seed in range(24)], "s": [smooth(s, s < 7) for s in range(10)]}
        for i, (maps, mask) in enumerate(split["v"]):
            val.update(f"v{i}", function(maps).astype(np.float32), mask)
        thresholds = choose_thresholds(val)[0]
        assert {"val", "fpr1", "conformal05"} < set(thresholds)
        spatial = SpatialAccumulator(thresholds, froc_thresholds(val))
        for i, (maps, mask) in enumerate(split["s"]):
            test.update(f"s{i}", function(maps).astype(np.float32), mask)
            spatial.add_volume(f"s{i}", function(maps).astype(np.float32), mask, np.ones_like(mask))
        result = evaluate(test, val, intervals=False, spatial=spatial)
        values.append({name: one.value for name, one in result.metrics.items() if not name.startswith("recon")})
    assert None not in values[0].values()
    assert values[1] == pytest.approx(values[0], abs=1e-12)


def smooth(seed, ill):
    """(8, 20, 20) correlated scores in steps of 1/8, with two lesions or none."""
    rng = np.random.default_rng(seed)
    mask = np.zeros((8, 20, 20), bool)
    if ill:
        mask[2:5, 5:9, 5:9] = mask[5:7, 13:16, 13:16] = True
    return np.round(scipy.ndimage.gaussian_filter(rng.normal(0, 1, mask.shape) + 2 * mask, 0.7) * 8) / 8, mask


def test_reconstruction_counts_healthy_tissue_only():
    rng = np.random.default_rng(0)
    image = rng.random((2, 20, 20)).astype(np.float32)
    mask, brain = np.zeros(image.shape, bool), np.zeros(image.shape, bool)
    brain[:, 3:17, 3:17], mask[0, 5:8, 5:8] = True, True
    recon = image.copy()
    recon[mask] = 0
    recon[~brain] = 1
    spatial = SpatialAccumulator({})
    spatial.add_volume("a", image, mask, brain, recon=recon, image=image)
    assert spatial.rows[0].recon_l1 == 0
    recon[1, 10, 10] = image[1, 10, 10] + 0.5
    other = SpatialAccumulator({})
    other.add_volume("a", image, mask, brain, recon=recon, image=image)
    assert other.rows[0].recon_l1 == pytest.approx(0.5 / (brain & ~mask).sum(), rel=1e-5)
    assert other.rows[0].recon_ssim < spatial.rows[0].recon_ssim <= 1


def rough(shape, rng):
    return rng.random(shape)


def waves(shape, rng):
    return scipy.ndimage.gaussian_filter(rng.normal(size=shape), 1.2)


def terraces(shape, rng):
    return np.round(waves(shape, rng) * 12) / 12


def flat(shape, rng):
    return np.full(shape, 0.5)


def whole_numbers(shape, rng):
    return rng.integers(-3, 3, shape)


def mostly_nothing(shape, rng):
    return np.where(rng.random(shape) < 0.7, 0, rng.random(shape))


def at_each_threshold(given, thresholds):
    """What :func:`lesion.detect` finds, by SciPy's labels at one threshold after the other."""
    for threshold in thresholds:
        predicted = (given.maps.astype(np.float64) >= threshold) & given.brain
        yield matched(given.lesion, predicted, given.slices.tolist())


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int16])
@pytest.mark.parametrize("kind", [rough, waves, terraces, flat, whole_numbers, mostly_nothing])
def test_all_thresholds_at_once_are_each_alone(kind, dtype, monkeypatch):
    monkeypatch.setattr(component_tree, "_BLOCK", 64)
    monkeypatch.setattr(component_tree, "_MOST_EDGES", 100)
    seen = set()
    for seed in range(24):
        rng = np.random.default_rng([seed, np.dtype(dtype).itemsize])
        shape = tuple(rng.integers([1, 1, 1], [8, 11, 12]))
        maps = kind(shape, rng)
        maps = (maps * (5 if dtype == np.int16 else 1)).astype(dtype)
        mask = (rng.random(shape) < 0.1, waves(shape, rng) > 0.2, np.zeros(shape, bool), np.ones(shape, bool))[seed % 4]
        brain = rng.random(shape) < (0.7, 2.0)[seed % 2]
        slices = np.cumsum(rng.choice([1, 1, 1, 4], shape[0]))
        given = lesion.Volume(maps, mask & brain, brain, slices)
        own = maps[brain] if brain.any() else maps.ravel()
        # Out of order, some twice, some between two scores, and some that all or none of the scores reach.
        some = rng.choice(own.astype(np.float64), rng.integers(0, 12))
        thresholds = rng.permutation([*some, *some[:2], *(some[:3] + 1e-9), float(own.min()), float(own.max()) + 1])
        thresholds = thresholds[: len(thresholds) if seed % 3 else 0].tolist()
        sizes, found = lesion.detect(given, thresholds)
        assert sum(sizes) == given.lesion.sum()
        assert len(found) == len(thresholds)
        for one, (ious, false) in zip(found, at_each_threshold(given, thresholds), strict=True):
            assert (one.ious, one.false) == (ious, false), (seed, shape)
            seen |= {("found", one.found > 0), ("false", one.false > 0)}
    assert len(seen) == 4


def test_many_thresholds_and_nested_lesions_of_equal_overlap():
    """More levels than a byte counts, on a staircase; and two components that fit a lesion equally well."""
    stairs = np.arange(600, dtype=np.float32).reshape(1, 20, 30)
    full = np.ones(stairs.shape, bool)
    mask = np.zeros(stairs.shape, bool)
    mask[0, 10:, :] = True
    thresholds = np.arange(600).tolist()
    _, found = lesion.detect(lesion.Volume(stairs, mask, full, np.arange(1)), thresholds)
    assert [one.false for one in found[300:571]] == [0] * 271, "30 voxels are a tenth of the lesion"
    assert found[300].ious == [1.0]
    assert [one.ious for one in found[571:]] == [[0.0]] * 29

    scores = np.zeros((1, 3, 11), np.float32)
    scores[0, 1, [1, 2, 8, 9]] = 3
    ill = np.zeros(scores.shape, bool)
    ill[0, 1] = True
    every = lesion.Volume(scores, ill, np.ones(scores.shape, bool), np.arange(1))
    assert [(one.ious, one.false) for one in lesion.detect(every, [3, 1])[1]] == [([2 / 11], 1)] * 2


def test_components_of_a_single_line():
    for axis in range(3):
        mask = np.moveaxis(np.array([[[1, 0, 1, 1, 0, 1]]], bool), 2, axis)
        labels, count = lesion.components(mask)
        assert (labels.ravel().tolist(), count) == ([1, 0, 2, 2, 0, 3], 3)
    assert lesion.components(np.zeros((2, 3, 4), bool))[1] == 0


def literal_ssim(first, second):
    """The formula of Wang et al. with five images filtered by SciPy."""

    def smooth(image):
        return scipy.ndimage.gaussian_filter(image, 1.5, radius=5, mode="reflect")

    x, y = first.astype(np.float64), second.astype(np.float64)
    mean_x, mean_y = smooth(x), smooth(y)
    spread = smooth(x * x) - mean_x**2 + smooth(y * y) - mean_y**2
    shared = smooth(x * y) - mean_x * mean_y
    above = (2 * mean_x * mean_y + 1e-4) * (2 * shared + 9e-4)
    return above / ((mean_x**2 + mean_y**2 + 1e-4) * (spread + 9e-4))


@pytest.mark.parametrize("shape", [(1, 1), (3, 40), (11, 4), (64, 16), (65, 17), (150, 131)])
def test_ssim_equals_five_filtered_images(shape):
    rng = np.random.default_rng(shape)
    for _ in range(4):
        first = rng.random(shape).astype(np.float32)
        second = np.clip(first + rng.normal(0, 0.2, shape), 0, 1).astype(np.float16)
        expected = literal_ssim(first, second)
        np.testing.assert_allclose(ssim_map(first, second), expected, rtol=0, atol=1e-12)
        (top, bottom), (left, right) = (np.sort(rng.choice(size + 1, 2, replace=False)) for size in shape)
        part = slice(top, bottom), slice(left, right)
        np.testing.assert_allclose(ssim_map(first, second, *part), expected[part], rtol=0, atol=1e-12)


def test_ssim_beside_pixels_that_are_not_finite():
    rng = np.random.default_rng(2)
    first, second = (rng.random((40, 50)).astype(np.float32) for _ in range(2))
    first[20, 8], second[2, 44] = np.nan, np.inf
    with np.errstate(invalid="ignore"):
        expected = literal_ssim(first, second)
    found = ssim_map(first, second)
    assert 0 < np.isnan(found).sum() < found.size
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


def test_reconstruction_is_the_mean_over_healthy_brain():
    rng = np.random.default_rng(5)
    image, recon = (rng.random((4, 70, 33)).astype(np.float32) for _ in range(2))
    brain, mask = rng.random(image.shape) < 0.5, np.zeros(image.shape, bool)
    brain[2], mask[1, 20:40], mask[3] = False, True, True
    brain[:, :7] = brain[:, :, 25:] = False
    spatial = SpatialAccumulator({})
    spatial.add_volume("a", image, mask, brain, recon=recon, image=image)
    healthy = brain & ~mask
    expected = np.concatenate([literal_ssim(a, b)[inside] for a, b, inside in zip(recon, image, healthy, strict=True)])
    assert spatial.rows[0].recon_ssim == pytest.approx(expected.mean(), rel=0, abs=1e-12)
    distance = np.abs(recon[healthy].astype(np.float64) - image[healthy])
    assert spatial.rows[0].recon_l1 == pytest.approx(distance.mean(), rel=0, abs=1e-14)


def test_ssim_equals_monai_away_from_the_edge():
    from monai.metrics.regression import compute_ssim_and_cs

    rng = np.random.default_rng(0)
    first, second = (rng.random((32, 30)).astype(np.float32) for _ in range(2))
    tensors = [torch.from_numpy(x)[None, None].double() for x in (first, second)]
    theirs, _ = compute_ssim_and_cs(
        *tensors, spatial_dims=2, kernel_size=(11, 11), kernel_sigma=(1.5, 1.5), data_range=1
    )
    np.testing.assert_allclose(ssim_map(first, second)[5:-5, 5:-5], theirs[0, 0].numpy(), atol=1e-5)
    np.testing.assert_allclose(ssim_map(first, first), 1, atol=1e-12)


def test_replicates_equal_repeating_the_drawn_subjects():
    spatial, data = accumulate(range(5), froc=[1.1, 1.0, 0.9])
    draws = np.array([[1, 2, 0, 2, 0], [0, 0, 5, 0, 0], [5, 0, 0, 0, 0]], float)
    samples = sample_spatial(spatial, draws)
    for row, draw in enumerate(draws):
        again = SpatialAccumulator({"val": 0.95}, [1.1, 1.0, 0.9])
        for (subject, (maps, mask, brain)), times in zip(data.items(), draw, strict=True):
            for k in range(int(times)):
                again.add_volume(f"{subject}-{k}", maps, mask, brain)
        for name, one in sample_spatial(again, None).items():
            if samples[name].value is None:
                assert one.value is None
            elif one.value is None:
                assert np.isnan(samples[name].samples[row]), name
            else:
                assert samples[name].samples[row] == pytest.approx(one.value, abs=1e-9), name
    assert np.isnan(samples["lesion_recall@val"].samples[2])


def test_merging_shards_and_files_change_nothing(tmp_path):
    whole, data = accumulate(range(6), froc=[1.0])
    first, second = SpatialAccumulator({"val": 0.95}, [1.0]), SpatialAccumulator({"val": 0.95}, [1.0])
    for i, (subject, arrays) in enumerate(reversed(data.items())):
        (first, second)[i % 2].add_volume(subject, *arrays)
    second.merge(first)
    assert second.rows == whole.rows
    whole.to_json(tmp_path / "s.json")
    read = SpatialAccumulator.from_json(tmp_path / "s.json")
    assert read.rows == whole.rows
    assert (read.thresholds, read.froc) == (whole.thresholds, whole.froc)
    with pytest.raises(UserError, match="s0, s1, s2, s3, s4 are on both sides of a merge"):
        whole.merge(read)
    with pytest.raises(UserError, match="cannot be merged"):
        whole.merge(SpatialAccumulator({"val": 0.5}))
    for damage in ("{}", "[", '{"thresholds": {}, "froc": [], "rows": [{"volume": "a"}]}'):
        (tmp_path / "s.json").write_text(damage)
        with pytest.raises(UserError, match=r"s\.json does not hold spatial counts"):
            SpatialAccumulator.from_json(tmp_path / "s.json")


def test_froc_thresholds_are_spaced_by_background_and_reach_into_the_lesions_above_it():
    val, data = both(range(100, 106), "v")
    background, lesions = (
        np.concatenate([maps[brain & (mask == kind)] for maps, mask, brain in data.values()]) for kind in (False, True)
    )
    thresholds = froc_thresholds(val, count=16)
    assert thresholds == sorted(set(thresholds), reverse=True)
    inside = [t for t in thresholds if t <= background.max()]
    assert np.mean(background >= inside[-1]) == pytest.approx(0.05, abs=0.005)
    clear = lesions[lesions > background.max()]
    above = [t for t in thresholds if t > background.max()]
    assert len(clear) > 8
    np.testing.assert_allclose(
        [np.sum(clear >= t) / len(clear) for t in above], np.arange(1, 9) / 8, atol=2 / len(clear)
    )
    again = SubjectHistograms()
    for subject, (maps, mask, brain) in data.items():
        again.update(subject, np.float32(2) ** maps[brain], mask[brain])
    np.testing.assert_allclose(np.log2(froc_thresholds(again, count=16)), thresholds, atol=2e-3)
    assert froc_thresholds(SubjectHistograms()) == []


# ----------------------------------------------------------------------------------------------- together with evaluate


def both(seeds, prefix="s", **more):
    histograms = SubjectHistograms()
    data = {f"{prefix}{seed}": volume(seed, lesion_share=0.04 if seed % 4 else 0.0) for seed in seeds}
    for subject, (maps, mask, brain) in data.items():
        histograms.update(subject, maps[brain], mask[brain])
    return histograms, data


class LesionVoxels(Metric):
    """Mean lesion voxels of a subject, from its histogram."""

    name = "lesion_voxels"

    def measure(self, subject):
        return subject.histogram.n_positive, 1.0


class MeanMap(Metric):
    """Mean score in the brain, over all voxels."""

    name = "mean_map"
    needs_maps = True

    def measure(self, subject):
        assert subject.volume is not None
        assert subject.thresholds["val"] > 0
        inside = subject.volume.maps[subject.volume.brain]
        return float(inside.sum(dtype=np.float64)), float(len(inside))


class Broken(Metric):
    """Returns nonsense."""

    name = "broken"

    def measure(self, subject):
        return float("nan"), 1.0


def test_evaluate_adds_spatial_metrics_plugins_and_strata():
    test, data = both(range(8))
    val, _ = both(range(100, 106), "v")
    thresholds = choose_thresholds(val)[0]
    spatial = SpatialAccumulator(thresholds, froc_thresholds(val), metrics=[MeanMap()])
    for i, (subject, arrays) in enumerate(data.items()):
        spatial.add_volume(subject, *arrays, site="A" if i < 5 else "B", modality=None)
    result = evaluate(test, val, spatial=spatial, metrics=[LesionVoxels(), MeanMap()], strata=True)
    assert set(MAP_METRICS) < set(result.metrics)
    assert result.metrics["lesion_voxels"].value == np.mean([(m & b).sum() for _, m, b in data.values()])
    pooled = np.concatenate([maps[brain] for maps, _, brain in data.values()])
    assert result.metrics["mean_map"].value == pytest.approx(pooled.mean(dtype=np.float64), abs=1e-9)
    assert result.metrics["mean_map"].low < result.metrics["mean_map"].value < result.metrics["mean_map"].high
    assert result.metrics["recon_l1"].reason == "the method gives no reconstruction"
    assert result.subjects[1]["lesions"] == len(spatial.rows[1].lesion_sizes)
    assert list(result.strata) == ["lesion_size", "site"]
    assert list(result.strata["lesion_size"]) == ["small", "medium", "large"]
    subset = ["s5", "s6", "s7"]
    alone = evaluate(test.subset(subset), val, spatial=spatial.subset(subset))
    part = result.strata["site"]["B"]
    for name in alone.metrics:
        assert part[name] == alone.metrics[name], name


def test_lesion_size_groups_by_percentile():
    test = SubjectHistograms()
    for i, size in enumerate([0, 1, 2, 3, 4, 5]):
        test.update(f"s{i}", np.zeros(10), np.arange(10) < size)
    assert lesion_size_groups(test) == {"s1": "small", "s2": "small", "s3": "medium", "s4": "medium", "s5": "large"}
    assert lesion_size_groups(test.subset(["s0"])) == {}


def test_plugins_that_lie_or_clash_are_named():
    test, _ = both(range(4))
    with pytest.raises(UserError, match=r"Metric 'broken' measured \(nan, 1\.0\) on subject 's0'"):
        evaluate(test, metrics=[Broken()])
    clash = type("Clash", (LesionVoxels,), {"name": "auprc"})()
    with pytest.raises(UserError, match="The metric name 'auprc' of Clash is taken"):
        evaluate(test, metrics=[clash])
    with pytest.raises(UserError, match="The metric Nameless has no name"):
        evaluate(test, metrics=[type("Nameless", (LesionVoxels,), {"name": ""})()])
    unseen = evaluate(test, metrics=[MeanMap()]).metrics["mean_map"]
    assert (unseen.value, unseen.reason) == (None, "it needs maps, and none were streamed")


def test_spatial_of_other_subjects_or_thresholds_is_refused():
    test, data = both(range(4))
    val, _ = both(range(100, 106), "v")
    spatial = SpatialAccumulator(choose_thresholds(val)[0])
    for subject in ("s0", "s1", "s2"):
        spatial.add_volume(subject, *data[subject])
    with pytest.raises(UserError, match=r"Volume 's3' \(1 in all\) has only histograms"):
        evaluate(test, val, spatial=spatial)
    spatial.add_volume("s3", *data["s3"])
    with pytest.raises(UserError, match=r"streamed with the val threshold .* histograms give None"):
        evaluate(test, None, spatial=spatial)


def test_without_a_threshold_or_a_lesion_the_reason_is_given():
    spatial, _ = accumulate([4, 8], thresholds={})
    values = sample_spatial(spatial, None)
    assert values["lesion_recall@val"].reason == "no val threshold was known while the maps were streamed"
    assert values["froc"].reason == "no FROC thresholds were given"
    assert values["image_auroc"].reason.startswith("not both kinds of slices")
    healthy, _ = accumulate([4, 8], froc=[0.9])
    values = sample_spatial(healthy, np.ones((3, 2)))
    assert values["lesion_recall@val"].reason == values["froc"].reason == "no lesion in the test split"
    assert values["fa_slice"].value is not None


def test_bad_volumes_are_refused():
    maps, mask, brain = volume(1)
    spatial = SpatialAccumulator({})
    cases = [
        (
            (maps, mask[:-1], brain),
            r"Maps of case 'p' have shape \(5, 12, 11\) but its lesion mask has shape \(4, 12, 11\)",
        ),
        ((maps, mask, brain[..., :-1]), r"its brain mask has shape \(5, 12, 10\)"),
        ((maps, mask, brain & False), "Case 'p' has no brain voxel: its brain mask is empty"),
        ((maps, mask * 3, brain), "Labels of case 'p' hold the value 3"),
        ((maps[0], mask[0], brain[0]), "give slices x height x width"),
        (
            (np.where(brain, np.nan, maps), mask, brain),
            r"Scores of case 'p' hold \d+ NaN or infinite values inside the brain",
        ),
    ]
    for arrays, message in cases:
        with pytest.raises(UserError, match=message):
            spatial.add_volume("p", *arrays)
    with pytest.raises(UserError, match=r"has 5 maps but its slice indices are \[0, 0, 1, 2, 3\]"):
        spatial.add_volume("p", maps, mask, brain, [0, 0, 1, 2, 3])
    spatial.add_volume("p", torch.from_numpy(maps), torch.from_numpy(mask), torch.from_numpy(brain))
    with pytest.raises(UserError, match="Volume 'p' was added before"):
        spatial.add_volume("p", maps, mask, brain)
    assert spatial.rows[0].subject == "p", "NaN outside the brain does not matter, a refused case leaves no trace"


def test_false_alarms_at_the_conformal_thresholds():
    spatial, data = accumulate(range(8), {"val": 0.95, "conformal05": 1.1, "conformal10": 0.9}, FROC)
    assert spatial.rules == ["val", "conformal05", "conformal10"]
    values = sample_spatial(spatial, None)
    for rule, limit in (("conformal05", np.float32(1.1)), ("conformal10", np.float32(0.9))):
        alarm = free = components = healthy = 0
        for maps, mask, brain in data.values():
            predicted = (maps >= limit) & brain
            lesion_free = ~(mask & brain).any(axis=(1, 2))
            free += lesion_free.sum()
            alarm += (lesion_free & predicted.any(axis=(1, 2))).sum()
            if lesion_free.all():
                healthy += 1
                components += scipy.ndimage.label(predicted, np.ones((3, 3, 3)))[1]
        assert healthy == 2
        assert values[f"fa_slice@{rule}"].value == pytest.approx(alarm / free)
        assert values[f"fa_scan@{rule}"].value == pytest.approx(components / healthy)
        assert values[f"fa_scan@{rule}"].n == healthy
    assert values["fa_scan@conformal05"].value < values["fa_scan@conformal10"].value
    alone = sample_spatial(spatial.subset(["s1", "s2"]), None)
    assert alone["fa_scan@conformal05"].reason == "no lesion-free volume in the test split"


def test_conformal_rates_are_given_by_site():
    val, _ = both(range(400, 480, 4), "v")  # 20 subjects without lesion
    test, data = both(range(8))
    spatial = SpatialAccumulator(choose_thresholds(val)[0], froc_thresholds(val))
    for i, (name, arrays) in enumerate(data.items()):
        spatial.add_volume(name, *arrays, site="A" if i < 4 else "B")
    result = evaluate(test, val, spatial=spatial, strata=True)
    threshold = np.float32(result.thresholds["conformal05"])
    for site, name in (("A", "s0"), ("B", "s4")):
        maps, _, brain = data[name]
        own = result.strata["site"][site]["fpr_healthy@conformal05"]
        assert (own.value, own.n) == (float((maps[brain] >= threshold).mean() > 0.01), 1)
        assert result.strata["site"][site]["fa_slice@conformal05"].value is not None
    assert result.metrics["dice@val"].reason.startswith("the validation split has no lesion")
    assert result.metrics["dice@conformal05"].value is not None, "Dice without a lesion in validation"


# ------------------------------------------------------------------------------------------- several volumes a subject


def test_volumes_of_a_subject_are_scored_apart_and_resampled_together():
    test, data = both(range(1, 8))
    val, _ = both(range(100, 106), "v")
    owner = dict(zip(data, ["a", "a", "a", "b", "c", "c", "d"], strict=True))
    spatial = SpatialAccumulator(choose_thresholds(val)[0], froc_thresholds(val))
    for name, arrays in data.items():
        spatial.add_volume(name, *arrays, subject=owner[name])
    result = evaluate(test, val, spatial=spatial, strata=True)
    apart = evaluate(test, val, spatial=spatial, subject_of={name: name for name in data})
    assert [row["subject"] for row in result.subjects] == list(owner.values())
    assert [row["volume"] for row in result.subjects] == list(data)
    for name, one in result.metrics.items():
        assert one.value == apart.metrics[name].value, "a value is over volumes, whoever they belong to"
    # The resamples are those of four subjects whose volumes go together.
    draws = bootstrap.weights(4, 200, 0)
    by_volume = draws[:, [0, 0, 0, 1, 2, 2, 3]]
    dice = np.array([row["dice@val"] or 0.0 for row in result.subjects])
    has = np.array([row["dice@val"] is not None for row in result.subjects], float)
    assert 0 < has.sum() < 7
    sample = by_volume @ dice / (by_volume @ has)
    drawn = sample_spatial(spatial, bootstrap.weights_of(list(spatial.subject_of.values()), 200, 0))
    lesions = np.array([len(row.lesion_sizes) for row in spatial.rows], float)
    found = np.array([row.found[0] for row in spatial.rows], float)
    np.testing.assert_allclose(drawn["lesion_recall@val"].samples, by_volume @ found / (by_volume @ lesions))
    np.testing.assert_allclose(bootstrap.ratio(dice, has, bootstrap.weights_of(list(owner.values()), 200, 0)), sample)
    assert result.metrics["dice@val"].n == 3, "of a, b, c, d only the volume of b (s4) bears no lesion"
    assert "7 volumes of 4 test subjects: scored by volume, resampled by subject." in result.notes


def test_weights_of_single_volumes_are_those_of_subjects():
    np.testing.assert_array_equal(bootstrap.weights_of(["a", "b", "c"], 50, 3), bootstrap.weights(3, 50, 3))
    together = bootstrap.weights_of(["b", "a", "b"], 50, 3)
    np.testing.assert_array_equal(together[:, 0], together[:, 2])
    np.testing.assert_array_equal(together[:, [1, 0]], bootstrap.weights(2, 50, 3))


def test_a_subject_on_both_sides_is_found_behind_its_volumes():
    test, _ = both(range(1, 3))
    val, _ = both(range(1, 2), "v")
    with pytest.raises(UserError, match=r"1 subject\(s\) are in the validation and in the test split: v1"):
        evaluate(test, val, subject_of={"s1": "v1", "s2": "x"})


def test_a_curve_of_no_volumes_is_undefined():
    """As when the only subject is left out; NumPy stays silent."""
    spatial, _ = accumulate([3], {"val": 0.5}, [0.8, 0.2])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        recall, false = froc_curve(spatial, np.array([[1.0], [0.0]]))
    row = spatial.rows[0]
    np.testing.assert_array_equal(false[0], row.false_components[1:])
    np.testing.assert_array_equal(recall[0], np.array(row.found[1:]) / len(row.lesion_sizes))
    assert np.isnan(recall[1]).all()
    assert np.isnan(false[1]).all()
