"""A pixel is a size: what the sets say it is, training and test sets that differ in it, and sets that do not say."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from adbench.config import run_config
from adbench.datasets.phantom.small_layouts import write_small
from adbench.datasets.preprocessing.recipe import RecipeParams
from adbench.datasets.store.prepare import prepare, store_folder
from adbench.errors import UserError
from adbench.params import build
from adbench.results import record as records
from adbench.results.record import Record

Cli = Callable[..., tuple[int, str, str]]
Run = Callable[..., tuple[str, list[Record]]]


@pytest.fixture
def run(cli: Cli, tmp_path: Path) -> Run:
    """IXI as pDDPM lays it out trains, the Decathlon's tumours test; with more options: (output, records)."""
    write_small("ixi-pddpm", tmp_path / "ixi", 8, first=20)
    write_small("msd_brain", tmp_path / "msd", 5)

    def call(*options: str) -> tuple[str, list[Record]]:
        _, out, err = cli(
            "run", "--quiet", "--method", "histeq", "--dataset", "msd_brain", "--data-root", tmp_path / "msd", "--device",
            "cpu", "--train-on", "ixi", "--train-root", tmp_path / "ixi", "--modality", "T2", "--cache", tmp_path / "cache",
            "--out", tmp_path / "runs", *(f"--set={option}" for option in (
                "train.registration=none", "train.n4=false", "train.size=32", "dataset.size=32", *options
            )),
        )  # fmt: skip
        return " ".join((out + err).split()), [
            records.read_record(path) for path in (tmp_path / "runs").rglob("record.json")
        ]

    return call


def test_two_scales_are_refused_and_one_stands_in_record_and_table(run: Run) -> None:
    shown, found = run("train.field_of_view=224")
    assert not found
    assert re.search(
        r"A pixel of IXI\d+ \(ixi\) is 7 x 7 mm and one of BRATS_\d+ \(msd_brain\) 8 x 8 mm: they differ by more than 10 %. "
        r"Prepare volumes with pixels of one size: --set dataset.mm=8 --set train.mm=8, in place of any field_of_view; the square "
        r"is then 256 mm wide.",
        shown,
    )
    shown, (one,) = run("train.mm=7.5")  # 240 mm, in voxels of 8 mm
    assert (one.train.mm, one.test.mm) == ((7.5, 7.5), (8, 8))
    assert "slices, 8 mm a pixel, prevalence" in shown
    assert not [note for note in one.notes if "mm a pixel" in note]


def test_a_set_that_does_not_say_is_never_guessed(cli: Cli, slices: Path, tmp_path: Path) -> None:
    write_small("bmad", tmp_path / "bmad", 3)
    code, out, err = cli(
        "run", "--quiet", "--method", "histeq", "--dataset", "folder", "--data-root", tmp_path / "bmad", "--device", "cpu",
        "--train-on", "folder", "--train-root", slices, "--out", tmp_path / "runs", "--set=dataset.modality=FLAIR",
        "--set=dataset.size=32", "--set=train.name=own",
    )  # fmt: skip
    assert code == 0, err
    (path,) = (tmp_path / "runs").rglob("record.json")
    found = records.read_record(path)
    assert (found.train.mm, found.test.mm) == (None, None)
    assert "Slices of own and of folder do not say how many mm a pixel is" in " ".join(found.notes)
    assert "mm a pixel" not in out


def test_the_field_of_view_by_the_data(tmp_path: Path) -> None:
    """Heads of 8 mm voxels whose brains are within ellipsoids of 160 x 200 mm."""
    write_small("msd_brain", tmp_path / "msd", 3)
    source = run_config.locate("msd_brain", str(tmp_path / "msd"), {"size": 64, "field_of_view": 0}, "--data-root")
    with pytest.raises(
        UserError, match="field_of_view=0 leaves the field of view to the data of msd_brain, which are not"
    ):
        store_folder(source.open(), "T2", tmp_path / "cache")
    store = prepare(source.open(), "T2", tmp_path / "cache", workers=1)
    assert store.manifest["recipe"]["params"]["field_of_view"] == 200  # 192 mm, and a pixel of 4 mm at each end
    assert store_folder(source.open(), "T2", tmp_path / "cache")[1] == store.folder
    wide = prepare(
        run_config.locate("msd_brain", source.root, {"size": 64}, "--data-root").open(), "T2", tmp_path / "cache"
    )
    for case in store.cases:
        voxels = (of.brains[of.case(case.id).rows].sum() * mm**2 for of, mm in ((store, 200 / 64), (wide, 4)))
        assert next(voxels) == pytest.approx(next(voxels), rel=0.02)
        assert not any("beyond the field of view" in remark for remark in store.manifest["remarks"])
    assert set(store.pixel_sizes(store.rows("train")).values()) == {(3.125, 3.125)}


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"field_of_view": 20}, "a square is at least 32 mm wide; 0 leaves it to the data"),
        ({"mm": 1, "size": 16}, "with size 16 the square is 16 mm wide, not 32 to 512"),
        ({"mm": 4}, "with size 256 the square is 1024 mm wide"),
        ({"mm": 1, "field_of_view": 240}, "field_of_view is given too"),
        ({"mm": -1}, "greater than or equal to 0"),
    ],
)
def test_squares_that_hold_no_head(values: dict[str, float], says: str) -> None:
    with pytest.raises(UserError, match=says):
        build(RecipeParams, "dataset x", values)
    assert build(RecipeParams, "dataset x", {"mm": 1.5, "size": 128}).square == 192
