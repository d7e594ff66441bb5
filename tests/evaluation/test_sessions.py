"""A subject with several volumes, from the files to the record, the report, exported maps and scores of folders."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from adbench import api
from adbench.evaluation.maps import evaluate_folders

Cli = Callable[..., tuple[int, str, str]]
TEST = [("sub-20", "ses-1"), ("sub-20", "ses-2"), ("sub-21", "ses-1"), ("sub-22", "ses-1")]
FIRST = {"train": 0, "val": 10, "test": 20}  # seed of the first head
VOLUMES = ["sub-20_ses-1", "sub-20_ses-2", "sub-21", "sub-22"]  # the session is named where a subject has several


def head(seed: int, lesion: bool) -> tuple[np.ndarray, np.ndarray]:
    """(40, 44, 12) image with a disc of tissue, and a mask with two bricks, the second one two planes above the first."""
    rng = np.random.default_rng(seed)
    x, y, _ = np.indices((40, 44, 12))
    brain = ((x - 19.5) / 16) ** 2 + ((y - 21.5) / 18) ** 2 < 1
    image = np.where(brain, 100 + 20 * np.sin(x / 5 + seed) + rng.normal(0, 6, brain.shape), 0)
    mask = np.zeros(brain.shape, bool)
    if lesion:
        mask[12 + seed % 5 : 18 + seed % 5, 20:27, 1:4] = mask[12:16, 14:18, 6:9] = True
        image = np.where(mask, 160 + 10 * (seed % 3), image)
    return np.where(brain, np.clip(image, 1, None), 0).astype(np.float32), mask.astype(np.uint8)


@pytest.fixture(scope="module")
def bids(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sessions")
    roles = {"train": [("sub-01", "ses-1"), ("sub-02", "ses-1")], "val": [("sub-10", "ses-1"), ("sub-11", "ses-1")]}
    affine = np.diag([1.0, 1.0, 3.0, 1.0])
    for role, scans in (roles | {"test": TEST}).items():
        for number, (subject, session) in enumerate(scans):
            image, mask = head(FIRST[role] + number, role == "test" or (role == "val" and number == 0))
            stem = root / role / subject / session / f"{subject}_{session}"
            stem.parent.mkdir(parents=True)
            nibabel.save(nibabel.Nifti1Image(image, affine), f"{stem}_FLAIR.nii.gz")
            if role != "train":
                nibabel.save(nibabel.Nifti1Image(mask, affine), f"{stem}_label-lesion_mask.nii.gz")
    return root


@pytest.fixture(scope="module")
def run(bids: Path, tmp_path_factory: pytest.TempPathFactory) -> api.Run:
    settings: dict[str, Any] = {"data_root": str(bids), "modality": "FLAIR", "device": "cpu"}
    grid = {"dataset": {"size": 48, "field_of_view": 48}}
    (made,) = api.run("histeq", "folder", set=grid, out=tmp_path_factory.mktemp("runs"), save_maps=True, **settings)
    return made


def test_a_run_is_scored_by_volume_and_resampled_by_subject(run: api.Run) -> None:
    record = run.record
    assert [row.get("volume", row["subject"]) for row in record.subjects] == VOLUMES
    assert [row["subject"] for row in record.subjects] == ["sub-20", "sub-20", "sub-21", "sub-22"]
    assert "volume" not in record.subjects[2]
    assert [row["lesions"] for row in record.subjects] == [2, 2, 2, 2], "of each volume, not joined across sessions"
    assert (record.test.subjects, record.test.lesion_subjects) == (3, 3)
    assert record.metrics["dice@val"].n == 3
    dice = np.array([row["dice@val"] for row in record.subjects])
    assert record.metrics["dice@val"].value == pytest.approx(dice.mean(), abs=1e-12)
    histograms = run.histograms
    assert histograms.subjects == VOLUMES
    for row in record.subjects:
        tp, fp = histograms[row.get("volume", row["subject"])].positives_at(record.thresholds["val"])
        assert row["dice@val"] == pytest.approx(2 * tp / (tp + fp + row["lesion_voxels"]), abs=1e-12)
    assert run.subjects == ["sub-20", "sub-21", "sub-22"]
    assert "4 volumes of 3 test subjects: scored by volume, resampled by subject." in record.notes
    again = run.evaluate_again()
    assert {name: (one.value, one.low) for name, one in again.metrics.items()} == {
        name: (one.value, one.low) for name, one in record.metrics.items()
    }


def test_saved_maps_are_read_by_volume(run: api.Run) -> None:
    found = list(run.each(reconstructions=False))
    assert [one.volume for one in found] == VOLUMES
    assert [one.subject for one in found] == ["sub-20", "sub-20", "sub-21", "sub-22"]
    for one in found:
        assert one.slices.tolist() == sorted(set(one.slices.tolist()))
        assert one.drift == 0
    assert [one.volume for one in run.each(["sub-20"], reconstructions=False)] == VOLUMES[:2]
    assert [one.volume for one in run.each(["sub-20_ses-2"], reconstructions=False)] == VOLUMES[1:2]


def test_a_report_shows_and_exports_volumes(cli: Cli, run: api.Run, bids: Path, tmp_path: Path) -> None:
    out = tmp_path / "report"
    code, stdout, err = cli(
        "report", run.folder, "--out", out, "--count", 1, "--subject", "sub-20", "--nifti", "original", "--nifti-all",
        "--json",
    )  # fmt: skip
    assert code == 0, err
    page = (out / "index.html").read_text(encoding="utf-8")
    assert "sub-20_ses-1" in page
    assert "sub-20_ses-2" in page
    names = {Path(name).relative_to(out / "nifti").as_posix() for name in json.loads(stdout)["nifti"]}
    for session in ("ses-1", "ses-2"):
        name = f"sub-20/{session}/anat/sub-20_{session}_space-orig_desc-lesion_mask.nii.gz"
        assert name in names
        source = nibabel.load(bids / "test" / "sub-20" / session / f"sub-20_{session}_label-lesion_mask.nii.gz")
        np.testing.assert_array_equal(nibabel.load(out / "nifti" / name).dataobj, source.dataobj)
    assert "sub-21/anat/sub-21_space-orig_desc-histeq_anomaly.nii.gz" in names


def test_files_that_differ_in_the_session_are_volumes_of_one_subject(tmp_path: Path) -> None:
    names = {"maps": "map", "masks": "mask"}
    for number, (subject, session) in enumerate(TEST):
        image, mask = head(20 + number, True)
        for folder, array in (("maps", image.astype(np.float64)), ("masks", mask)):
            (tmp_path / folder).mkdir(exist_ok=True)
            path = tmp_path / folder / f"{subject}_{session}_{names[folder]}.nii.gz"
            nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), path)
    result = evaluate_folders(tmp_path / "maps", tmp_path / "masks", out=tmp_path / "out")
    assert [(row["subject"], row["volume"]) for row in result.subjects] == [
        (subject, f"{subject}_{session}") for subject, session in TEST
    ]
    assert [row["lesions"] for row in result.subjects] == [2, 2, 2, 2]
    assert result.metrics["auprc_subject"].n == 3
    assert result.metrics["auprc_subject"].value == pytest.approx(np.mean([row["auprc"] for row in result.subjects]))
