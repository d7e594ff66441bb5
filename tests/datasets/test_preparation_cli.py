"""``adbench data prepare``, ``show`` and ``export`` as a user types them."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import small_brats
from PIL import Image

from adbench.datasets import contact_sheet
from adbench.datasets.store.prepare import prepare
from adbench.datasets.store.slice_store import SliceStore

Cli = Callable[..., tuple[int, str, str]]
SET = [part for name, value in small_brats.PARAMS.items() for part in ("--set", f"dataset.{name}={value}")]
DATA = Path(__file__).parents[3] / "shared" / "data" / "volumes"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return small_brats.write(tmp_path / "Läsionen of Zoë")


def test_prepare_then_run_finds_the_store(cli: Cli, root: Path, tmp_path: Path) -> None:
    common = ("--dataset", "brats21", "--data-root", root, *SET, "--cache", tmp_path / "cache")
    code, out, err = cli("data", "prepare", *common, "--workers", 1)
    assert code == 0, err
    assert "FLAIR" in out
    assert "T1" in out
    stores = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache" / "stores").glob("*/manifest.json")}
    assert len(stores) == 2
    found = json.loads(cli("data", "prepare", *common, "--json")[1])
    assert found["FLAIR"]["cases"] == 6
    assert found["FLAIR"]["lesion_ml"] == pytest.approx(found["FLAIR"]["lesion_ml_source"])
    code, _, err = cli("run", "--method", "histeq", *common, "--out", tmp_path / "runs", "--device", "cpu", "--quiet")
    assert code == 0, err
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cache" / "stores").glob("*/manifest.json")} == stores


def test_show_draws_a_sheet(cli: Cli, root: Path, tmp_path: Path) -> None:
    common = ("--dataset", "brats21", "--data-root", root, *SET, "--cache", tmp_path / "cache", "--workers", 1)
    code, _, err = cli("data", "show", *common, "--modality", "t1", "--out", tmp_path / "all.png")
    assert code == 0, err
    assert "6 of 6 cases" in err
    pixels = np.asarray(Image.open(tmp_path / "all.png").convert("RGB")).astype(int)
    red = (pixels[..., 0] > 200) & (pixels[..., 1] < 60) & (pixels[..., 2] < 60)
    cyan = (pixels[..., 0] < 60) & (pixels[..., 1] > 200) & (pixels[..., 2] > 200)
    assert red.sum() > 100
    assert cyan.sum() > 100
    code, _, err = cli("data", "show", *common, "--subject", "BraTS2021_00001", "--out", tmp_path / "one.png")
    assert "1 of 6 cases" in err
    assert Image.open(tmp_path / "one.png").height < Image.open(tmp_path / "all.png").height / 3
    code, _, err = cli("data", "show", *common, "--subject", "BraTS2021_0001", "--out", tmp_path / "no.png")
    assert code == 2
    assert "Unknown subject of brats21 FLAIR 'BraTS2021_0001'. Did you mean" in err


def test_export_writes_files(cli: Cli, root: Path, tmp_path: Path) -> None:
    common = ("--dataset", "brats21", "--data-root", root, *SET, "--cache", tmp_path / "cache", "--workers", 1)
    code, _, err = cli(
        "data", "export", *common, "--subject", "BraTS2021_00001", "--space", "original", "--out", tmp_path / "o"
    )
    assert code == 0, err
    assert len(list((tmp_path / "o").iterdir())) == 3
    code, _, err = cli("data", "export", *common, "--subject", "BraTS2021_00001", "--space", "mni")
    assert code == 2
    assert "Unknown space 'mni'" in err
    assert cli("data", "export", *common, "--split", "test", "--out", tmp_path / "t", "--quiet")[0] == 0
    assert sorted({path.name.split("_FLAIR")[0] for path in (tmp_path / "t").glob("*_FLAIR_*")}) == [
        case.id for case in _store(tmp_path / "cache").cases if case.split == "test"
    ]
    for more, message in (
        ((), "Name subjects with --subject ID, or a whole split with --split test; not both."),
        (("--split", "test", "--subject", "BraTS2021_00001"), "not both"),
        (("--split", "tests"), "Unknown split 'tests'. Did you mean 'test'?"),
    ):
        code, _, err = cli("data", "export", *common, *more)
        assert (code, message in " ".join(err.split())) == (2, True)


def _store(cache: Path) -> SliceStore:
    (manifest,) = cache.glob("stores/*/manifest.json")
    return SliceStore.open(manifest.parent)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--modality", "T3"), "Unknown modality of brats21 in .* 'T3'. Did you mean 'T1'"),
        (("--executor", "rays"), "Unknown executor 'rays'. Did you mean 'ray'"),
        (("--set", "dataset.sise=3"), "Unknown parameter of dataset brats21 'sise'. Did you mean 'size'"),
        (("--set", "dataset.exclude=[BraTS2021_99]"), "Unknown case of brats21 in dataset.exclude 'BraTS2021_99'"),
    ],
)
def test_bad_arguments(cli: Cli, root: Path, tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    import re

    code, _, err = cli("data", "prepare", "-d", "brats21", "--data-root", root, "--cache", tmp_path / "c", *arguments)
    assert code == 2
    assert re.search(message, " ".join(err.split()))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_cache_that_may_not_be_written(cli: Cli, root: Path, tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    code, _, err = cli("data", "prepare", "-d", "brats21", "--data-root", root, *SET, "--cache", tmp_path / "locked")
    assert code == 2
    assert "Not allowed to write" in err


def test_what_to_do_next_is_said(cli: Cli, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from adbench.datasets.store import prepare as module

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    verb = (
        "data",
        "prepare",
        "-d",
        "brats21",
        "--data-root",
        root,
        *SET,
        "-m",
        "T1",
        "--cache",
        tmp_path / "its cache",
    )
    with monkeypatch.context() as patched:
        patched.setattr(module, "_prepare_cases", interrupted)
        code, _, err = cli(*verb)
    assert code == 130
    assert "Run the same command again: it goes on where it stopped" in " ".join(err.split())
    code, _, err = cli(*verb)
    assert code == 0
    command = [
        "adbench",
        "data",
        "show",
        "--dataset",
        "brats21",
        "--data-root",
        root,
        "--cache",
        tmp_path / "its cache",
    ]
    assert shlex.split(err.rpartition("Look at them: ")[2]) == [str(part) for part in (*command, *SET)]


@pytest.mark.parametrize("where", ["folder", "file/report.json"])
def test_a_report_that_cannot_be_written(cli: Cli, root: Path, tmp_path: Path, where: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    code, _, err = cli("data", "check", "-d", "brats21", "--data-root", root, "--report", tmp_path / where)
    assert code == 2
    assert f"{tmp_path / where.split('/')[0]} cannot be read or written: " in " ".join(err.split())
    assert "Traceback" not in err


def test_a_cache_that_is_a_file(cli: Cli, root: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    code, _, err = cli("data", "prepare", "-d", "brats21", "--data-root", root, *SET, "--cache", tmp_path / "file")
    assert code == 2
    assert "is a file, expected a folder: give another with --cache" in " ".join(err.split())


def test_the_largest_lesion_is_always_shown(root: Path, tmp_path: Path) -> None:
    store = prepare(small_brats.dataset(root), "FLAIR", tmp_path, workers=1)
    for case in store.cases:
        shown = contact_sheet.choose_slices(case, 3)
        assert int(np.argmax(case.lesion_voxels)) in shown
        assert len(shown) == 3


@pytest.mark.skipif(not DATA.is_dir(), reason="real volumes are not here (ADBENCH_TEST_DATA)")
def test_real_tumours_keep_every_voxel(tmp_path: Path) -> None:
    import nibabel

    from adbench.datasets.adapters.brats import BraTS21
    from adbench.datasets.export import export_stack

    root = DATA / "brats_layout"
    store = prepare(BraTS21(BraTS21.Params(), root), "FLAIR", tmp_path, workers=1)  # type: ignore[arg-type]
    for case in store.cases:
        truth = np.asarray(nibabel.load(root / case.id / f"{case.id}_seg.nii.gz").dataobj) > 0  # type: ignore[attr-defined]
        assert case.quality["lesion_ml"] == case.quality["lesion_ml_source"] == pytest.approx(truth.sum() / 1000)
        path = export_stack(store, case.id, np.asarray(store.lesions[case.rows]), tmp_path / "nifti", space="original")
        np.testing.assert_array_equal(np.asarray(nibabel.load(path).dataobj) > 0, truth)  # type: ignore[attr-defined]
