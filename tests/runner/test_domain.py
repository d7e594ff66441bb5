"""Protocols in which every voxel of a slice counts, background included."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import average_precision_score, roc_auc_score

from adbench.config.protocols import PROTOCOLS, get
from adbench.results import record

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(cli: Cli, slices: Path, tmp_path: Path) -> Callable[[str], tuple[Path, str]]:
    """``run("folder")``: the folder of the run with its maps, and its table."""

    def call(protocol: str) -> tuple[Path, str]:
        code, out, err = cli(
            "run", "--method", "histeq", "--dataset", "folder", "--data-root", slices, "--device", "cpu",
            "--protocol", protocol, "--out", tmp_path / "runs", "--save-maps", "--quiet",
        )  # fmt: skip
        assert code == 0, err
        return next((tmp_path / "runs" / protocol).rglob("record.json")).parent, out

    return call


def whole_slices(folder: Path, slices: Path) -> tuple[np.ndarray, np.ndarray]:
    maps = np.load(folder / "maps.npy")
    paths = sorted((slices / "test").glob("*-segmentation.png"))
    truth = np.zeros(maps.shape, bool)
    for plane, path in zip(truth, paths, strict=True):
        lesion = np.asarray(Image.open(path)) > 0
        plane[: lesion.shape[0], : lesion.shape[1]] = lesion
    return maps, truth


def test_every_voxel_counts_through_run(run: Callable[[str], tuple[Path, str]], slices: Path) -> None:
    folder, shown = run("folder-all-voxels")
    maps, truth = whole_slices(folder, slices)
    stored = record.read_record(folder)
    assert stored.prevalence == pytest.approx(truth.mean())
    assert {row["brain_voxels"] for row in stored.subjects} == {maps[0].size}
    assert stored.metrics["auprc"].value == pytest.approx(
        average_precision_score(truth.ravel(), maps.ravel()), abs=2e-3
    )
    assert stored.metrics["auroc"].value == pytest.approx(roc_auc_score(truth.ravel(), maps.ravel()), abs=2e-3)
    cut = np.float32(stored.thresholds["val"])
    dice = [2 * (m & t).sum() / (m.sum() + t.sum()) for m, t in zip(maps >= cut, truth, strict=True)]
    assert stored.metrics["dice@val"].value == pytest.approx(np.mean(dice))
    assert stored.protocol["domain"] == "all"
    assert "every voxel of a slice counts" in " ".join(shown.split())

    brain, _ = run("folder")
    own = record.read_record(brain)
    assert own.prevalence > 1.3 * stored.prevalence
    assert own.run_key != stored.run_key
    assert own.test.digest != stored.test.digest
    assert own.fit_key == stored.fit_key, "what is learned does not depend on what counts"


def test_every_voxel_counts_through_eval(cli: Cli, run: Callable[[str], tuple[Path, str]], slices: Path) -> None:
    folder, _ = run("folder-all-voxels")
    code, out, err = cli("eval", folder, "--metrics", "aupro", "--json")
    assert code == 0, err
    again = json.loads(out)["evaluation"]
    stored = record.read_record(folder)
    assert again["prevalence"] == stored.prevalence
    assert again["metrics"]["auprc"]["value"] == stored.metrics["auprc"].value
    assert again["metrics"]["fa_slice"]["reason"] == stored.metrics["fa_slice"].reason
    maps, truth = whole_slices(folder, slices)
    assert 0 < again["metrics"]["aupro"]["value"] <= 1
    from adbench.metrics.optional import per_region_overlap

    areas = [per_region_overlap(m[t], np.ones(t.sum(), int), m[~t]) for m, t in zip(maps, truth, strict=True)]
    assert again["metrics"]["aupro"]["value"] == pytest.approx(np.mean(areas))


def test_both_domains_stand_in_one_folder_of_leaderboards(
    cli: Cli, run: Callable[[str], tuple[Path, str]], tmp_path: Path
) -> None:
    run("folder")
    run("folder-all-voxels")
    root = tmp_path / "leaderboards"
    assert cli("leaderboard", "merge", tmp_path / "runs", "--into", root)[0] == 0
    code, _, err = cli("leaderboard", "verify", root)
    assert code == 0, err
    assert cli("leaderboard", "build", root)[0] == 0
    assert "every voxel of a slice counts, background included" in (root / "folder-all-voxels/index.md").read_text()
    assert "every voxel of a slice counts, background included" not in (root / "folder/index.md").read_text()


def test_variants_differ_in_the_domain_alone() -> None:
    names = [name for name in PROTOCOLS if name.endswith("-all-voxels")]
    assert {name.removesuffix("-all-voxels") for name in names} == {
        "phantom", "folder", "soop-flair", "ixi->atlas", "brats21", "ixi->brats21",
    }  # fmt: skip
    for name in names:
        base = get(name.removesuffix("-all-voxels"))
        differ = {key for key, value in get(name).as_dict().items() if base.as_dict().get(key) != value}
        assert differ == {"name", "summary", "domain"}
