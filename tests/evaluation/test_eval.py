"""adbench eval: old runs and strangers' maps, without a model."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from adbench.datasets.store.slice_store import SliceStore
from adbench.results import record

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(cli: Cli, slices: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ADBENCH_CACHE", str(tmp_path / "cache"))
    code, _, err = cli(
        "run", "--method", "histeq", "--dataset", "folder", "--data-root", slices, "--device", "cpu",
        "--out", tmp_path / "runs", "--save-maps", "--quiet",
    )  # fmt: skip
    assert code == 0, err
    return next((tmp_path / "runs").rglob("record.json")).parent


def test_histograms_give_the_numbers_of_the_record_again(cli: Cli, run: Path) -> None:
    code, out, _ = cli("eval", run, "--json")
    assert code == 0
    stored = record.read_record(run)
    again = json.loads(out)["evaluation"]
    assert again["metrics"] == {
        name: number.model_dump() for name, number in stored.metrics.items() if name in again["metrics"]
    }
    assert set(again["metrics"]) == set(stored.metrics)
    assert again["thresholds"] == stored.thresholds


def test_saved_maps_are_what_was_measured(run: Path, slices: Path) -> None:
    from PIL import Image

    maps = np.load(run / "maps.npy")
    scores, truth = [], []
    for pixels, path in zip(maps, sorted((slices / "test").glob("*-segmentation.png")), strict=True):
        brain = np.asarray(Image.open(str(path).replace("segmentation", "brainmask"))) > 0
        lesion = np.asarray(Image.open(path)) > 0
        scores.append(pixels[: brain.shape[0], : brain.shape[1]][brain])
        truth.append(lesion[brain])
    expected = average_precision_score(np.concatenate(truth), np.concatenate(scores))
    assert record.read_record(run).metrics["auprc"].value == pytest.approx(expected, abs=2e-3)


def invert_masks(cache: Path) -> None:
    """Invert the lesion masks of the only store below ``cache``; the files keep their times."""
    (manifest,) = cache.glob("stores/*/manifest.json")
    store = SliceStore.open(manifest.parent)
    for case, file in zip(store.cases, store.files, strict=True):
        state, content = file.stat(), np.frombuffer(file.read_bytes(), np.uint8).copy()
        voxels = len(case.slices) * store.shape[0] * store.shape[1]
        content[3 * voxels : 4 * voxels] ^= 1
        file.write_bytes(content.tobytes())
        os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))


def test_an_edited_mask_is_noticed(cli: Cli, run: Path, slices: Path, tmp_path: Path) -> None:
    assert json.loads(cli("eval", run, "--json")[1])["evaluation"]["notes"] == record.read_record(run).notes
    invert_masks(tmp_path / "cache")
    for more in ((), ("--protocol", "upd")):
        code, _, err = cli("eval", run, *more)
        assert code == 2
        assert re.search(r"the lesions of case \S+ have the checksum \w+ and were", " ".join(err.split()))
    invert_masks(tmp_path / "cache")
    assert cli("eval", run)[0] == 0
    # In the files that the store was made of: nothing is prepared for a look, but the answer says so.
    mask = next((slices / "test").glob("*-segmentation.png"))
    other = next(p for p in sorted((slices / "test").glob("*-segmentation.png")) if p.read_bytes() != mask.read_bytes())
    mask.write_bytes(other.read_bytes())
    (note,) = set(json.loads(cli("eval", run, "--json")[1])["evaluation"]["notes"]) - set(record.read_record(run).notes)
    assert "masks were not looked at" in note
    assert "`adbench data prepare`" in note
    assert cli("data", "prepare", "--dataset", "folder", "--data-root", slices, "--quiet")[0] == 0
    code, _, err = cli("eval", run)
    assert code == 2
    assert re.search(
        rf"masks of folder are not those of the run any more: they have the digest \w+, its record says "
        rf"{record.read_record(run).test.digest[:16]}",
        " ".join(err.split()),
    )


def test_papers_rules_read_the_maps(cli: Cli, run: Path) -> None:
    code, out, _ = cli("eval", run, "--protocol", "official-madad", "--protocol", "upd", "--json")
    assert code == 0
    assert [preset["name"] for preset in json.loads(out)["presets"]] == ["official-madad", "upd"]


@pytest.mark.parametrize(
    "content",
    [b"", b"no array", b"PK\x05\x06" + bytes(18), np.zeros((1, 2, 3), np.complex64), np.zeros((1, 2, 3)), np.array(["a"]), np.array([{}])],
)  # fmt: skip
def test_maps_that_are_none(cli: Cli, run: Path, content: Any, tmp_path: Path) -> None:
    """A record of a stranger names the hash of whatever lies beside it."""
    path = run / "maps.npy"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.save(path, content)
    raw = json.loads((run / "record.json").read_text())
    raw["files"]["maps.npy"] = hashlib.sha256(path.read_bytes()).hexdigest()
    (run / "record.json").write_text(json.dumps(raw))
    code, _, err = cli("eval", run, "--protocol", "official-madad")
    assert code == 2, err
    assert re.search(
        r"maps\.npy holds .*, expected maps of shape \(\d+, \d+, \d+\): run again with --save-maps",
        " ".join(err.split()),
    )


def test_names_that_are_no_text(cli: Cli, tmp_path: Path) -> None:
    for folder in ("maps", "masks"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "w\udcfe.png").write_bytes(b"")
    code, _, err = cli("eval", "--maps", tmp_path / "maps", "--masks", tmp_path / "masks", "--out", tmp_path / "out")
    assert code == 2
    assert r"'w\udcfe.png': rename it" in " ".join(err.split())


def test_mistakes(cli: Cli, run: Path, slices: Path, tmp_path: Path) -> None:
    assert "not both" in cli("eval")[2]
    assert "Did you mean 'official-madad'?" in cli("eval", run, "--protocol", "oficial-madad")[2]
    assert "There is no record" in cli("eval", tmp_path)[2]
    (run / "histograms.npz").write_bytes(b"not the file")
    code, _, err = cli("eval", run)
    assert code == 2
    assert "is not the file that the record describes" in err
    (run / "histograms.npz").unlink()
    assert "is missing" in cli("eval", run)[2]


def test_run_without_maps_says_how_to_get_them(cli: Cli, slices: Path, tmp_path: Path) -> None:
    arguments = (
        "run",
        "--method",
        "constant",
        "--dataset",
        "folder",
        "--data-root",
        slices,
        "--device",
        "cpu",
        "--quiet",
    )
    cli(*arguments, "--out", tmp_path / "runs")
    folder = next((tmp_path / "runs").rglob("record.json")).parent
    assert "--save-maps" in cli("eval", folder, "--protocol", "upd")[2]
    cli(*arguments, "--out", tmp_path / "runs", "--save-maps")  # the record is there, the maps are not: they are made
    assert (folder / "maps.npy").exists()
    assert cli("eval", folder, "--protocol", "upd")[0] == 0


def nifti_cases(root: Path, names: list[str], seed: int) -> None:
    import nibabel as nib

    rng = np.random.default_rng(seed)
    affine = np.diag([1.0, 1.0, 2.0, 1.0])
    for name in names:
        brain = np.zeros((20, 22, 8), np.uint8)
        brain[3:17, 3:19, 1:7] = 1
        lesion = np.zeros_like(brain)
        top, left = rng.integers(5, 11, 2)
        lesion[top : top + 4, left : left + 4, 2:5] = 1
        maps = rng.normal(0, 1, brain.shape) + 2.0 * lesion
        for kind, array in (("maps", maps.astype(np.float32)), ("masks", lesion), ("brain", brain)):
            (root / kind).mkdir(parents=True, exist_ok=True)
            nib.save(nib.Nifti1Image(array, affine), root / kind / f"{name}.nii.gz")


def test_a_strangers_nifti_maps_give_table_json_and_plots(cli: Cli, tmp_path: Path) -> None:
    nifti_cases(tmp_path / "test", [f"sub-{n}" for n in range(6)], 0)
    nifti_cases(tmp_path / "val", [f"sub-{n}" for n in range(10, 14)], 1)
    arguments = [
        "eval", "--maps", tmp_path / "test/maps", "--masks", tmp_path / "test/masks", "--brain", tmp_path / "test/brain",
        "--val-maps", tmp_path / "val/maps", "--val-masks", tmp_path / "val/masks", "--val-brain", tmp_path / "val/brain",
        "--out", tmp_path / "scores",
    ]  # fmt: skip
    code, out, _ = cli(*arguments, "--protocol", "upd")
    assert code == 0
    for words in ("auprc", "dice@val", "oracle", "as published: upd"):
        assert words in out
    names = {path.name for path in (tmp_path / "scores").iterdir()}
    assert {"metrics.json", "histograms.npz", "pr.png", "roc.png", "dice.png", "froc.png"} <= names
    shown = json.loads(cli(*arguments, "--json")[1])
    assert 0.3 < shown["evaluation"]["metrics"]["auprc"]["value"] < 0.95
    assert shown["evaluation"]["metrics"]["dice@val"]["n"] == 6

    (tmp_path / "test/masks/sub-3.nii.gz").unlink()
    code, _, err = cli(*arguments)
    assert code == 2
    assert "sub-3" in err
    assert "--labels 'x'" in cli(*arguments, "--labels", "x")[2]
