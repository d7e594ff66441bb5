"""submit and merge: whole or not at all, and never twice."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from board_files import altered, place, rename
from forger import FORGERIES

from adbench import api
from adbench.errors import UserError
from adbench.leaderboard import submission as files
from adbench.leaderboard.diff import BoardsDiff, ResultDiff, diff
from adbench.leaderboard.merge import _contradiction, merge
from adbench.leaderboard.submission import Submission
from adbench.results.record import Record

Cli = Callable[..., tuple[int, str, str]]
WHO = ("--submitter", "A. Researcher", "--licence", "CC-BY-4.0")
FORGED = {forgery.name: forgery for forgery in FORGERIES}


def listing(root: Path) -> dict[str, bytes]:
    """Every file below ``root``."""
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def test_a_run_to_a_file_to_a_leaderboard(runs: list[api.Run], tmp_path: Path, cli: Cli) -> None:
    code, _, err = cli("leaderboard", "submit", runs[0].folder, *WHO, "--out", tmp_path)
    (file,) = tmp_path.glob("*.json")
    assert (code, file.name) == (0, files.file_name(runs[0].record))
    assert str(file) in err.replace("\n", "")
    root = tmp_path / "boards"
    code, _, err = cli("leaderboard", "merge", file, "--into", root, "-q")
    assert code == 0
    assert "Not checked: 1 on folder FLAIR: the slices are not known here" in " ".join(err.split())
    before = listing(root)
    assert list(before) == [f"folder/records/{file.name}"]
    code, _, err = cli("leaderboard", "merge", file, "--into", root, "-q")
    assert code == 0
    assert "already there" in err
    assert "0 of 1 added" in err
    assert listing(root) == before
    code, _, err = cli("leaderboard", "build", root)
    assert code == 0
    assert {path.name for path in root.rglob("*") if path.is_file()} >= {
        "index.html",
        "index.md",
        "table.csv",
        "table.json",
        "table.tex",
    }
    assert cli("leaderboard", "build", "--check", root)[0] == 0
    (root / "folder" / "index.md").write_text("better")
    code, _, err = cli("leaderboard", "build", "--check", root)
    assert code == 1
    assert "index.md is not what the records give" in err


def test_nothing_is_merged_when_one_does_not_verify(submission: Submission, boards: Path, tmp_path: Path) -> None:
    good = tmp_path / "good.json"
    good.write_text(submission.text)
    bad = tmp_path / "bad.json"
    bad.write_text(altered(submission, lambda raw: raw["record"]["metrics"]["auprc"].update(value=0.9)))
    into = tmp_path / "into"
    with pytest.raises(UserError, match=r"(?s)1 of 2 results do not verify.*metrics\.auprc\.value: stored 0\.9"):
        merge([good, bad], into)
    assert not into.exists()


def test_a_folder_of_submissions(runs: list[api.Run], boards: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for path in (boards / "folder" / "records").iterdir():
        path.rename(folder / path.name)
    (folder / "notes.json").write_text("{}")
    shutil.copytree(runs[-1].folder, folder / "run")
    assert len(merge([folder], tmp_path / "into")) == 4
    with pytest.raises(UserError, match="neither records/"):
        merge([boards], tmp_path / "into")


@pytest.mark.parametrize("at_once", [True, False])
def test_a_training_copied_under_another_name(submission: Submission, tmp_path: Path, at_once: bool) -> None:
    copy = FORGED["a training copied under another method's name"].make(submission, submission)
    paths = [tmp_path / "a.json", tmp_path / "b.json"]
    for path, text in zip(paths, copy, strict=True):
        path.write_text(text)
    if not at_once:
        merge([paths.pop(0)], tmp_path / "into")
    with pytest.raises(UserError, match=r"7 of 7 subjects have the very scores that they have in "):
        merge(paths, tmp_path / "into")
    assert len(list(tmp_path.glob("into/*/records/*.json"))) == (0 if at_once else 1)


def test_one_key_with_other_numbers(submission: Submission, boards: Path, tmp_path: Path) -> None:
    (path,) = (boards / "folder" / "records").glob("*histeq*")
    path.write_text(altered(submission, lambda raw: raw["record"]["metrics"]["auprc"].update(value=0.9)))
    new = tmp_path / "new.json"
    new.write_text(submission.text)
    before = listing(boards)
    with pytest.raises(UserError, match=r"is different \(metrics\.auprc\.value: .* and 0\.9\)"):
        merge([new], boards)
    assert listing(boards) == before


@pytest.mark.parametrize(
    ("part", "change", "says"),
    [
        ("method", {"parameters": 77}, "method.parameters: 77 and "),
        ("provenance", {"device_name": "Fast"}, "provenance.device_name: Fast and "),
        ("fit", {"steps": 9}, "fit.steps: 9 and "),
        ("timing", {"fit": 1e-3}, "timing.fit: 0.001 and 60"),
        ("notes", [], "notes: this one is missing: "),
        ("timing", {"fit": 40.0, "evaluate": 9.0}, ""),
        ("created", "2030-01-01T00:00:00", ""),
    ],
)
def test_what_a_run_with_one_more_metric_may_change(submission: Submission, part: str, change: Any, says: str) -> None:
    old = submission.record.model_dump()
    old["timing"]["fit"], old["notes"] = 60.0, [*old["notes"], "slow"]
    new = copy.deepcopy(old)
    new["metrics"]["more"] = new["metrics"]["auprc"]
    new["optional"] = {
        "more": {
            "source": "0",
            "heading": "More",
            "definition": "",
            "less_is_better": False,
            "oracle": False,
            "unit": "",
        }
    }
    new[part] = {**new[part], **change} if isinstance(change, dict) else change
    found = _contradiction(Record(**new), Record(**old))
    assert found.startswith(says)
    assert bool(found) == bool(says)


def test_another_cohort_under_the_same_test_slices(submission: Submission, boards: Path, tmp_path: Path) -> None:
    def lie(raw: dict[str, Any]) -> None:
        raw["record"]["subjects"][0]["brain_voxels"] += 1
        rename(raw, "other")

    (boards / "folder" / "records" / files.file_name(submission.record)).unlink()
    place(boards, altered(submission, lie))
    new = tmp_path / "new.json"
    new.write_text(submission.text)
    with pytest.raises(UserError, match="same test slices have other subjects"):
        merge([new], boards)


def test_names_cannot_climb(submission: Submission, tmp_path: Path) -> None:
    def climb(raw: dict[str, Any]) -> None:
        raw["record"]["method"]["preset"] = raw["record"]["identity"]["preset"] = "../../../x"
        rename(raw, "other")

    new = tmp_path / "in" / "new.json"
    new.parent.mkdir()
    new.write_text(altered(submission, climb))
    (one,) = merge([new], tmp_path / "deep" / "boards")
    assert one.path.resolve().is_relative_to(tmp_path / "deep" / "boards" / "folder" / "records")
    assert {path.parent for path in tmp_path.rglob("*.json")} == {new.parent, one.path.parent}


def test_runs_that_cannot_be_submitted(runs: list[api.Run], tmp_path: Path, cli: Cli) -> None:
    run = Path(shutil.copytree(runs[0].folder, tmp_path / "run"))
    record = json.loads((run / "record.json").read_text())
    (run / "histograms.npz").write_bytes((runs[4].folder / "histograms.npz").read_bytes())
    code, _, err = cli("leaderboard", "submit", run, *WHO, "--out", tmp_path)
    assert (code, list(tmp_path.glob("*.json"))) == (2, [])
    assert "histograms.npz is not the file that the record describes" in err.replace("\n", " ")
    del record["files"]["splits.json"]
    (run / "record.json").write_text(json.dumps(record))
    code, _, err = cli("leaderboard", "submit", run, *WHO, "--out", tmp_path)
    assert code == 2
    assert "run it again with --force" in err


def test_diff_of_two_results(runs: list[api.Run], submission: Submission) -> None:
    other = next(run for run in runs if run.record.method.name == "zscore")
    found = diff(runs[0].folder, other.folder)
    assert isinstance(found, ResultDiff)
    assert ("method", "histeq", "zscore") in found.identity
    values = {name: pair for name, *pair in found.metrics}
    assert values["auprc"] == [run.record.metrics["auprc"].value for run in (runs[0], other)]
    assert found.paired is not None
    assert found.paired.low < abs(found.paired.value) < found.paired.high


def test_diff_of_other_test_data(runs: list[api.Run]) -> None:
    found = diff(runs[0].folder, runs[-1].folder)
    assert isinstance(found, ResultDiff)
    assert {"modality", "test_slices"} <= {field for field, _, _ in found.identity}


def test_diff_of_leaderboards(boards: Path, submission: Submission, tmp_path: Path, cli: Cli) -> None:
    other = Path(shutil.copytree(boards, tmp_path / "other"))
    same = diff(boards, other)
    assert isinstance(same, BoardsDiff)
    assert same.same
    (gone,) = (other / "folder" / "records").glob("*constant*")
    gone.unlink()
    (path,) = (other / "folder" / "records").glob("*histeq*")
    path.write_text(altered(submission, lambda raw: raw["record"]["metrics"]["froc"].update(value=0.5)))
    found = diff(boards, other)
    assert isinstance(found, BoardsDiff)
    assert found.only_a == [f"folder/records/{gone.name}"]
    assert found.only_b == []
    assert [row[1] for row in found.changed] == ["metrics.froc.value"]
    assert ("constant [tiny]", "—") in [(row[1], row[3]) for row in found.ranks]
    code, out, _ = cli("leaderboard", "diff", boards, other)
    assert code == 0
    assert "only in A" in out
    assert cli("leaderboard", "diff", boards, path)[0] == 2
