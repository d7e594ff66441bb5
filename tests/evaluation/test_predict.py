"""Predictions on scans without labels: where they lie, what the table says of them, and what is refused."""

from __future__ import annotations

import csv
import json
import math
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

import adbench
from adbench import api
from adbench.datasets.adapters.folder_volumes import FolderParams, FolderVolumes
from adbench.datasets.slices import SliceBatch
from adbench.datasets.validation.check import check
from adbench.errors import UserError
from adbench.evaluation.maps import METRICS, evaluate_folders
from adbench.evaluation.predict import ScansFailed
from adbench.methods.simple import HistEq
from adbench.runner.fit import FIT

Cli = Callable[..., tuple[int, str, str]]
SHAPE = (40, 44, 8)
C, S = np.cos(0.25), np.sin(0.25)
TURNED = np.array([[C, -S, 0.0, -20], [S, C, 0.0, 15], [0.0, 0.0, 1.0, 7], [0, 0, 0, 1]]) @ np.diag([1.0, 1, 3, 1])
FLIPPED = np.diag([-1.0, -1.0, 3.0, 1.0])


def scan(seed: int, lesion: bool) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x, y, _ = np.indices(SHAPE)
    brain = ((x - 19.5) / 16) ** 2 + ((y - 21.5) / 18) ** 2 < 1
    mask = np.zeros(SHAPE, bool)
    if lesion:
        mask[10 + seed : 16 + seed, 20:27, 2:5] = mask[22:25, 10:13, 6] = True
    image = np.where(brain, 100 + 20 * np.sin(x / 5 + seed) + rng.normal(0, 4, SHAPE), 0)
    return np.where(mask, 200, image).astype(np.float32), mask.astype(np.uint8)


def save(path: Path, array: np.ndarray, affine: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, affine), path)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    for number, role in enumerate(["train", "train", "val", "val", "test", "test"]):
        image, mask = scan(number, role == "test" or number == 2)
        affine = (TURNED, FLIPPED)[number % 2]
        save(root / role / f"p{number}_FLAIR.nii.gz", image, affine)
        if role != "train":
            save(root / role / f"p{number}_seg.nii.gz", mask, affine)
    return root


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> api.Run:
    grid = {"dataset": {"size": 32, "field_of_view": 64}, "histeq": {"sigma": 0}}
    chosen: dict[str, Any] = {"data_root": str(data), "device": "cpu", "out": tmp_path_factory.mktemp("runs")}
    (made,) = api.run("histeq", "folder", set=grid, **chosen)
    return made


@pytest.fixture
def scans(data: Path, tmp_path: Path) -> Path:
    """The two test scans alone, without masks."""
    for number in (4, 5):
        target = tmp_path / "scans" / f"p{number}.nii.gz"
        target.parent.mkdir(exist_ok=True)
        target.write_bytes((data / "test" / f"p{number}_FLAIR.nii.gz").read_bytes())
    return tmp_path / "scans"


def test_equals_the_report_lies_on_the_scan_and_the_table_counts_it(
    cli: Cli, run: api.Run, data: Path, scans: Path, tmp_path: Path
) -> None:
    code, _, err = cli("report", run.folder, "--out", tmp_path / "report", "--nifti", "original", "--nifti-all")
    assert code == 0, err
    code, said, err = cli("predict", "--run", run.folder, "--images", scans, "--out", tmp_path / "out", "--json")
    assert code == 0, err
    rows = json.loads(said)
    assert [row["case"] for row in rows] == ["p4", "p5"]
    for row in rows:
        number = int(row["case"][1])
        source = nibabel.load(data / "test" / f"p{number}_FLAIR.nii.gz")
        stem = Path(f"sub-p{number}/anat/sub-p{number}_space-orig_desc-histeq")
        made, reported = (
            nibabel.load(tmp_path / place / f"{stem}_anomaly.nii.gz") for place in ("out", "report/nifti")
        )
        np.testing.assert_array_equal(made.get_fdata(), reported.get_fdata())
        np.testing.assert_allclose(made.affine, source.affine, atol=1e-6)
        mask = np.asarray(nibabel.load(tmp_path / "out" / f"{stem}_mask.nii.gz").dataobj) > 0
        assert made.shape == mask.shape == SHAPE
        assert row["threshold"] == run.record.thresholds["val"]
        brain = np.asarray(nibabel.load(tmp_path / "out" / f"sub-p{number}/anat/sub-p{number}_space-orig_desc-brain_mask.nii.gz").dataobj) > 0  # fmt: skip
        level = json.loads((tmp_path / "out" / f"{stem}_anomaly.json").read_text())["Threshold"]["Score"]
        np.testing.assert_array_equal(mask, brain & (made.get_fdata() >= level))
        assert not made.get_fdata()[~brain].any()
        assert row["highest_score"] == made.get_fdata()[brain].max()
        assert mask[12 + number : 14 + number, 22:25, 3].all(), "the bright block, voxel for voxel where it is"
        labels, count = ndimage.label(mask, np.ones((3, 3, 3)))
        ml = abs(np.linalg.det(source.affine[:3, :3])) / 1000
        largest = np.bincount(labels.ravel())[1:].max()
        assert (row["voxels"], row["components"], row["largest_voxels"]) == (mask.sum(), count, largest)
        assert row["volume_ml"] == pytest.approx(mask.sum() * ml)
        assert row["largest_ml"] == pytest.approx(largest * ml)
        assert row["slice"] == mask.sum(axis=(0, 1)).argmax()
        assert "brought to 2 mm" in row["notes"]
    table = list(csv.DictReader((tmp_path / "out" / "summary.csv").open()))
    assert [(one["case"], one["image"], int(one["voxels"])) for one in table] == [
        (row["case"], f"{row['case']}.nii.gz", row["voxels"]) for row in rows
    ]


def test_exported_phantoms_are_scored_as_in_the_report(cli: Cli, tmp_path: Path) -> None:
    """Their voxels have the size in mm that the phantom was made with: nothing is resampled, distances are in mm."""
    small = {"n_train": 1, "n_val": 2, "n_test": 2, "slices": 3, "resolution": 4.0}
    chosen: dict[str, Any] = {
        "modality": "FLAIR",
        "device": "cpu",
        "cache": tmp_path / "cache",
        "out": tmp_path / "runs",
    }
    (made,) = api.run("histeq", "phantom", set={"dataset": small}, metrics=["hd95", "volume_error"], **chosen)
    assert made.record.test.mm == (4.0, 4.0)
    assert all(made.record.metrics[name].value > 0 for name in ("hd95", "volume_error"))
    sets = [part for name, value in small.items() for part in ("--set", f"dataset.{name}={value}")]
    common = ["--modality", "FLAIR", "--cache", tmp_path / "cache"]
    for space in ("prepared", "original"):
        there = ["--out", tmp_path / f"nifti-{space}", "--split", "test", "--space", space]
        code, _, err = cli("data", "export", "--dataset", "phantom", *sets, *common, *there)
        assert code == 0, err
        code, _, err = cli("report", made.folder, "--out", tmp_path / space, "--nifti", space, "--nifti-all")
        assert code == 0, err
        found = made.predict(tmp_path / f"nifti-{space}", tmp_path / f"out-{space}")
        assert [one.case for one in found] == [
            "phantom-test-000",
            "phantom-test-001",
        ]  # as it was written, masks and all
        far = "4 x 4 x 12 mm: its slices are far apart and show little of a head"
        assert all(one.notes == "" if space == "original" else one.notes.endswith(far) for one in found)
        for one in found:
            name = f"sub-{one.case.replace('-', '')}"
            mine, theirs = (
                nibabel.load(tmp_path / place / f"{name}/anat/{name}_space-{grid}_desc-histeq_anomaly.nii.gz")
                for place, grid in ((f"out-{space}", "orig"), (f"{space}/nifti", space.replace("inal", "")))
            )
            np.testing.assert_allclose(mine.affine, theirs.affine)
            apart = np.abs(mine.get_fdata() - theirs.get_fdata()).max(axis=(0, 1))
            if space == "prepared":
                assert apart.max() < 1e-3
            else:  # between the three slices that were kept, and beside them, the file holds blends of them
                kept = [21, 24, 27]
                assert apart[kept].max() < 5e-3
                assert np.delete(apart, kept).max() > 0.1


def test_masks_of_other_names_are_no_scans_and_one_of_the_brain_is_said(
    run: api.Run, scans: Path, tmp_path: Path
) -> None:
    """What lies beside an image and is a mask of it by its name and content is not scored."""
    image, lesion = scan(4, True)
    save(scans / "p4_lesions_v2.nii.gz", lesion, TURNED)
    save(scans / "p4_brain_v2.nii.gz", (image > 0).astype(np.uint8), TURNED)
    save(scans / "p5_brain.nii.gz", image, FLIPPED)  # a brain that was cut out is an image
    found = {one.case: one.notes for one in run.predict(scans, tmp_path / "out")}
    assert found.keys() == {"p4", "p5", "p5_brain"}
    told = "its brain was inferred from the image, though p4_brain_v2.nii.gz lies beside it"
    assert [case for case, notes in found.items() if "was inferred" in notes] == ["p4"]
    assert told in found["p4"]
    assert "name it p4_brainmask.nii.gz" in found["p4"]


def test_a_scan_called_after_a_lesion_is_scored_and_an_empty_mask_is_none(
    run: api.Run, scans: Path, tmp_path: Path
) -> None:
    save(scans / "p4_post_tumor_resection.nii.gz", scan(6, False)[0], TURNED)
    save(scans / "p5_prelesion_visit.nii.gz", scan(7, False)[0], FLIPPED)
    save(scans / "p4_lesion_rater2b.nii.gz", scan(4, False)[1], TURNED)
    found = {one.case for one in run.predict(scans, tmp_path / "out")}
    assert found == {"p4", "p5", "p4_post_tumor_resection", "p5_prelesion_visit"}


def test_a_damaged_file_beside_an_image_is_its_own_failure(run: api.Run, scans: Path, tmp_path: Path) -> None:
    packed = (scans / "p4.nii.gz").read_bytes()
    (scans / "p4_brain.nii.gz").write_bytes(packed[: len(packed) // 2])
    with pytest.raises(ScansFailed) as caught:
        run.predict(scans, tmp_path / "out")
    assert [one.case for one in caught.value.found] == ["p4", "p5"]
    assert list(caught.value.why) == ["p4_brain"]


def test_a_mask_in_the_folder_of_another_patient_is_not_beside(run: api.Run, tmp_path: Path) -> None:
    for name in ("a", "b"):
        save(tmp_path / "scans" / name / "scan.nii.gz", scan(4, True)[0], TURNED)
    save(tmp_path / "scans" / "b" / "scan_mask.nii.gz", (scan(4, True)[0] > 0).astype(np.uint8), TURNED)
    found = run.predict(tmp_path / "scans", tmp_path / "out", settings=["dataset.image_pattern={subject}/scan.nii.gz"])
    assert [one.case for one in found if "lies beside it" in one.notes] == ["b"]


def test_a_brain_mask_that_no_pattern_names_is_said(run: api.Run, tmp_path: Path) -> None:
    image = scan(4, True)[0]
    save(tmp_path / "scans" / "img_a.nii.gz", image, TURNED)
    save(tmp_path / "scans" / "a_brainmask.nii.gz", (image > 0).astype(np.uint8), TURNED)
    (only,) = run.predict(tmp_path / "scans", tmp_path / "out", settings=["dataset.image_pattern=img_{subject}.nii.gz"])
    assert "though a_brainmask.nii.gz lies beside it" in only.notes


def test_goes_on_with_what_is_missing(run: api.Run, scans: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = adbench.load(run.folder, device="cpu").predict(scans, out)
    times = {path: path.stat().st_mtime_ns for path in out.rglob("*.nii.gz")}
    gone = next(path for path in times if path.name.startswith("sub-p5") and path.name.endswith("histeq_mask.nii.gz"))
    gone.unlink()
    assert run.predict(scans, out) == first
    again = {path for path, before in times.items() if path.stat().st_mtime_ns != before}
    assert gone in again
    assert {path.name[:6] for path in again} == {"sub-p5"}, "the other scan was not scored again"
    another = (first[0].threshold + 1) / 2
    higher = run.predict(scans, tmp_path / "another", threshold=another)
    assert all(0 < new.voxels < old.voxels for new, old in zip(higher, first, strict=True)), (
        "another threshold is another mask"
    )


def test_goes_on_with_the_same_batches(
    run: api.Run, scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What else is in a slice's batch may change its last bits, and here more: a convolution of one slice is another one."""
    plain = HistEq.score
    monkeypatch.setattr(HistEq, "score", lambda self, batch: plain(self, batch) + len(batch.image) / 100)
    found = [run.predict(scans, tmp_path / name, threshold=0.9) for name in ("whole", "again")]
    whole, again = (
        {path.name: path.read_bytes() for path in (tmp_path / name).rglob("*.nii.gz")} for name in ("whole", "again")
    )
    assert (found[0], whole) == (found[1], again)
    shutil.rmtree(tmp_path / "again" / "sub-p5")
    assert run.predict(scans, tmp_path / "again", threshold=0.9) == found[0]
    assert {path.name: path.read_bytes() for path in (tmp_path / "again").rglob("*.nii.gz")} == whole


@pytest.mark.parametrize("name", ["fit.json", "method.json", "model.safetensors"])
def test_a_strangers_fit_holds_plain_files_alone(run: api.Run, scans: Path, tmp_path: Path, name: str) -> None:
    """A link, or a pipe, which whoever opens it waits for."""
    runs = Path(shutil.copytree(run.folder.parents[2], tmp_path / "theirs"))
    theirs, fit = runs / run.folder.relative_to(run.folder.parents[2]), runs / "fits" / run.fit_folder.name
    (fit / name).rename(tmp_path / "moved")
    (fit / name).symlink_to(tmp_path / "moved")
    with pytest.raises(UserError, match=f"{name} is a link, not a file: links are not followed"):
        adbench.load(theirs, device="cpu").predict(scans, tmp_path / "out")
    (fit / name).unlink()
    os.mkfifo(fit / name)
    with pytest.raises(UserError, match=f"There is no file .*{name}: it is a folder, a pipe or a device"):
        adbench.load(theirs, device="cpu").predict(scans, tmp_path / "out")


def test_links_in_the_folder_of_the_scans_are_followed(run: api.Run, scans: Path, tmp_path: Path) -> None:
    """It is a folder of data, which may be linked together; a run folder is not."""
    (tmp_path / "linked").mkdir()
    for scan_file in scans.iterdir():
        (tmp_path / "linked" / scan_file.name).symlink_to(scan_file)
    found = [run.predict(folder, tmp_path / folder.name / "out") for folder in (scans, tmp_path / "linked")]
    assert found[0] == found[1]


def test_names_that_are_no_text(cli: Cli, run: api.Run, scans: Path, tmp_path: Path) -> None:
    """Bytes that are no UTF-8, in the name of a volume: a row that spells them out, and files of that name."""
    os.rename(os.fsencode(scans / "p4.nii.gz"), os.fsencode(scans) + b"/p\xff4.nii.gz")
    options = ("predict", "--run", run.folder, "--images", scans, "--out", tmp_path / "out")
    code, said, _ = cli(*options, "--json")
    names = sorted(row["case"] for row in json.loads(said))
    assert (code, names) == (0, ["p5", "p\udcff4"])
    with open(tmp_path / "out" / "summary.csv", encoding="utf-8") as file:
        assert sorted(row["case"] for row in csv.DictReader(file)) == ["p5", r"p\udcff4"]
    assert cli(*options)[0] == 0


def test_a_name_that_the_table_cannot_hold_is_refused(run: api.Run, scans: Path, tmp_path: Path) -> None:
    """A spreadsheet would run ``=cmd|x``, and with a sign before it the row would not lead to its file."""
    for name in ("=cmd|x.nii.gz", "-1.nii.gz", "@a/p7.nii.gz"):
        (scans / name).parent.mkdir(exist_ok=True)
        shutil.copy(scans / "p4.nii.gz", scans / name)
    with pytest.raises(ScansFailed) as raised:
        run.predict(scans, tmp_path / "out")
    assert [one.image for one in raised.value.found] == ["p4.nii.gz", "p5.nii.gz"]
    assert len(raised.value.why) == 3
    assert all("a spreadsheet takes for a formula" in why and "rename it" in why for why in raised.value.why.values())
    with (tmp_path / "out" / "summary.csv").open() as file:
        answered = [row for row in csv.DictReader(file) if not row["error"]]
    assert all((scans / row["image"]).is_file() for row in answered)


def test_a_scan_that_cannot_be_read_is_its_own_failure(cli: Cli, run: api.Run, scans: Path, tmp_path: Path) -> None:
    whole = run.predict(scans, tmp_path / "whole")
    packed = (scans / "p4.nii.gz").read_bytes()
    bad = {"a": b"no volume", "b": b"", "c": packed[: len(packed) // 2]}
    for name, content in bad.items():
        (scans / f"{name}.nii.gz").write_bytes(content)
    image, _ = scan(3, False)
    save(scans / "d.nii.gz", np.where(image > 110, np.nan, image), FLIPPED)
    for _ in range(2):  # again too: what is answered stays so, what cannot be read is tried again
        code, said, err = cli("predict", "--run", run.folder, "--images", scans, "--out", tmp_path / "out", "--json")
        assert code == 1
        rows = json.loads(said)
        assert rows[:2] == [asdict(one) for one in whole]
        assert [row["case"] for row in rows[2:]] == ["a", "b", "c", "d"]
        assert all(
            f"{row['case']}.nii.gz" in row["error"] and row["error"] in " ".join(err.split()) for row in rows[2:]
        )
        assert "4 of 6 scans have no answer" in err
    with (tmp_path / "out" / "summary.csv").open() as file:
        table = [(row["case"], row["voxels"], row["error"]) for row in csv.DictReader(file)]
    assert table[:2] == [(one.case, str(one.voxels), "") for one in whole]
    assert table[2:] == [(row["case"], "", row["error"]) for row in rows[2:]]
    for number in (4, 5):
        (scans / f"p{number}.nii.gz").unlink()
    code, _, err = cli("predict", "--run", run.folder, "--images", scans, "--out", tmp_path / "none")
    assert code == 2
    assert "a.nii.gz is not a NIfTI file" in err


@pytest.mark.parametrize("harm", ["raises", "exits", "gives NaN"])
def test_a_scan_that_the_method_fails_at_is_its_own_failure(
    run: api.Run, scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, harm: str
) -> None:
    """Both scans are in one batch."""
    (whole, _) = run.predict(scans, tmp_path / "whole")
    honest = HistEq.score

    def score(self: HistEq, batch: SliceBatch) -> torch.Tensor:
        if "p5" in batch.subjects and harm == "raises":
            raise OSError("no such slice")
        if "p5" in batch.subjects and harm == "exits":
            sys.exit(0)
        fifth = torch.tensor([subject == "p5" for subject in batch.subjects])[:, None, None, None]
        return honest(self, batch).masked_fill(fifth, math.nan)

    monkeypatch.setattr(HistEq, "score", score)
    said = {"raises": "p5: OSError: no such slice", "exits": "p5: RuntimeError: SystemExit: 0"}
    with pytest.raises(ScansFailed) as failed:
        run.predict(scans, tmp_path / "out")
    assert failed.value.found == [whole]
    assert failed.value.why == {"p5": said.get(harm, "p5: its scores hold NaN or infinite values.")}
    (scans / "p4.nii.gz").unlink()
    with pytest.raises(
        Exception, match=r"no such slice|SystemExit|NaN"
    ) as alone:  # none is answered: the method is wrong
        run.predict(scans, tmp_path / "alone")
    assert not isinstance(alone.value, ScansFailed)
    monkeypatch.undo()
    assert run.predict(scans, tmp_path / "alone")[0].case == "p5"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--threshold", "vall"), "Did you mean 'val'"),
        (("--threshold", "conformal05"), "has no threshold 'conformal05'"),
        (("--threshold", "nan"), "not a finite score"),
        (("--set", "method.sigma=2"), "prediction takes parameters of the dataset folder"),
        (("--set", "dataset.size=64"), "leave --set dataset.size away"),
        (("--images", "nowhere"), "nowhere is missing: give the folder of the scans"),
    ],
)
def test_what_cannot_be_is_said(
    cli: Cli, run: api.Run, scans: Path, tmp_path: Path, options: tuple[str, str], expected: str
) -> None:
    code, _, err = cli("predict", "--run", run.folder, "--images", scans, "--out", tmp_path / "out", *options)
    assert code == 2
    assert expected in err.replace("\n", " ")


def test_an_empty_folder_is_called_that(run: api.Run, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty is empty: give the folder of the scans"):
        run.predict(tmp_path / "empty", tmp_path / "out")


def test_other_scans_than_the_run_knows(run: api.Run, tmp_path: Path) -> None:
    image, _ = scan(9, False)
    save(tmp_path / "t1" / "a_T1.nii.gz", image, FLIPPED)
    with pytest.raises(UserError, match=r"names of the scans in .* say T1, and histeq was fitted to FLAIR"):
        run.predict(tmp_path / "t1", tmp_path / "out")
    head = np.where(image > 0, image, 30 + np.random.default_rng(1).random(SHAPE)).astype(np.float32)
    save(tmp_path / "heads" / "b.nii.gz", head, FLIPPED)
    with pytest.raises(
        UserError, match=r"b\.nii\.gz\) shows the skull, and the method was fitted to images whose skull was"
    ):
        run.predict(tmp_path / "heads", tmp_path / "out", settings=["dataset.brain=background"])


def test_scans_of_other_sequences_beside_the_right_ones_are_named(
    cli: Cli, run: api.Run, scans: Path, tmp_path: Path
) -> None:
    image, _ = scan(9, False)
    for name in ("p4_T1", "q_T1", "q_T2"):  # p4 has its FLAIR
        save(scans / f"{name}.nii.gz", image, FLIPPED)
    code, said, _ = cli("predict", "--run", run.folder, "--images", scans, "--out", tmp_path / "out", "--json")
    assert code == 1
    rows = json.loads(said)
    assert [row["case"] for row in rows] == ["p4", "p5", "q"]
    assert rows[2]["error"] == "q: its name says T1, T2, and histeq was fitted to FLAIR."


def test_slices_with_the_skull_are_refused(slices: Path, tmp_path: Path) -> None:
    (made,) = api.run("histeq", "folder", data_root=str(slices), device="cpu", out=tmp_path / "runs")
    head = np.random.default_rng(0).integers(40, 120, (32, 32)).astype(np.uint8)
    (tmp_path / "png").mkdir()
    Image.fromarray(head).save(tmp_path / "png" / "q-slice_3-FLAIR.png")
    with pytest.raises(UserError, match=r"q-slice_3-FLAIR\.png shows the skull: 0% of its pixels are 0.*brainmask"):
        made.predict(tmp_path / "png", tmp_path / "out")
    brain = np.zeros((32, 32), np.uint8)
    brain[4:28, 4:28] = 255
    Image.fromarray(brain).save(tmp_path / "png" / "q-slice_3-brainmask.png")
    (found,) = made.predict(tmp_path / "png", tmp_path / "out")
    assert (found.case, found.notes) == ("q", "")


def test_weights_of_another_version_are_refused(
    run: api.Run, scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(HistEq, "version", "99")
    with pytest.raises(UserError, match=r"holds histeq version 1, not histeq version 99: fit it again"):
        run.predict(scans, tmp_path / "out")


def test_without_the_fit(data: Path, scans: Path, tmp_path: Path) -> None:
    grid = {"dataset": {"size": 32, "field_of_view": 64}, "histeq": {"sigma": 0}}
    (made,) = api.run("histeq", "folder", data_root=str(data), device="cpu", out=tmp_path / "runs", set=grid)
    (made.fit_folder / FIT).unlink()
    with pytest.raises(UserError, match=r"The fit of .* was not kept"):
        made.predict(scans, tmp_path / "out")


def test_slices_come_back_on_their_own_pixels(slices: Path, tmp_path: Path, scans: Path) -> None:
    own = {"histeq": {"sigma": 0}}
    (made,) = api.run("histeq", "folder", data_root=str(slices), device="cpu", out=tmp_path / "runs", set=own)
    rng = np.random.default_rng(0)
    image = np.pad(rng.integers(60, 120, (20, 25)), 2).astype(np.uint8)
    image[8:12, 14:20] = 250
    (tmp_path / "png").mkdir()
    Image.fromarray(image).save(tmp_path / "png" / "q-slice_3-FLAIR.png")
    (found,) = made.predict(tmp_path / "png", tmp_path / "out")
    mask = np.asarray(Image.open(tmp_path / "out" / "q-slice_3-FLAIR-histeq-mask.png"))
    assert mask.shape == image.shape
    assert mask[9:11, 15:19].all()
    assert (found.voxels, found.volume_ml, found.slice) == ((mask > 0).sum(), None, 3)
    grey = np.asarray(Image.open(tmp_path / "out" / "q-slice_3-FLAIR-histeq-anomaly.png"))
    ends = json.loads((tmp_path / "out" / "q-histeq.json").read_text())["GreyValues"]
    score = ends["0"] + grey / 65535 * (ends["65535"] - ends["0"])
    assert score[image > 0].max() == pytest.approx(found.highest_score, abs=1e-4)
    brain = np.asarray(Image.open(tmp_path / "out" / "q-slice_3-FLAIR-brain.png")) > 0
    np.testing.assert_array_equal((score >= found.threshold) & brain, mask > 0)
    assert not score[~brain].any()
    assert found.notes.endswith("; padded from 24 x 29 to 32 x 32 pixels")
    cut = (tmp_path / "png" / "q-slice_3-FLAIR.png").read_bytes()[:-40]
    (tmp_path / "png" / "s-slice_3-FLAIR.png").write_bytes(cut)
    (tmp_path / "png" / "t-slice_3-FLAIR.png").write_bytes(b"no header")
    Image.fromarray(np.full((40, 40), 90, np.uint8)).save(tmp_path / "png" / "l-slice_3-FLAIR.png")
    with pytest.raises(ScansFailed, match=r"3 of 4 scans have no answer: .*s-slice_3-FLAIR") as failed:
        made.predict(tmp_path / "png", tmp_path / "out")
    assert (failed.value.found, list(failed.value.why)) == ([found], ["l", "s", "t"])
    assert "l-slice_3-FLAIR.png is 40x40 (height x width), and the method was fitted to 32x32" in failed.value.why["l"]
    (tmp_path / "png" / "q-slice_3-FLAIR.png").unlink()
    with pytest.raises(UserError, match="3 of 3 cases of folder could not be prepared"):
        made.predict(tmp_path / "png", tmp_path / "out")
    with pytest.raises(UserError, match=r"say how many mm 32 pixels are with --set dataset\.field_of_view=MM"):
        made.predict(scans, tmp_path / "out")
    assert len(made.predict(scans, tmp_path / "vols", settings=["dataset.field_of_view=64"])) == 2


def test_slices_of_two_scanners_are_scored_and_their_scales_are_in_the_notes(slices: Path, tmp_path: Path) -> None:
    own = {"histeq": {"sigma": 0}}
    (made,) = api.run("histeq", "folder", data_root=str(slices), device="cpu", out=tmp_path / "runs", set=own)
    (tmp_path / "png").mkdir()
    for name, largest in {"a": 700, "b": 720, "c": 3000, "d": 3100}.items():
        image = np.pad(np.linspace(largest / 3, largest, 400).reshape(20, 20), 2).astype(np.uint16)
        Image.fromarray(image).save(tmp_path / "png" / f"{name}-slice_3-FLAIR.png")
        if name == "a":  # of another sequence, which is not asked for
            Image.fromarray(image * 60).save(tmp_path / "png" / f"{name}-slice_3-T2.png")
    found = made.predict(tmp_path / "png", tmp_path / "out")
    assert [one.case for one in found] == ["a", "b", "c", "d"]
    assert all("the 2 subjects a, b use 10 bits (in the middle 720" in one.notes for one in found)


def test_what_is_odd_about_a_header_is_in_the_notes(run: api.Run, scans: Path, tmp_path: Path) -> None:
    """As ``data check`` says it."""
    image, _ = scan(4, True)
    (scans / "p5.nii.gz").unlink()
    tilt = np.array([[np.cos(0.35), 0, -np.sin(0.35)], [0, 1, 0], [np.sin(0.35), 0, np.cos(0.35)]])
    turned, sheared = np.eye(4), np.diag([1.0, 1, 3, 1])
    turned[:3, :3] = tilt @ np.diag([1.0, 1, 3])
    sheared[0, 1] = 0.9
    for name, affine in {"sheared": sheared, "tilted": turned, "metres": np.diag([0.001, 0.001, 0.003, 1])}.items():
        save(scans / f"{name}.nii.gz", image, affine)
    junk = nibabel.Nifti1Image(image, FLIPPED).to_bytes() + b"more"
    (scans / "junk.nii").write_bytes(junk)
    for end in ("hdr", "img"):
        (scans / f"pair.{end}").write_bytes(bytes(400))
    with pytest.raises(ScansFailed) as failed:
        run.predict(scans, tmp_path / "out")
    assert list(failed.value.why) == ["metres", "pair.hdr"]
    assert (
        "has voxels of 0.001 x 0.001 x 0.003 mm: implausible for a head, is that metres?" in failed.value.why["metres"]
    )
    assert "pair.hdr is the header of a pair of files: only single files" in failed.value.why["pair.hdr"]
    notes = {one.case: one.notes for one in failed.value.found}
    assert "junk.nii holds 4 bytes behind its voxels" in notes["junk"]
    assert "sheared.nii.gz has a sheared affine: two of its axes meet at 48 degrees" in notes["sheared"]
    assert "tilted.nii.gz has axes that are tilted by 20 degrees" in notes["tilted"]
    for path in (*scans.glob("*.nii.gz"), scans / "junk.nii"):
        path.unlink()
    with pytest.raises(UserError, match=r"pair\.hdr is the header of a pair of files"):
        run.predict(scans, tmp_path / "pairs")


def test_planes_between_those_that_were_scored_are_said(data: Path, scans: Path, tmp_path: Path) -> None:
    grid = {"dataset": {"size": 32, "field_of_view": 64, "slice_step": 2}, "histeq": {"sigma": 0}}
    (made,) = api.run("histeq", "folder", data_root=str(data), device="cpu", out=tmp_path / "runs", set=grid)
    for one in made.predict(scans, tmp_path / "out"):
        assert "one slice in 2 was scored, as in the run, and the others are blends" in one.notes
    for one in made.predict(scans, tmp_path / "all", settings=["dataset.slice_step=1"]):
        assert "blends" not in one.notes


def test_nothing_of_another_prediction_is_lost(data: Path, run: api.Run, scans: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run.predict(scans, out)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    grid = {"dataset": {"size": 32, "field_of_view": 64}}
    (other,) = api.run("zscore", "folder", data_root=str(data), device="cpu", out=tmp_path / "runs", set=grid)
    with pytest.raises(UserError, match=r"desc-histeq_anomaly\.json is of the run .*; the table would lose its row"):
        other.predict(scans, out)
    (scans / "p4.nii.gz").rename(scans / "p9.nii.gz")
    with pytest.raises(UserError, match=r"is of 'p4', which is not in .*; the table would lose its row: give another"):
        run.predict(scans, out)
    assert before == {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}


def test_another_threshold_writes_the_same_folder_anew(
    run: api.Run, scans: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Masks and table are then those of a folder of their own; one that never marks, or marks all, is said."""

    def files(out: Path) -> dict[str, bytes]:
        return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}

    out = tmp_path / "out"
    run.predict(scans, out, threshold="fpr5")
    maps = {name: content for name, content in files(out).items() if name.endswith("_anomaly.nii.gz")}
    found = run.predict(scans, out, threshold=0.5)
    assert {one.threshold for one in found} == {0.5}
    run.predict(scans, tmp_path / "fresh", threshold=0.5)
    assert files(out) == files(tmp_path / "fresh")
    assert maps.items() <= files(out).items()
    assert "every score" not in caplog.text + "".join(one.notes for one in found)
    below = run.predict(scans, out, threshold=-1e6)
    assert all(one.notes.endswith("all of its brain is marked: the threshold is below every score") for one in below)
    assert all(one.voxels > 0 for one in below)
    assert not any(one.voxels for one in run.predict(scans, out, threshold=7))
    assert "The threshold 7 is above every score, the highest is " in caplog.text


@pytest.mark.parametrize("harm", ["cannot be read", "cannot be scored"])
def test_a_scan_without_an_answer_keeps_none_of_another_threshold(
    run: api.Run, scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, harm: str
) -> None:
    out = tmp_path / "out"
    run.predict(scans, out, threshold="fpr5")
    of_fifth = {path for path in out.rglob("*p5*") if path.is_file()}
    assert len(of_fifth) > 3
    if harm == "cannot be read":
        (scans / "p5.nii.gz").write_bytes(b"no volume")
    else:
        honest = HistEq.score

        def score(self: HistEq, batch: SliceBatch) -> torch.Tensor:
            if "p5" in batch.subjects:
                raise OSError("no such slice")
            return honest(self, batch)

        monkeypatch.setattr(HistEq, "score", score)
    with pytest.raises(ScansFailed) as failed:
        run.predict(scans, out, threshold=0.5)
    assert [one.case for one in failed.value.found] == ["p4"]
    assert not any(path.exists() for path in of_fifth)
    assert {json.loads(path.read_text())["Threshold"]["Score"] for path in out.rglob("*_anomaly.json")} == {0.5}


def test_slices_for_a_run_on_volumes_are_said_to_have_its_pixels(run: api.Run, tmp_path: Path) -> None:
    (tmp_path / "png").mkdir()
    image = np.pad(np.random.default_rng(0).integers(60, 120, (18, 20)), 4).astype(np.uint8)
    Image.fromarray(image).save(tmp_path / "png" / "q-slice_3-FLAIR.png")
    (found,) = run.predict(tmp_path / "png", tmp_path / "out")
    assert found.notes.endswith(
        "; padded from 26 x 28 to 32 x 32 pixels; a PNG does not say how large its pixels are: taken for 2 mm, as in the run"
    )


SAID_OF_HEADERS = {
    "neither": "has neither sform nor qform: it does not say where left is",
    "apart": "has an sform and a qform that place a corner 3.0 mm apart; the sform is used",
    "negative": "has voxel sizes of -1, 1, 3 mm, read without their sign",
    "handedness": "has a handedness (qfac) of -7, read as -1",
    "handedness 0": "has a handedness (qfac) of 0, read as 1",
    "metres": "has voxel sizes of 1 x 1 x 3 that are said to be metres, read as mm",
    "sizes": "states voxels of 2 x 2 x 2 mm, and its sform places them 1 x 1 x 3 mm apart; the sform is used",
    "dark": "has a negative scale (scl_slope -1)",
}
SAID_OF_FLIPS = (
    "says in two ways how the head lies, by its sform (LPS) and by its qform (RAS), and which is right cannot"
)


def odd_scan(path: Path, data: np.ndarray, kind: str) -> None:
    """A volume whose header is odd; what it holds is ``data``, but scaled where it is "dark"."""
    image = nibabel.Nifti1Image(data, FLIPPED)
    image.set_sform(FLIPPED, int(kind != "neither"))
    shifted = FLIPPED.copy()
    shifted[0, 3] = 3 * (kind == "apart")
    wanted = {"flip": np.diag([1.0, 1, 3, 1]), "apart": shifted, "handedness 0": FLIPPED}.get(kind)
    image.set_qform(wanted, int(wanted is not None))
    header = nibabel.Nifti1Header(image.to_bytes()[:348], check=False)
    header["magic"], header["vox_offset"] = b"n+1", 352
    header["pixdim"][:4] = {
        "negative": [1, -1, 1, 3],
        "handedness": [-7, 1, 1, 3],
        "handedness 0": [0, 1, 1, 3],
        "sizes": [1, 2, 2, 2],
    }.get(kind, [1, 1, 1, 3])
    header["xyzt_units"] = 1 if kind == "metres" else 2
    header["scl_slope"] = -1 if kind == "dark" else 1
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(header.binaryblock) + bytes(4) + data.tobytes("F"))


@pytest.mark.parametrize("kind", [*SAID_OF_HEADERS, "flip"])
def test_check_eval_and_predict_say_the_same_of_a_header(run: api.Run, tmp_path: Path, kind: str) -> None:
    image, mask = scan(4, True)
    odd_scan(tmp_path / "maps" / "p4_FLAIR.nii", image * (-1 if kind == "dark" else 1), kind)
    odd_scan(tmp_path / "masks" / "p4_FLAIR.nii", mask, kind if kind == "neither" else "")
    findings = check(FolderVolumes(FolderParams(), tmp_path / "maps")).issues

    def evaluated() -> None:
        notes = evaluate_folders(tmp_path / "maps", tmp_path / "masks", out=tmp_path / "eval").notes
        assert f"{tmp_path / 'maps' / 'p4_FLAIR.nii'} {SAID_OF_HEADERS[kind]}" in " ".join(notes)
        assert json.loads((tmp_path / "eval" / METRICS).read_text())["notes"] == notes

    def predicted() -> None:
        (found,) = run.predict(tmp_path / "maps", tmp_path / "out")
        assert f"p4_FLAIR.nii {SAID_OF_HEADERS[kind]}" in found.notes

    if kind == "flip":
        assert [(one.severity, one.code) for one in findings if SAID_OF_FLIPS in one.message] == [
            ("error", "affine-conflict")
        ]
        for read in (evaluated, predicted):
            with pytest.raises(UserError) as refused:
                read()
            assert SAID_OF_FLIPS in str(refused.value)
        return
    assert [one.severity for one in findings if SAID_OF_HEADERS[kind] in one.message] == ["warning"]
    evaluated()
    predicted()
