"""The folds of a cross-validation taken together: numbers of scikit-learn, every subject once, nothing missing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from adbench import api
from adbench.errors import UserError
from adbench.evaluation.folds import _refuse_untested, pooled_folds
from adbench.results.rundir import SPLITS
from adbench.utils.hashing import digest_file

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def runs(make_slices: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> list[api.Run]:
    root = tmp_path_factory.mktemp("folds")
    params = {"dataset": {"folds": 2, "name": "mine"}}
    slices = make_slices(root / "slices", val=4, test=8)
    return api.run("zscore", "folder", data_root=str(slices), device="cpu", out=root / "runs", set=params)


def test_every_subject_counts_once_and_with_the_threshold_of_its_fold(runs: list[api.Run]) -> None:
    (pool,) = pooled_folds(runs)
    assert [run.record.test.params["fold"] for run in pool.results] == [0, 1]
    rows = [row for run in runs for row in run.record.subjects]
    assert pool.subjects == len(rows) == len({row["subject"] for row in rows}) == 12
    scores, labels = [], []
    for run in runs:
        for histogram in run.histograms.values():
            keys, positive, negative = histogram.counts()
            scores.append(np.repeat(np.concatenate([keys, keys]), np.concatenate([positive, negative])))
            labels.append(np.repeat([1, 0], [positive.sum(), negative.sum()]))
    expected = average_precision_score(np.concatenate(labels), np.concatenate(scores))
    assert pool.metrics["auprc"].value == pytest.approx(expected, abs=1e-9)
    dice = [row["dice@val"] for row in rows if row["dice@val"] is not None]
    found = pool.metrics["dice@val"]
    assert found.value == pytest.approx(np.mean(dice))
    assert (found.n, len(dice), found.n_all) == (10, 10, 12)
    assert found.low is not None
    assert found.high is not None
    assert found.low < np.mean(dice) < found.high
    assert runs[0].record.thresholds["val"] != runs[1].record.thresholds["val"]


def test_the_fold_stands_in_the_folder_the_record_the_key_and_the_table(runs: list[api.Run], cli: Cli) -> None:
    assert [run.folder.name[: -len("-seed0-0123456789")] for run in runs] == [
        "zscore-tiny-fold0of2",
        "zscore-tiny-fold1of2",
    ]
    assert runs[0].record.run_key != runs[1].record.run_key
    root = runs[0].folder.parents[2]
    code, text, _ = cli("leaderboard", "show", "--out", str(root))
    assert code == 0
    assert all(f"mine FLAIR, fold {fold} of 2:" in text for fold in (0, 1))
    code, text, _ = cli("leaderboard", "pool", str(root))
    assert code == 0
    assert "all folds together" in text


def test_a_missing_fold_is_named(runs: list[api.Run]) -> None:
    with pytest.raises(UserError, match="on mine FLAIR lacks fold 1 of 2: run the same command with --fold 1, or"):
        pooled_folds(runs[:1])
    with pytest.raises(UserError, match="None of these runs is of a fold"):
        pooled_folds([])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"test": {"params": {"size": 48}}}, r"that of fold 1 is with test.size=48, and these have None"),
        ({"method": {"source": "f" * 64}}, "that of fold 1 is of another version of the method"),
        ({"seed": 3}, "that of fold 1 is with seed=3, and these have 0"),
    ],
)
def test_a_fold_of_another_cross_validation_is_named(
    runs: list[api.Run], tmp_path: Path, change: dict[str, Any], says: str
) -> None:
    """As after the second fold was run with other options, or after an update."""
    copy = tmp_path / "a" / "b" / runs[1].folder.name
    shutil.copytree(runs[1].folder, copy)
    content = json.loads((copy / "record.json").read_text())
    for name, value in change.items():
        if name == "test":
            value["params"] = {**content["test"]["params"], **value["params"]}
        content[name] = {**content[name], **value} if isinstance(value, dict) else value
    (copy / "record.json").write_text(json.dumps(content))
    with pytest.raises(UserError) as caught:
        pooled_folds([runs[0], api.Run(copy)])
    assert says in str(caught.value)
    assert "run the same command with --fold 1" in str(caught.value)


def test_a_subject_that_no_fold_tests_is_named(runs: list[api.Run], tmp_path: Path) -> None:
    """As after a patient was taken out between the runs: fold 0 has him choose the threshold, fold 1 does not know him."""
    copy = tmp_path / "a" / "b" / runs[1].folder.name
    shutil.copytree(runs[1].folder, copy)
    record = api.Run(copy).record
    gone = runs[1].subjects[0]
    lists = json.loads((copy / SPLITS).read_text())
    (copy / SPLITS).write_text(json.dumps({role: [n for n in names if n != gone] for role, names in lists.items()}))
    files = {**record.files, SPLITS: digest_file(copy / SPLITS)}
    (copy / "record.json").write_text(record.model_copy(update={"files": files}).model_dump_json())
    tested = {*runs[0].subjects, *runs[1].subjects[1:]}
    with pytest.raises(UserError, match=f"{gone} is in fold 0 of mine, not in fold 1, and is tested in none, so they"):
        _refuse_untested([runs[0], api.Run(copy)], tested)
    _refuse_untested(runs, {*tested, gone})


def test_a_subject_in_two_folds_is_named(runs: list[api.Run], tmp_path: Path) -> None:
    """As after files were added between the runs."""
    copy = tmp_path / "a" / "b" / runs[0].folder.name
    shutil.copytree(runs[0].folder, copy)
    record = api.Run(copy).record
    test = record.test.model_copy(update={"params": {**record.test.params, "fold": 1}})
    (copy / "record.json").write_text(record.model_copy(update={"test": test}).model_dump_json())
    with pytest.raises(UserError, match="is tested in the folds 0 and 1 of mine"):
        pooled_folds([runs[0], api.Run(copy)])
