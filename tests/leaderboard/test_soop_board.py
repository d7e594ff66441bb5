"""The board of real strokes: where its slices come from, and what is known of them where they are not."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from board_files import ROOT, altered, place, rekey
from PIL import Image

from adbench.config import grid, registry
from adbench.errors import UserError
from adbench.leaderboard import submission as files
from adbench.leaderboard.verify import verify
from adbench.results.known import lists
from adbench.results.known import slices as slices_known

SCRIPT = ROOT.parent / "examples" / "soop_slices.py"
RECORDS = sorted(ROOT.glob("soop-flair/records/*histeq*.json"))

spec = importlib.util.spec_from_file_location("soop_slices", SCRIPT)
assert spec is not None
assert spec.loader is not None
script: Any = sys.modules.setdefault(spec.name, importlib.util.module_from_spec(spec))
spec.loader.exec_module(script)


def picture(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """A picture as the authors drew it, a lesion in half-transparent red; (grey, lesion) that it was made of."""
    rows, columns = np.mgrid[:189, :157]
    brain = (rows - 95) ** 2 / 85**2 + (columns - 78) ** 2 / 66**2 < 1
    lesion = (rows - 80) ** 2 + (columns - 50) ** 2 < 9**2
    grey = np.where(brain, 60 + (rows + columns) // 4, 0)
    grey[85:90, 70:80] = 0  # a ventricle
    grey[2:5, 140:150] = 90  # a caption
    rgb = np.repeat(grey[..., None], 3, axis=2)
    rgb[lesion] = np.stack([grey // 2 + 128, grey // 2, grey // 2], axis=-1)[lesion]
    canvas = np.zeros((189, 692, 3), np.uint8)
    canvas[:, :157] = rgb
    canvas[:, 200:400] = 200  # the other views
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(canvas).save(path)
    return grey * brain, lesion


def test_a_slice_is_read_back_from_its_picture(tmp_path: Path) -> None:
    grey, lesion = picture(tmp_path / "p.png")
    image, brain, found = script.read(tmp_path / "p.png")
    assert np.array_equal(found, lesion)
    assert brain[87, 75]
    assert not brain[:5, 140:150].any()
    assert np.abs(image.astype(int) - grey)[brain].max() == 1  # the last bit
    assert not (image & 1).any()


def test_slices_are_written_as_the_list_says(tmp_path: Path) -> None:
    for name in "ab":
        picture(tmp_path / f"clone/PNG/rsub-{name}_lesion.nii.png")
    listed = {"train": {"subjects": ["sub-a"]}, "threshold": {"subjects": []}, "test": {"subjects": ["sub-b"]}}
    assert script.write(tmp_path / "clone", tmp_path / "out", listed) == 2
    there = sorted(path.relative_to(tmp_path / "out").as_posix() for path in tmp_path.glob("out/*/*"))
    stems = ["test/sub-b-slice_68-FLAIR", "test/sub-b-slice_68-brainmask", "test/sub-b-slice_68-segmentation"]
    assert there == [f"{name}.png" for name in [*stems, "train/sub-a-slice_68-FLAIR", "train/sub-a-slice_68-brainmask"]]
    with pytest.raises(UserError, match="out is not empty"):
        script.write(tmp_path / "clone", tmp_path / "out", listed)
    with pytest.raises(UserError, match="There is no folder PNG in"):
        script.write(tmp_path, tmp_path / "new", listed)
    with pytest.raises(UserError, match=r"rsub-c_lesion\.nii\.png cannot be read"):
        script.write(tmp_path / "clone", tmp_path / "new", {**listed, "test": {"subjects": ["sub-c"]}})


def test_the_published_list_has_each_patient_in_one_role() -> None:
    roles = lists()["soop-flair"]
    facts = slices_known()["soop-flair"]["FLAIR"]
    everyone = [*roles["train"], *roles["threshold"], *roles["test"], *facts["rest"]["subjects"]]
    assert [len(roles[role]) for role in ("train", "threshold", "test")] == [165, 123, 36]
    assert len(everyone) == len(set(everyone)) == 653
    assert set(roles["val"]) <= set(roles["threshold"])
    for role in ("threshold", "test"):
        with_lesion = sum(lesion > 0 for lesion, _ in facts[role]["voxels"].values())
        assert with_lesion == facts[role]["lesion_subjects"]
        assert facts[role]["sha256"].keys() == facts[role]["voxels"].keys() == set(facts[role]["subjects"])


def test_the_grid_is_every_method_and_three_seeds_of_those_that_draw(slices: Path) -> None:
    cells = grid.cells(grid.load(ROOT / "soop-flair" / "grid.yaml", {"data_root": str(slices)}, []))
    assert {cell.method for cell in cells} == set(registry.BUILTIN["methods"]) - {"ensemble"}
    still = {cell.method for cell in cells if (cell.method, 2) not in {(other.method, other.seed) for other in cells}}
    assert still == {"constant", "histeq", "zscore", "asymmetry", "latent"}
    assert {(cell.preset, cell.protocol.name, cell.test.title) for cell in cells} == {
        ("tiny", "soop-flair", "soop-flair")
    }


@pytest.mark.skipif(not RECORDS, reason="no record is committed")
def test_a_reviewer_without_the_data_learns_what_was_not_checked(cli: Callable[..., tuple[int, str, str]]) -> None:
    code, text, err = cli("leaderboard", "verify", str(RECORDS[0]))
    assert code == 0, text
    assert "Not checked: 1 on soop-flair FLAIR: subjects, hashes and voxel counts of the slices" in " ".join(
        (text + err).split()
    )


def _other_pixels(raw: dict[str, Any]) -> None:
    raw["record"]["test"]["digest"] = raw["record"]["identity"]["test_slices"] = "0" * 64
    rekey(raw)


def _other_name(raw: dict[str, Any]) -> None:
    for role in ("train", "val", "threshold", "test"):
        raw["record"][role]["name"] = "hospital"


@pytest.mark.skipif(not RECORDS, reason="no record is committed")
@pytest.mark.parametrize(
    ("change", "field"), [(_other_pixels, "test.digest"), (_other_name, "test.name")], ids=["pixels", "name"]
)
def test_other_slices_do_not_pass_for_the_published_ones(
    tmp_path: Path, change: Callable[[dict[str, Any]], None], field: str
) -> None:
    path = place(tmp_path, altered(files.read_submission(RECORDS[0]), change))
    assert field in {issue.field for issue in verify([path])[1]}


def test_what_the_documents_say_of_small_strokes_is_what_the_records_hold() -> None:
    records = [
        json.loads(path.read_text(encoding="utf-8"))["record"] for path in ROOT.glob("soop-flair/records/*.json")
    ]
    small = [record["strata"]["lesion_size"]["small"]["auprc"] for record in records]
    assert {one["n"] for one in small} == {9}
    for page in ("choosing.md", "results.md"):
        text = " ".join((ROOT.parent / "docs" / page).read_text(encoding="utf-8").split())
        (said,) = re.findall(
            r"no run of the \S+ reaches (\.\d+) AUPRC on the smallest quarter of its strokes, nine patients", text
        )
        assert max(one["value"] for one in small) < float(said), page
