"""Optional metrics against MONAI, scikit-learn and slow definitions, and through `adbench run` and `adbench eval`."""

import json

import numpy as np
import pytest
import sklearn.metrics as sk
from scipy import ndimage
from scipy.spatial.distance import cdist

from adbench.metrics.base import Subject, Volume
from adbench.metrics.evaluate import evaluate
from adbench.metrics.histogram import ScoreHistogram, SubjectHistograms
from adbench.metrics.optional import (
    AUPRO,
    ECE,
    HD95,
    SurfaceDice,
    VolumeError,
    calibration_error,
    diagonal,
    per_region_overlap,
    surface_distances,
    voxel_ml,
)
from adbench.metrics.spatial import SpatialAccumulator, sample_spatial

SPACING = (3.0, 0.9, 1.1)


def blobs(seed, shape=(7, 24, 22), share=0.06):
    rng = np.random.default_rng(seed)
    smooth = ndimage.gaussian_filter(rng.random(shape), (0.7, 1.5, 1.5))
    return smooth, smooth > np.quantile(smooth, 1 - share)


def given(seed, *, spacing=SPACING, slices=None, threshold=None, shape=(7, 24, 22), lesion=None):
    """A subject whose map half follows its lesion."""
    smooth, found = blobs(seed, shape)
    other, _ = blobs(seed + 100, shape)
    lesion = found if lesion is None else lesion
    maps = (smooth + other).astype(np.float32)
    volume = Volume(
        maps, lesion, np.ones(shape, bool), np.arange(shape[0]) if slices is None else slices, spacing=spacing
    )
    cut = float(np.quantile(maps, 0.93)) if threshold is None else threshold
    return Subject(f"s{seed}", ScoreHistogram(), {"val": cut}, volume)


def predicted(subject):
    return subject.volume.maps >= np.float32(subject.thresholds["val"])


@pytest.mark.parametrize("seed", range(4))
def test_surfaces_equal_monai(seed):
    import torch
    from monai.metrics import compute_hausdorff_distance, compute_surface_dice

    subject = given(seed)
    masks = [
        torch.from_numpy(np.stack([~m, m])[None].astype(np.float32))
        for m in (predicted(subject), subject.volume.lesion)
    ]
    dice = compute_surface_dice(*masks, class_thresholds=[2.0], spacing=SPACING)
    far = compute_hausdorff_distance(*masks, percentile=95, spacing=SPACING)
    mine = SurfaceDice().measure(subject)
    assert 0.05 < mine[0] < 0.95
    assert mine == (pytest.approx(float(dice[0, 0]), abs=1e-6), 1.0)
    assert HD95().measure(subject) == (pytest.approx(float(far[0, 0]), rel=1e-5), 1.0)


def slow_surface(mask, volume):
    found = []
    for s, y, x in np.argwhere(mask):
        around = [(s, y + 1, x), (s, y - 1, x), (s, y, x + 1), (s, y, x - 1)]
        around += [(s + 1, y, x), (s - 1, y, x)] if len(mask) > 1 else []
        outside = (not all(0 <= i < n for i, n in zip(at, mask.shape, strict=True)) or not mask[at] for at in around)
        if any(outside):
            dz, dy, dx = volume.spacing
            found.append((volume.slices[s] * dz, y * dy, x * dx))
    return np.array(found)


@pytest.mark.parametrize("slices", [np.arange(7), np.array([4, 7, 10, 14, 17, 20, 23]), None])
def test_surfaces_with_uneven_gaps_and_of_one_slice(slices):
    shape = (7, 24, 22) if slices is not None else (1, 24, 22)
    subject = given(3, slices=slices, shape=shape)
    volume = subject.volume
    a, b = (slow_surface(mask, volume) for mask in (volume.lesion, predicted(subject)))
    between = cdist(a, b)
    there, back = surface_distances(volume.lesion, predicted(subject), volume)
    np.testing.assert_allclose(np.sort(there), np.sort(between.min(axis=1)))
    np.testing.assert_allclose(np.sort(back), np.sort(between.min(axis=0)))
    close = (between.min(axis=1) <= 2).sum() + (between.min(axis=0) <= 2).sum()
    assert SurfaceDice().measure(subject)[0] == pytest.approx(close / (len(a) + len(b)))


def test_perfect_silent_and_healthy():
    subject = given(0)
    perfect = Subject("p", ScoreHistogram(), {"val": 0.5}, Volume(
        subject.volume.lesion.astype(np.float32), subject.volume.lesion, subject.volume.brain, np.arange(7), spacing=SPACING
    ))  # fmt: skip
    silent = Subject("q", ScoreHistogram(), {"val": 1e9}, subject.volume)
    assert SurfaceDice().measure(perfect) == (1.0, 1.0)
    assert HD95().measure(perfect) == (0.0, 1.0)
    assert VolumeError().measure(perfect) == (0.0, 1.0)
    assert SurfaceDice().measure(silent) == (0.0, 1.0)
    assert HD95().measure(silent)[0] == diagonal(subject.volume)
    assert diagonal(subject.volume) == pytest.approx(np.sqrt((6 * 3) ** 2 + (23 * 0.9) ** 2 + (21 * 1.1) ** 2))
    lesion_ml = subject.volume.lesion.sum() * 3 * 0.9 * 1.1 / 1000
    assert VolumeError().measure(silent) == (pytest.approx(lesion_ml), 1.0)
    healthy = given(1, lesion=np.zeros((7, 24, 22), bool))
    assert SurfaceDice().measure(healthy) is HD95().measure(healthy) is AUPRO().measure(healthy) is None
    assert VolumeError().measure(healthy)[0] == pytest.approx(predicted(healthy).sum() * voxel_ml(healthy.volume))


def test_left_out_slices_count_to_their_neighbours():
    assert voxel_ml(given(0, slices=np.array([4, 7, 10, 14, 17, 20, 23])).volume) == pytest.approx(
        3 * 3 * 0.9 * 1.1 / 1000
    )
    assert voxel_ml(given(0, shape=(1, 24, 22)).volume) == pytest.approx(3 * 0.9 * 1.1 / 1000)


def test_without_a_voxel_size_there_is_a_reason():
    spatial = SpatialAccumulator({"val": 0.9}, metrics=[SurfaceDice(), HD95(), VolumeError(), AUPRO()])
    subject = given(0)
    spatial.add_volume("a", subject.volume.maps, subject.volume.lesion, subject.volume.brain)
    found = sample_spatial(spatial, None)
    for name in ("surface_dice@2mm", "hd95", "volume_error"):
        assert found[name].value is None
        assert "known voxel size in mm" in found[name].reason
    assert found["aupro"].value is not None


def test_without_validation_that_is_the_reason():
    """The voxel size is unknown too; what is missing first is what a reader can mend."""
    subject, test = given(0), SubjectHistograms()
    spatial = SpatialAccumulator({}, metrics=[SurfaceDice(), HD95(), VolumeError()])
    volume = subject.volume
    spatial.add_volume("a", volume.maps, volume.lesion, volume.brain)
    test.update("a", volume.maps[volume.brain], volume.lesion[volume.brain])
    found = evaluate(test, spatial=spatial, metrics=spatial.metrics).metrics
    assert {found[name].reason for name in ("surface_dice@2mm", "hd95", "volume_error")} == {
        "no validation split was given"
    }


def test_the_store_knows_the_voxel_size(tmp_path):
    """Pixels of 3.6 x 1.6 mm: squares of 60 x 40 voxels of 1.2 x 0.8 mm, cut to 20 x 20."""
    from adbench.datasets.geometry import Geometry, matrix
    from adbench.datasets.slices import LabelledSet
    from adbench.datasets.store.slice_store import SliceStore

    crosswise = np.array([[0, 0.8, 0, 5], [1.2, 0, 0, -3], [0, 0, 2.5, 8], [0, 0, 0, 1]])
    eye = matrix(np.eye(4))
    geometry = Geometry((60, 40, 30), eye, (60, 40, 30), matrix(crosswise), eye, "none", (0, 0), (60, 40), 20, 3)
    case = {"subject": "a", "session": "", "split": "test", "site": "", "flags": [], "slices": [4, 7, 10],
            "lesion_voxels": [0, 2, 0], "brain_voxels": [9, 9, 9], "masked": True, "digests": {}}  # fmt: skip
    cases = [{**case, "start": 0, "geometry": geometry.to_json()}, {**case, "subject": "b", "start": 3}]
    store = SliceStore(tmp_path, {"modality": "T1", "shape": [20, 20], "rows": 6, "cases": cases, "case_folder": ""})
    data = LabelledSet(store, np.array([1, 2, 4]))
    assert data.spacing_at(0) == data.spacing_at(1) == pytest.approx((2.5, 1.6, 3.6))
    assert data.spacing_at(2) is None
    volume = Volume(*(np.ones((3, 20, 20)),) * 3, np.array([4, 7, 10]), spacing=data.spacing_at(0))
    assert voxel_ml(volume) == pytest.approx(geometry.prepared_voxel_ml)


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, np.int16])
@pytest.mark.parametrize("seed", range(3))
def test_aupro_equals_a_weighted_roc_of_scikit_learn(seed, dtype):
    """Each lesion voxel weighs one over the voxels of its lesion: the mean overlap is then a true-positive rate."""
    subject = given(seed)
    maps = (100 * subject.volume.maps).astype(dtype)
    labels, count = ndimage.label(subject.volume.lesion, np.ones((3, 3, 3)))
    assert count > 1
    flat, own = maps.ravel().astype(np.float64), labels.ravel()
    weight = np.where(own > 0, 1 / np.maximum(np.bincount(own)[own], 1), 1.0)
    rate, overlap, _ = sk.roc_curve(own > 0, flat, sample_weight=weight, drop_intermediate=False)
    stop = np.searchsorted(rate, 0.3, side="right")
    x = np.append(rate[:stop], 0.3)
    y = np.append(overlap[:stop], np.interp(0.3, rate[stop - 1 : stop + 1], overlap[stop - 1 : stop + 1]))
    volume = Volume(maps, subject.volume.lesion, subject.volume.brain, subject.volume.slices)
    above, below = AUPRO().measure(Subject("a", ScoreHistogram(), {}, volume))
    assert below == count
    assert above / below == pytest.approx(sk.auc(x, y) / 0.3, abs=1e-9)


def test_aupro_of_the_perfect_the_constant_and_the_inverted_map():
    lesion = blobs(2)[1]
    labels = ndimage.label(lesion, np.ones((3, 3, 3)))[0][lesion]
    ones = np.ones(lesion.sum())
    assert per_region_overlap(ones, labels, np.zeros(500)) == pytest.approx(1)
    assert per_region_overlap(ones, labels, np.ones(500)) == pytest.approx(0.15)
    assert per_region_overlap(0 * ones, labels, np.ones(500)) == 0


def slow_ece(scores, lesion):
    total = 0.0
    for i in range(15):
        inside = (scores > i / 15) & (scores <= (i + 1) / 15)
        inside |= (scores == 0) & (i == 0)
        if inside.any():
            total += inside.sum() / len(scores) * abs(lesion[inside].mean() - scores[inside].mean())
    return total


@pytest.mark.parametrize("seed", range(3))
def test_calibration_error_equals_its_definition(seed):
    rng = np.random.default_rng(seed)
    scores = np.concatenate([rng.random(400) ** 2, [0, 1, 0.2]])
    lesion = rng.random(403) < scores**1.5
    assert calibration_error(scores, lesion) == pytest.approx(slow_ece(scores, lesion), abs=1e-12)
    assert calibration_error(lesion.astype(float), lesion) == 0
    assert calibration_error(np.full(10, 0.75), np.arange(10) < 5) == pytest.approx(0.25)


def test_one_map_outside_the_unit_interval_leaves_no_calibration_error():
    spatial = SpatialAccumulator({}, metrics=[ECE()])
    lesion = blobs(0)[1]
    half = np.full(lesion.shape, 0.5, np.float32)
    spatial.add_volume("a", half, lesion, np.ones_like(lesion))
    assert sample_spatial(spatial, None)["ece"].value == pytest.approx(0.5 - lesion.mean())
    spatial.add_volume("b", half + 0.6, lesion, np.ones_like(lesion))
    found = sample_spatial(spatial, None)["ece"]
    assert found.value is None
    assert found.reason == "not every map lies in [0, 1], so these are no probabilities"
    assert sample_spatial(spatial.subset(["a"]), None)["ece"].value is not None


NAMES = "surface_dice@2mm,hd95,volume_error,aupro,ece"


def test_through_eval(cli, tmp_path):
    import nibabel as nib

    affine = np.array([[0, 1.1, 0, 0], [0.9, 0, 0, 0], [0, 0, 3, 0], [0, 0, 0, 1]])  # axes stand crosswise
    for role, seeds in (("test", range(4)), ("val", range(10, 13))):
        for seed in seeds:
            subject = given(seed)
            for kind, array in (("maps", subject.volume.maps), ("masks", subject.volume.lesion.astype(np.uint8))):
                folder = tmp_path / role / kind
                folder.mkdir(parents=True, exist_ok=True)
                nib.save(nib.Nifti1Image(np.moveaxis(array, 0, -1), affine), folder / f"c{seed}.nii.gz")
    code, out, err = cli(
        "eval", "--maps", tmp_path / "test/maps", "--masks", tmp_path / "test/masks", "--val-maps", tmp_path / "val/maps",
        "--val-masks", tmp_path / "val/masks", "--out", tmp_path / "scores", "--metrics", NAMES, "--json",
    )  # fmt: skip
    assert code == 0, err
    evaluation = json.loads(out)["evaluation"]
    metrics = evaluation["metrics"]
    for metric in (SurfaceDice(), HD95(), VolumeError(), AUPRO()):
        pairs = [metric.measure(given(seed, threshold=evaluation["thresholds"]["val"])) for seed in range(4)]
        above, below = np.sum(pairs, axis=0)
        assert metrics[metric.name]["value"] == pytest.approx(above / below), metric.name
    assert metrics["ece"]["reason"].startswith("not every map lies in [0, 1]")


def test_through_run(cli, slices, tmp_path):
    code, out, err = cli(
        "run", "--method", "histeq", "--dataset", "folder", "--data-root", slices, "--device", "cpu",
        "--out", tmp_path / "runs", "--metrics", NAMES, "--json", "--quiet",
    )  # fmt: skip
    assert code == 0, err
    (board,) = json.loads(out)["boards"]
    metrics = board["rows"][0]["metrics"]
    assert metrics["hd95"]["value"] is None, "PNG slices do not say their size"
    assert "known voxel size in mm" in metrics["hd95"]["reason"]
    assert 0 < metrics["aupro"]["value"] <= 1
    assert 0 <= metrics["ece"]["value"] <= 1
    assert {c["name"]: (c["less_is_better"], c["unit"]) for c in board["columns"]}["hd95"] == (True, "mm")
