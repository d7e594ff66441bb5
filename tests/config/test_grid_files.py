"""Grid files: the product less what is excluded plus what is included, each cell once; every mistake in one sentence."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from adbench.config import grid
from adbench.errors import UserError

Written = Callable[..., grid.GridConfig]


@pytest.fixture
def written(tmp_path: Path) -> Written:
    """Load a grid from keywords: ``written(method=[...], exclude=[...])``."""

    def make(flags: dict[str, Any] | None = None, **content: Any) -> grid.GridConfig:
        path = tmp_path / "grid.yaml"
        path.write_text(yaml.safe_dump({"dataset": "phantom", "device": "cpu", **content}))
        return grid.load(path, flags or {}, [])

    return make


def names(found: grid.GridConfig) -> list[tuple[str, int]]:
    return [(cell.method, cell.seed) for cell in grid.cells(found)]


def test_product_less_excluded_plus_included(written: Written) -> None:
    found = written(
        method=["histeq", "zscore", "constant"],
        seed=[0, 1, 2],
        exclude=[{"method": "histeq", "seed": [1, 2]}, {"method": "constant,zscore", "seed": 0}],
        include=[{"method": "asymmetry", "seed": 7}, {"method": "histeq", "seed": [0, 1]}],
    )
    product = set(itertools.product(("histeq", "zscore", "constant"), (0, 1, 2)))
    left_out = {("histeq", 1), ("histeq", 2), ("constant", 0), ("zscore", 0)}
    assert set(names(found)) == product - left_out | {("asymmetry", 7), ("histeq", 1)}
    assert len(names(found)) == 7  # histeq with seed 0 comes twice and is there once


def test_parameters_of_one_method_and_of_one_block(written: Written) -> None:
    found = written(
        method=["histeq", "zscore"],
        set={"histeq": {"sigma": 1.5}, "dataset": {"n_train": 4}},
        include=[{"method": "histeq", "seed": 1, "set": {"histeq": {"polarity": "bright"}, "dataset": {"n_test": 2}}}],
    )
    cells = list(grid.cells(found))
    histeq, zscore, block = cells
    assert (histeq.params.sigma, block.params.sigma) == (1.5, 1.5)
    assert (histeq.params.polarity, block.params.polarity) == ("auto", "bright")
    assert zscore.params.sigma != 1.5
    assert (histeq.test.params.n_test, block.test.params.n_test) == (20, 2)
    assert {cell.test.params.n_train for cell in cells} == {4}


def test_a_block_with_another_dataset_inherits_nothing_of_the_first_one(written: Written, slices: Path) -> None:
    found = written(method="histeq", include=[{"dataset": "folder", "data_root": str(slices), "modality": "FLAIR"}])
    assert [(cell.test.dataset, cell.protocol.name) for cell in grid.cells(found)] == [
        ("phantom", "phantom"),
        ("folder", "folder"),
    ]
    other = written(method="histeq", dataset="folder", data_root=str(slices), include=[{"dataset": "phantom"}])
    assert [cell.test.root for cell in grid.cells(other)] == [str(slices.resolve()), None]


def test_blocks_alone_and_flags_on_top(written: Written) -> None:
    found = written({"seed": (5,)}, dataset=[], include=[{"method": "histeq", "dataset": "phantom"}])
    assert names(found) == [("histeq", 5)]


def test_a_grid_can_be_narrowed(written: Written) -> None:
    """What it sets for, and excludes of, what flags leave out goes with that."""
    content: dict[str, Any] = {
        "method": ["histeq", "zscore", "ae", "asymmetry"],
        "seed": [0, 1],
        "set": {"zscore": {"sigma": 2}, "ae": {"steps": 5}, "asymmetry": {"sigma": 1}},
        "exclude": [{"method": ["histeq", "zscore", "asymmetry"], "seed": 1}],
        "include": [{"method": "zscore", "seed": 7}],
    }
    assert names(written({"method": ("ae",)}, **content)) == [("ae", 0), ("ae", 1), ("zscore", 7)]
    found = grid.cells(written({"method": ("histeq",), "seed": (0,)}, **content))
    assert [(cell.method, cell.params.sigma) for cell in found] == [("histeq", 3), ("zscore", 2)]
    assert names(written({"method": ("histeq",)}, **content)) == [("histeq", 0), ("zscore", 7)]
    with pytest.raises(UserError, match="Unknown scope 'aee'"):
        grid.cells(written({"method": ("histeq",)}, **content | {"set": {"aee": {"steps": 5}}}))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"method": "histeq", "exlude": []}, "Did you mean 'exclude'"),
        ({"method": "histeq", "exclude": [{"methd": "histeq"}]}, r"axis in exclude 1 of .*Did you mean 'method'"),
        ({"method": "histeq", "exclude": [{}]}, "exclude 1 of .* is empty"),
        ({"method": "histeq", "exclude": [{"method": "hitseq"}]}, "method in exclude 1 .*Did you mean 'histeq'"),
        (
            {"method": ["histeq", "zscore"], "exclude": [{"method": "histeq", "seed": 3}]},
            "seed in exclude 1 of the grid '3'",
        ),
        ({"method": "histeq", "include": [{"mehtod": "ae"}]}, "key in include 1 of .*Did you mean 'method'"),
        ({"method": "histeq", "include": [{"method": "hitseq"}]}, "Unknown method 'hitseq'. Did you mean 'histeq'"),
        ({"method": "histeq", "include": [{"seed": "many"}]}, "seed.0 = 'many' is not valid"),
        ({"method": "histeq", "include": 3}, "include = 3 is not valid"),
        ({"method": "histeq", "set": {"zscroe": {"sigma": 1}}}, "Unknown scope 'zscroe'"),
        ({"method": "histeq", "set": {"histeq": {"sgima": 1}}}, "Did you mean 'sigma'"),
        ({}, "Name a method"),
    ],
)
def test_mistakes(written: Written, content: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        list(grid.cells(written(**content)))


def test_a_rule_that_matches_nothing_together(written: Written) -> None:
    content = {"method": ["histeq", "zscore"], "seed": [0, 1]}
    rules = [{"method": "histeq"}, {"method": "zscore", "seed": 1, "preset": "tiny"}]
    assert names(written(**content, exclude=rules)) == [("zscore", 0)]
