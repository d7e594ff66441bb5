"""Folds: every subject is tested once, training sees none of them, and every fold has its share of sites and lesions."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from adbench.config import grid, run_config
from adbench.config.cell import Source
from adbench.datasets.splits import assign
from adbench.errors import UserError

SITES = {f"p{number:02d}": "AB"[number % 3 == 0] for number in range(23)}


@pytest.mark.parametrize(("val", "test"), [(0.1, 0.2), (0.0, 0.2), (0.2, 0.8)])
def test_every_subject_is_tested_once(val: float, test: float) -> None:
    folds = [assign(SITES, val, test, 0, "x", 5, fold) for fold in range(5)]
    tested = Counter(subject for roles in folds for subject, role in roles.items() if role == "test")
    assert tested == Counter(dict.fromkeys(SITES, 1))
    for roles in folds:
        assert set(roles) == set(SITES)
        assert set(roles.values()) == {"test"} | ({"val"} if val else set()) | ({"train"} if val + test < 1 else set())
        for site in "AB":
            share = Counter(roles[subject] for subject in SITES if SITES[subject] == site)["test"] / list(
                SITES.values()
            ).count(site)
            assert abs(share - 1 / 5) < 1 / 7
    assert folds[1] != assign(SITES, val, test, 1, "x", 5, 1)
    assert folds[2] == assign(dict(reversed(SITES.items())), val, test, 0, "x", 5, 2)


def test_folds_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UserError, match=r"dataset\.folds=30 does not fit 23 subjects of x"):
        assign(SITES, 0.1, 0.2, 0, "x", 30, 0)
    with pytest.raises(UserError, match=r"dataset\.folds=2 does not fit the roles train, val, test"):
        assign(SITES, 0.1, 0.2, 0, "x", 2, 0)
    for params in ({"folds": 1}, {"fold": 1}, {"folds": 3, "fold": 3}):
        with pytest.raises(UserError, match=r"folds 0 to folds - 1"):
            Source.resolve("bids", None, params)


def test_folds_of_a_slice_folder(slices: Path) -> None:
    """train/ stays what it is; who has a segmentation is dealt, lesions in proportion; the healthy of val/ stay there."""
    empty = slices / "test/test00-slice_10-segmentation.png"
    Image.fromarray(np.zeros((32, 32), np.uint8)).save(empty)
    seen: Counter[str] = Counter()
    for fold in range(3):
        cases = Source.resolve("folder", None, {"folds": 3, "fold": fold}).dataset_class
        found = cases(Source.resolve("folder", None, {"folds": 3, "fold": fold}).params, slices).discover("FLAIR")
        assert {case.subject for case in found if case.split == "train"} == {f"train{n:02d}" for n in range(6)}
        tested = {case.subject for case in found if case.split == "test"}
        seen.update(tested)
        assert 3 <= len(tested) <= 4
        assert len(tested & {"val00", "val02", "test00"}) == 1  # without lesion
    assert seen == Counter([f"val{n:02d}" for n in range(4)] + [f"test{n:02d}" for n in range(6)])


@pytest.mark.parametrize("flags", [{}, {"fold": ("2", "0")}])
def test_folds_are_an_axis_of_the_grid(slices: Path, flags: dict[str, object]) -> None:
    given = {"method": ["histeq"], "dataset": ["folder"], "data_root": str(slices), "device": "cpu", **flags}
    cells = run_config.cells(run_config.load(None, given, ["dataset.folds=3"]))
    assert [cell.fold for cell in cells] == ([2, 0] if flags else [0, 1, 2])
    assert len({cell.data_key for cell in cells}) == len(cells)
    again = run_config.cells(run_config.from_cell(cells[0]))
    assert [cell.key for cell in again] == [cells[0].key]
    assert f"fold {cells[0].fold} of 3" in cells[0].label


def test_a_rule_of_a_grid_leaves_out_a_fold(slices: Path, tmp_path: Path) -> None:
    path = tmp_path / "grid.yaml"
    path.write_text(
        f"method: [histeq, constant]\ndataset: folder\ndata_root: {slices}\nset: {{dataset: {{folds: 3}}}}\n"
        "exclude: [{method: constant, fold: [1, 2]}]\n"
    )
    found = [(cell.method, cell.fold) for cell in grid.cells(grid.load(path, {"device": "cpu"}, []))]
    assert found == [("histeq", 0), ("constant", 0), ("histeq", 1), ("histeq", 2)]


@pytest.mark.parametrize(
    ("flags", "assignments", "message"),
    [
        ({"dataset": ["phantom"], "data_root": None}, [], "The dataset phantom cannot be divided into folds"),
        ({}, [], "--fold 1: say how many there are: --set dataset.folds=5"),
        ({}, ["dataset.folds=3", "dataset.fold=1"], "--fold 1: dataset.fold is set too"),
        ({"fold": ("3",)}, ["dataset.folds=3"], "--fold 3: dataset.folds=3 has the folds 0 to 2"),
    ],
)
def test_folds_that_are_not_there(slices: Path, flags: dict[str, object], assignments: list[str], message: str) -> None:
    given = {
        "method": ["histeq"],
        "dataset": ["folder"],
        "data_root": str(slices),
        "fold": ("1",),
        "device": "cpu",
    } | flags
    with pytest.raises(UserError, match=message.replace(".", r"\.")):
        run_config.cells(run_config.load(None, given, assignments))
