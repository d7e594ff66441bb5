"""Folders of maps and masks: numbers, JSON and plots; and every way in which such folders are wrong."""

import json

import nibabel
import numpy as np
import pytest
import sklearn.metrics as sk
from PIL import Image

from adbench.errors import UserError
from adbench.evaluation.map_files import CaseFolder
from adbench.evaluation.maps import evaluate_folders, table
from adbench.metrics.evaluate import evaluate
from adbench.metrics.histogram import SubjectHistograms
from adbench.metrics.spatial import SpatialAccumulator
from adbench.metrics.spec import HISTOGRAM_METRICS

AFFINE = np.diag([1.5, 1.5, 2.0, 1.0])
SHAPE = (12, 10, 4)  # x, y, slices


def case(seed, lesion=True):
    rng = np.random.default_rng(seed)
    brain = np.zeros(SHAPE, np.uint8)
    brain[2:-2, 2:-2] = 1
    mask = np.zeros(SHAPE, np.uint8)
    if lesion:
        mask[4:7, 4:6, 1:3] = 1
    return (rng.random(SHAPE) + 0.5 * mask).astype(np.float16).astype(np.float32), mask, brain


def write(path, array, affine=AFFINE):
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, affine), path)


def folders(root, seeds, prefix="c", healthy=1):
    for i, seed in enumerate(seeds):
        maps, mask, brain = case(seed, lesion=i >= healthy)
        write(root / "maps" / f"{prefix}{i}_map.nii.gz", maps)
        write(root / "masks" / f"{prefix}{i}_seg.nii.gz", mask)
        write(root / "brain" / f"{prefix}{i}_brain.nii", brain)
    return root / "maps", root / "masks", root / "brain"


@pytest.fixture
def test(tmp_path):
    return folders(tmp_path / "test", range(5))


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """What two presets and all plots of five cases give, and the folder of it."""
    root = tmp_path_factory.mktemp("evaluated")
    val = dict(zip(("val_maps", "val_masks", "val_brain"), folders(root / "val", range(20, 24), "v"), strict=True))
    test = folders(root / "test", range(5))
    return evaluate_folders(*test, out=root / "out", **val, presets=["official-madad", "upd"]), root / "out"


def test_folders_give_numbers_json_and_plots(evaluated):
    result, out = evaluated
    arrays = [case(seed, lesion=seed > 0) for seed in range(5)]
    scores = np.concatenate([maps[brain > 0] for maps, _, brain in arrays])
    labels = np.concatenate([mask[brain > 0] for _, mask, brain in arrays])
    assert result.metrics["auprc"].value == pytest.approx(sk.average_precision_score(labels, scores), abs=1e-9)
    assert result.metrics["dice@val"].value > 0.3
    assert result.metrics["lesion_recall@val"].value > 0
    assert set(HISTOGRAM_METRICS) < set(result.metrics)
    assert list(result.strata) == ["lesion_size"]
    names = {path.name for path in out.iterdir()}
    plots = {"pr.png", "roc.png", "dice.png", "lesion_recall.png", "froc.png"}
    assert names == {"metrics.json", "histograms.npz", "val_histograms.npz", "spatial.json", *plots}
    assert all((out / name).read_bytes()[:4] == b"\x89PNG" for name in plots)
    saved = json.loads((out / "metrics.json").read_text())
    assert saved["metrics"]["auprc"]["value"] == result.metrics["auprc"].value
    assert [preset["name"] for preset in saved["presets"]] == ["official-madad", "upd"]
    assert saved["settings"] == {"level": 0.95, "seed": 0, "labels": None}
    text = table(result)
    assert text.splitlines()[0].split() == ["metric", "value", "interval", "subjects", "remark"]
    assert f"{result.metrics['auprc'].value:.4f}" in text
    assert "1 of 5 test subjects bear no lesion" in text


def test_stored_counts_give_the_same_numbers_again(evaluated):
    result, out = evaluated
    again = evaluate(
        SubjectHistograms.from_npz(out / "histograms.npz"),
        SubjectHistograms.from_npz(out / "val_histograms.npz"),
        spatial=SpatialAccumulator.from_json(out / "spatial.json"),
        strata=True,
    )
    assert again.metrics == result.metrics
    assert again.strata == result.strata


def test_without_validation_or_brain_masks(tmp_path, test):
    result = evaluate_folders(*test[:2], out=tmp_path / "out", strata=False)
    assert result.metrics["dice@val"].reason == "no validation split was given"
    assert result.metrics["froc"].value is not None
    assert "No brain masks were given: every voxel of the image counts, background included." in result.notes
    assert any("spaced by the test split's own background" in note for note in result.notes)
    assert any(note.startswith("No plot of lesion recall by size was drawn: no threshold") for note in result.notes)
    assert result.subjects[0]["brain_voxels"] == np.prod(SHAPE)
    assert not (tmp_path / "out" / "lesion_recall.png").exists()


def test_no_lesion_at_all_is_said_and_not_drawn(tmp_path):
    maps, masks, brain = folders(tmp_path, range(3), healthy=3)
    result = evaluate_folders(maps, masks, brain, out=tmp_path / "out")
    assert any("no lesion voxel in the whole test split: auprc, auroc" in note for note in result.notes)
    assert "No plot was drawn: no lesion voxel in the whole test split." in result.notes
    assert not list((tmp_path / "out").glob("*.png"))


def test_png_slices_are_stacked_by_case(tmp_path):
    rng = np.random.default_rng(0)
    for subject in ("a", "b"):
        for k in (3, 10, 4):
            mask = np.zeros((8, 9), np.uint8)
            mask[2:4, 2:4] = 255
            score = (rng.random((8, 9)) * 100 + mask * 0.3).astype(np.uint8)
            for folder, array in (("maps", score), ("masks", mask)):
                (tmp_path / folder).mkdir(exist_ok=True)
                Image.fromarray(array).save(tmp_path / folder / f"{subject}_slice_{k}.png")
    cases = list(CaseFolder(tmp_path / "maps", tmp_path / "masks"))
    assert [one.subject for one in cases] == ["a", "b"]
    assert cases[0].maps.shape == (3, 8, 9)
    assert cases[0].slices.tolist() == [3, 4, 10]
    assert cases[0].lesion.sum() == 12
    result = evaluate_folders(tmp_path / "maps", tmp_path / "masks", out=tmp_path / "out")
    assert result.subjects[0]["lesions"] == 2, "slice 10 does not touch slices 3 and 4"
    single = list((tmp_path / "maps").iterdir())
    for path in single:
        path.rename(path.with_name(path.name.replace("_slice", "")))
        (tmp_path / "masks" / path.name).rename(tmp_path / "masks" / path.name.replace("_slice", ""))
    assert len(CaseFolder(tmp_path / "maps", tmp_path / "masks")) == 6, "other names are cases of one slice"


def test_sixteen_bit_png_scores_are_read_as_stored(tmp_path):
    for folder in ("maps", "masks"):
        (tmp_path / folder).mkdir()
    Image.fromarray(np.arange(12, dtype=np.uint16).reshape(3, 4) * 5000).save(tmp_path / "maps" / "a.png")
    Image.fromarray(np.eye(3, 4, dtype=np.uint8)).save(tmp_path / "masks" / "a.png")
    (read,) = CaseFolder(tmp_path / "maps", tmp_path / "masks")
    assert read.maps.max() == 55000
    assert read.lesion.sum() == 3


def test_a_label_set_says_what_is_lesion(tmp_path, test):
    _maps, mask, _brain = case(1)
    mask[4, 4, 1], mask[5, 4, 1] = 2, 4
    write(test[1] / "c1_seg.nii.gz", mask)
    with pytest.raises(UserError, match=r"Labels of case 'c1' hold the values 2, 4: give 0 and 1, or say which"):
        evaluate_folders(*test, out=tmp_path / "out")
    with pytest.raises(
        UserError, match=r"Labels of case 'c1' hold 2, neither 0 nor one of the given lesion labels 1, 4\."
    ):
        evaluate_folders(*test, out=tmp_path / "out", labels={1, 4})
    every = {one.subject: one for one in CaseFolder(*test, labels={1, 2, 4})}
    assert every["c1"].lesion.sum() == (mask > 0).sum()
    with pytest.raises(UserError, match=r"labels = \[0, 1\] is not valid"):
        CaseFolder(*test, labels={0, 1})


def test_missing_cases_are_listed_for_either_side(tmp_path, test):
    (test[0] / "c1_map.nii.gz").unlink()
    (test[1] / "c2_seg.nii.gz").unlink()
    (test[1] / "c3_seg.nii.gz").unlink()
    message = r"Cases are missing on one side\. 2 with a map but no mask: c2, c3; 1 with a mask but no map: c1\."
    with pytest.raises(UserError, match=message):
        evaluate_folders(*test, out=tmp_path / "out")


def test_a_missing_brain_mask_or_slice_is_named(tmp_path, test):
    (test[2] / "c4_brain.nii").unlink()
    with pytest.raises(UserError, match=r"1 with a map but no brain mask: c4\."):
        CaseFolder(*test)
    for folder, names in (("m", ["a_slice_1", "a_slice_2"]), ("k", ["a_slice_1"])):
        (tmp_path / folder).mkdir()
        for name in names:
            Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / folder / f"{name}.png")
    with pytest.raises(UserError, match=r"1 with a map but no mask: a slice 2\."):
        CaseFolder(tmp_path / "m", tmp_path / "k")


def test_another_grid_or_affine_is_printed_with_both(tmp_path, test):
    write(test[1] / "c2_seg.nii.gz", np.zeros((12, 10, 5), np.uint8))
    with pytest.raises(
        UserError, match="The mask of case 'c2' does not lie on the grid of its map: 12x10x5 voxels against 12x10x4"
    ):
        evaluate_folders(*test, out=tmp_path / "out")
    shifted = AFFINE.copy()
    shifted[:3, 3] = [7, 0, -3]
    write(test[1] / "c2_seg.nii.gz", case(2)[1], shifted)
    message = (
        r"The mask of case 'c2' does not lie on the grid of its map: its affine puts a corner 7\.6 mm away from the image's "
        r"\(RAS against RAS\)\. Resample one onto the other, or correct the header that is wrong\."
    )
    with pytest.raises(UserError, match=message):
        evaluate_folders(*test, out=tmp_path / "out")
    shifted[:3, 3] = [0.45, 0, 0]  # a little less than half a voxel
    write(test[1] / "c2_seg.nii.gz", case(2)[1], shifted)
    with pytest.raises(UserError, match=r"the grid of its map: its affine puts a corner 0\.\d mm away"):
        evaluate_folders(*test, out=tmp_path / "out")
    rounded = AFFINE.copy()
    rounded[:3, 3] = 0.004, -0.004, 0.004  # a header with two digits
    write(test[1] / "c2_seg.nii.gz", case(2)[1], rounded)
    assert evaluate_folders(*test, out=tmp_path / "out").metrics["auprc"].value is not None


def test_empty_brain_and_broken_scores_name_the_case(tmp_path, test):
    maps, _mask, brain = case(3)
    write(test[2] / "c3_brain.nii", brain * 0)
    with pytest.raises(UserError, match="Case 'c3' has no brain voxel: its brain mask is empty"):
        evaluate_folders(*test, out=tmp_path / "out")
    write(test[2] / "c3_brain.nii", brain)
    maps[5, 5, 1] = np.nan
    write(test[0] / "c3_map.nii.gz", maps)
    with pytest.raises(UserError, match=r"Scores of case 'c3' hold 1 NaN or infinite value of \d+"):
        evaluate_folders(*test, out=tmp_path / "out")
    assert not (tmp_path / "out").exists(), "nothing is written before everything was read"


def test_lesions_outside_the_brain_are_counted_in_a_note(tmp_path, test):
    _, mask, _ = case(1)
    mask[0, 0, 0] = 1
    write(test[1] / "c1_seg.nii.gz", mask)
    notes = evaluate_folders(*test, out=tmp_path / "out").notes
    assert (
        "1 lesion voxels of 1 case(s) lie outside the brain mask and are not counted (the first: 1 of 'c1')." in notes
    )


def test_a_case_may_not_be_on_both_sides(tmp_path, test):
    maps, masks, brain = test
    with pytest.raises(UserError, match=r"5 subject\(s\) are in the validation and in the test split: c0, c1"):
        evaluate_folders(*test, out=tmp_path / "out", val_maps=maps, val_masks=masks, val_brain=brain)


def test_folders_that_are_not_what_they_should_be(tmp_path, test):
    maps, masks, _brain = test
    with pytest.raises(UserError, match=r"There is no folder .*nowhere of maps\."):
        CaseFolder(tmp_path / "nowhere", masks)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"The folder .*empty holds no mask: give \.nii, \.nii\.gz or \.png files"):
        CaseFolder(maps, tmp_path / "empty")
    write(masks / "c1_mask.nii", case(1)[1])
    with pytest.raises(UserError, match=r"c1_mask\.nii and c1_seg\.nii\.gz in .* are both the mask of case 'c1'"):
        CaseFolder(maps, masks)
    (masks / "c1_mask.nii").unlink()
    write(masks / "c1_seg.nii.gz", np.zeros((*SHAPE, 3), np.uint8))
    with pytest.raises(
        UserError, match=r"c1_seg\.nii\.gz has 4 axes of \(12, 10, 4, 3\) voxels, expected a 3-D volume"
    ):
        list(CaseFolder(maps, masks))
    (masks / "c1_seg.nii.gz").write_bytes(b"not an image")
    with pytest.raises(UserError, match=r"c1_seg\.nii\.gz is not a NIfTI file"):
        list(CaseFolder(maps, masks))
    with pytest.raises(UserError, match="give val_maps, val_masks and val_brain"):
        evaluate_folders(*test, out=tmp_path / "out", val_maps=maps, val_masks=masks)
    with pytest.raises(UserError, match=r"Unknown preset 'upf'\. Did you mean 'upd'"):
        evaluate_folders(*test, out=tmp_path / "out", presets=["upf"])
    with pytest.raises(UserError, match="'cddpm' chooses its threshold on validation volumes"):
        evaluate_folders(*test, out=tmp_path / "out", presets=["cddpm"])
    assert not (tmp_path / "out").exists()


def test_pictures_that_are_not_grey_or_not_pictures(tmp_path):
    for folder in ("m", "k"):
        (tmp_path / folder).mkdir()
        Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / folder / "a.png")
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "m" / "a.png")
    with pytest.raises(UserError, match=r"a\.png has shape \(4, 4, 3\): give a grey image"):
        list(CaseFolder(tmp_path / "m", tmp_path / "k"))
    (tmp_path / "m" / "a.png").write_bytes(b"no")
    with pytest.raises(UserError, match=r"a\.png cannot be read as a PNG image"):
        list(CaseFolder(tmp_path / "m", tmp_path / "k"))
    (tmp_path / "m" / "a.png").unlink()
    write(tmp_path / "m" / "a.nii", np.zeros((4, 4, 1), np.float32))
    with pytest.raises(UserError, match="The map and the mask of case 'a' are of different types"):
        list(CaseFolder(tmp_path / "m", tmp_path / "k"))
