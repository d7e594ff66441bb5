"""A command that writes and is killed before any change on the disk: the same command ends the same, and nothing is left."""

from __future__ import annotations

import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_faults import copy_before_changes, forked

from adbench import api
from adbench.cli.new import new_package
from adbench.datasets.io.unpacking import unpack
from adbench.errors import UserError
from adbench.evaluation.maps import evaluate_folders
from adbench.leaderboard.build import build
from adbench.leaderboard.merge import merge, submit
from adbench.leaderboard.recount import recount
from adbench.leaderboard.submission import Submitted, own_digest, read_submission
from adbench.metrics import plots
from adbench.runner.shared_fits import bring, export
from adbench.utils.hashing import digest

Work = Callable[[Path], object]
SUBMITTED = Submitted(submitter="A. Researcher", licence="CC-BY-4.0")
WHOSE = {"author": "A. Researcher", "licence": "cc-by-4.0"}


def earlier(path: Path) -> str:
    """A published result as an earlier version of the metrics would have written it."""
    raw = json.loads(json.dumps(read_submission(path).raw))
    raw["record"]["identity"]["metrics_version"] = "2"
    raw["record"]["run_key"] = digest(raw["record"]["identity"])
    return json.dumps({**raw, "digest": own_digest(raw)})


@pytest.fixture(scope="module")
def commands(make_slices: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Work]:
    """What each command does in a folder, the second part of its name said by what it is given."""
    root = tmp_path_factory.mktemp("writers")
    slices = make_slices(root / "slices")
    (run,) = api.run("histeq", "folder", data_root=str(slices), device="cpu", out=root / "runs")
    scans = root / "scans"
    scans.mkdir()
    for path in (slices / "test").glob("test0[01]*"):
        if "segmentation" not in path.name:
            shutil.copy(path, scans)
    for kind, grey in (("maps", [3, 200]), ("masks", [0, 1])):
        (root / kind).mkdir()
        Image.fromarray(np.tile(np.array(grey, np.uint8), (16, 8))).save(root / kind / "a.png")
    with tarfile.open(root / "data.tar", "w") as tar:
        tar.add(scans, "scans")
    archive, record = root / "fit.zip", submit(run.folder, root / "submitted", SUBMITTED)
    old = earlier(record)
    export(run.folder, archive, **WHOSE)

    def recounted(out: Path) -> None:
        if not list(out.glob("*.json")):
            (out / "old.json").write_text(old)
        for path in sorted(out.glob("*.json")):
            recount(path)

    return {
        "predict": lambda out: run.predict(scans, out),
        "eval": lambda out: evaluate_folders(root / "maps", root / "masks", out=out),
        "fit export": lambda out: export(run.folder, out / "shared", **WHOSE),
        "fit export .zip": lambda out: export(run.folder, out / "a.zip", **WHOSE),
        "fit import": lambda out: bring(archive, out),
        "leaderboard submit": lambda out: submit(run.folder, out, SUBMITTED),
        "leaderboard merge": lambda out: merge([record], out),
        "leaderboard build": lambda out: (merge([record], out), build(out)),
        "leaderboard recount": recounted,
        "data unpack": lambda out: unpack(root / "data.tar", out),
        "new": lambda out: new_package("metric", "mine", out),
    }


def content(out: Path) -> dict[str, bytes]:
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()}


NAMES = ("predict", "eval", "fit export", "fit export .zip", "fit import", "leaderboard submit", "leaderboard merge", "leaderboard build", "leaderboard recount", "data unpack", "new")  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_killed_before_any_change(
    commands: dict[str, Work], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plots, "all_plots", lambda *_, **__: [])  # of eval: they take a second each time
    work, whole, copies = commands[name], tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()

    def watched() -> str:
        # A board has many files, written in one way, and takes its time.
        copy_before_changes(whole, copies, lambda path: name != "leaderboard build" or "table.csv" in path)
        return again(whole)

    def again(out: Path) -> str:
        try:
            work(out)
        except UserError as error:  # it was killed behind its last change
            return str(error)
        return ""

    assert forked(watched) == ""
    expected = content(whole)
    assert not [file for file in expected if "/." in f"/{file}"]
    assert list(copies.iterdir())
    for copy in copies.iterdir():
        said = forked(lambda copy=copy: again(copy))
        assert said == "" or "is there" in said or "exists already" in said, (copy, said)
        assert content(copy) == expected, copy
        assert not [path for path in copy.rglob(".*") if path.name != ".lock"], copy
