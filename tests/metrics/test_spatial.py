"""Lesions, slices, image scores and reconstruction against slow literal definitions, and hand-made volumes."""

import itertools

import numpy as np
import pytest
import sklearn.metrics as sk
import torch

from adbench.errors import UserError
from adbench.metrics import lesion
from adbench.metrics.base import Metric
from adbench.metrics.evaluate import choose_thresholds, evaluate, lesion_size_groups
from adbench.metrics.histogram import SubjectHistograms
from adbench.metrics.spatial import NAMES, SpatialAccumulator, froc_curve, froc_thresholds, sample_spatial

FROC = [1.2, 1.0, 0.99, 0.98, 0.9]


def flood(mask):
    """Connected components by flood fill over the 26 neighbours: a list of sets of voxels."""
    left, found = set(zip(*(axis.tolist() for axis in np.nonzero(mask)), strict=True)), []
    while left:
        queue, part = [left.pop()], set()
        while queue:
            voxel = queue.pop()
            part.add(voxel)
            for offset in itertools.product((-1, 0, 1), repeat=3):
                near = tuple(a + b for a, b in zip(voxel, offset, strict=True))
                if near in left:
                    left.remove(near)
                    queue.append(near)
        found.append(part)
    return found


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
        spatial.add_subject(subject, maps, mask, brain)
    return spatial, data


def test_lesion_counts_equal_flood_fill():
    spatial, data = accumulate(range(1, 7), froc=FROC)
    lesions = found = false = 0
    recall, false_by_threshold = np.zeros(5), np.zeros(5)
    for maps, mask, brain in data.values():
        truth = flood(mask & brain)
        lesions += len(truth)
        found += sum(any(maps[v] >= np.float32(0.95) for v in part) for part in truth)
        inside = mask & brain
        false += sum(not any(inside[v] for v in part) for part in flood((maps >= np.float32(0.95)) & brain))
        for i, t in enumerate(np.float32(FROC)):
            recall[i] += sum(any(maps[v] >= t for v in part) for part in truth)
            false_by_threshold[i] += sum(not any(inside[v] for v in part) for part in flood((maps >= t) & brain))
    values = {name: one.value for name, one in sample_spatial(spatial, None).items()}
    assert 0 < found < lesions
    assert false > 0
    assert values["lesion_recall@val"] == pytest.approx(found / lesions, abs=1e-12)
    assert values["lesion_f1@val"] == pytest.approx(2 * found / (found + false + lesions), abs=1e-12)
    own_recall, own_false = froc_curve(spatial, np.ones((1, 6)))
    np.testing.assert_allclose(own_recall[0], recall / lesions, atol=1e-12)
    np.testing.assert_allclose(own_false[0], false_by_threshold / 6, atol=1e-12)
    at = {
        r: max([x for x, f in zip(own_recall[0], own_false[0], strict=True) if f <= r], default=0) for r in (1, 2, 4, 8)
    }
    for rate, expected in at.items():
        assert values[f"froc@{rate}"] == pytest.approx(expected, abs=1e-12)
    assert values["froc"] == pytest.approx(np.mean(list(at.values())), abs=1e-12)
    assert len(set(at.values())) > 1


def test_neighbours_touch_by_a_corner_and_not_across_missing_slices():
    mask = np.zeros((3, 4, 4), bool)
    mask[0, 0, 0] = mask[1, 1, 1] = mask[2, 2, 2] = True
    assert lesion.components(mask)[1] == 1
    full = np.ones_like(mask)
    scores = np.float32([0.1, 0.9, 0.5])[:, None, None] * mask

    def sizes(slices, step=1):
        row = SpatialAccumulator({}, step=step)
        row.add_subject("a", scores, mask, full, slices)
        return row.rows[0].lesion_sizes, row.rows[0].lesion_scores

    assert sizes([4, 5, 6]) == ([3], [pytest.approx(0.9)])
    assert sizes([4, 5, 9]) == ([2, 1], [pytest.approx(0.9), pytest.approx(0.5)])
    assert sizes([4, 6, 8], step=2) == ([3], [pytest.approx(0.9)])
    assert sizes([6, 4, 5]) == ([2, 1], [pytest.approx(0.9), pytest.approx(0.1)]), "slices are put in order first"


def test_false_alarms_and_image_scores():
    spatial, data = accumulate(range(8))
    free = alarm = 0
    top, highest, labels = [], [], []
    for maps, mask, brain in data.values():
        for score, truth, inside in zip(maps, mask & brain, brain, strict=True):
            own = np.sort(score[inside])[::-1]
            top.append(np.float32(own[: max(1, round(len(own) / 100))].mean(dtype=np.float64)))
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
    spatial.add_subject("a", maps, np.zeros_like(maps), np.ones_like(maps))
    assert (spatial.rows[0].slice_top, spatial.rows[0].slice_max) == ([994.5], [999.0])


def test_reconstruction_counts_healthy_tissue_only():
    rng = np.random.default_rng(0)
    image = rng.random((2, 20, 20)).astype(np.float32)
    mask, brain = np.zeros(image.shape, bool), np.zeros(image.shape, bool)
    brain[:, 3:17, 3:17], mask[0, 5:8, 5:8] = True, True
    recon = image.copy()
    recon[mask] = 0
    recon[~brain] = 1
    spatial = SpatialAccumulator({})
    spatial.add_subject("a", image, mask, brain, recon=recon, image=image)
    assert spatial.rows[0].recon_l1 == 0
    recon[1, 10, 10] = image[1, 10, 10] + 0.5
    other = SpatialAccumulator({})
    other.add_subject("a", image, mask, brain, recon=recon, image=image)
    assert other.rows[0].recon_l1 == pytest.approx(0.5 / (brain & ~mask).sum(), rel=1e-5)
    assert other.rows[0].recon_ssim < spatial.rows[0].recon_ssim <= 1


def test_ssim_equals_monai_away_from_the_edge():
    from monai.metrics.regression import compute_ssim_and_cs

    rng = np.random.default_rng(0)
    first, second = (rng.random((32, 30)).astype(np.float32) for _ in range(2))
    tensors = [torch.from_numpy(x)[None, None].double() for x in (first, second)]
    theirs, _ = compute_ssim_and_cs(
        *tensors, spatial_dims=2, kernel_size=(11, 11), kernel_sigma=(1.5, 1.5), data_range=1
    )
    np.testing.assert_allclose(lesion.ssim_map(first, second)[5:-5, 5:-5], theirs[0, 0].numpy(), atol=1e-5)
    np.testing.assert_allclose(lesion.ssim_map(first, first), 1, atol=1e-12)


def test_replicates_equal_repeating_the_drawn_subjects():
    spatial, data = accumulate(range(5), froc=[1.1, 1.0, 0.9])
    draws = np.array([[1, 2, 0, 2, 0], [0, 0, 5, 0, 0], [5, 0, 0, 0, 0]], float)
    samples = sample_spatial(spatial, draws)
    for row, draw in enumerate(draws):
        again = SpatialAccumulator({"val": 0.95}, [1.1, 1.0, 0.9])
        for (subject, (maps, mask, brain)), times in zip(data.items(), draw, strict=True):
            for k in range(int(times)):
                again.add_subject(f"{subject}-{k}", maps, mask, brain)
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
        (first, second)[i % 2].add_subject(subject, *arrays)
    second.merge(first)
    assert second.rows == whole.rows
    whole.to_json(tmp_path / "s.json")
    read = SpatialAccumulator.from_json(tmp_path / "s.json")
    assert read.rows == whole.rows
    assert (read.thresholds, read.froc, read.step) == (whole.thresholds, whole.froc, whole.step)
    with pytest.raises(UserError, match="s0, s1, s2, s3, s4 are on both sides of a merge"):
        whole.merge(read)
    with pytest.raises(UserError, match="cannot be merged"):
        whole.merge(SpatialAccumulator({"val": 0.5}))
    for damage in ("{}", "[", '{"thresholds": {}, "froc": [], "step": 1, "rows": [{"subject": "a"}]}'):
        (tmp_path / "s.json").write_text(damage)
        with pytest.raises(UserError, match=r"s\.json does not hold spatial counts"):
            SpatialAccumulator.from_json(tmp_path / "s.json")


def test_froc_thresholds_are_spaced_by_background_and_reach_above_it():
    val, data = both(range(100, 106), "v")
    background = np.concatenate([maps[brain & ~mask] for maps, mask, brain in data.values()])
    thresholds = froc_thresholds(val, count=16)
    assert thresholds == sorted(set(thresholds), reverse=True)
    inside = [t for t in thresholds if t <= background.max()]
    assert len(thresholds) - len(inside) >= 8
    assert np.mean(background >= inside[-1]) == pytest.approx(0.05, abs=0.005)
    assert thresholds[0] == pytest.approx(4 * thresholds[8], rel=0.2), "eight quarters of an octave"
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
        spatial.add_subject(subject, *arrays, site="A" if i < 5 else "B", modality=None)
    result = evaluate(test, val, spatial=spatial, metrics=[LesionVoxels(), MeanMap()], strata=True)
    assert set(NAMES) < set(result.metrics)
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
        spatial.add_subject(subject, *data[subject])
    with pytest.raises(UserError, match=r"Subject 's3' \(1 in all\) has only histograms"):
        evaluate(test, val, spatial=spatial)
    spatial.add_subject("s3", *data["s3"])
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
            spatial.add_subject("p", *arrays)
    with pytest.raises(UserError, match=r"has 5 maps but its slice indices are \[0, 0, 1, 2, 3\]"):
        spatial.add_subject("p", maps, mask, brain, [0, 0, 1, 2, 3])
    spatial.add_subject("p", torch.from_numpy(maps), torch.from_numpy(mask), torch.from_numpy(brain))
    with pytest.raises(UserError, match="Subject 'p' was added before"):
        spatial.add_subject("p", maps, mask, brain)
    assert spatial.rows[0].subject == "p", "NaN outside the brain does not matter, a refused case leaves no trace"
