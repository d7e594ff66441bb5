"""A run that is killed before any change on the disk, or finds the disk full, ends in the same numbers and leaves nothing."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import resource
import shutil
from collections.abc import Callable
from importlib import import_module
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from adbench.config.run_config import load
from adbench.errors import sentence
from adbench.evaluation import pictures
from adbench.executors import Options
from adbench.executors.launch import Launch
from adbench.executors.worker import PRELOAD
from adbench.results import status

SETS = {"histeq": (), "ae": ("ae.steps=2", "ae.batch=2", "ae.channels=[8,8,16]", "ae.image_size=32")}
# A kill before the removal of what is not there leaves what a kill before the next change leaves.
CHANGES = ("replace", "rename", "unlink", "remove", "rmdir", "fsync")
STATUS = "status.json"  # it is written by the clock


def forked(work: Callable[[], Any]) -> Any:
    """What ``work`` gives in a child of this process; the exit code where it was killed."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.write(writer, pickle.dumps(work()))
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        said = pipe.read()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return pickle.loads(said) if said else code


def looks(out: Path) -> str:
    """A hash of all that is below ``out``; of the status, only that it is there."""
    files = sorted(path for path in out.rglob("*"))
    held = {path: path.read_bytes() if path.is_file() and path.name != STATUS else b"" for path in files}
    return hashlib.sha256(repr([(str(path), path.is_dir(), held[path]) for path in files]).encode()).hexdigest()


def copy_before_changes(out: Path, copies: Path, counts: Callable[[str], bool] = lambda path: True) -> None:
    """From now on keep what ``out`` is before each change of a path that ``counts``: before change 3 in ``copies/3``.

    What has been there before is kept once: a kill before a file is synchronised leaves what one before its renaming leaves.
    """
    numbers, seen = count(1), set[str]()

    def copying(change: Callable[..., None]) -> Callable[..., None]:
        def call(path: Any, *arguments: Any, **options: Any) -> None:
            name = str(Path(f"/proc/self/fd/{path}").readlink()) if isinstance(path, int) else str(path)
            there = options.get("dir_fd") is not None or os.path.lexists(name)
            if there and counts(name) and (state := looks(out)) not in seen:
                seen.add(state)
                shutil.copytree(out, copies / str(next(numbers)))
            change(path, *arguments, **options)

        return call

    for name in CHANGES:
        setattr(os, name, copying(getattr(os, name)))


class Disk:
    """One run on a small folder, in children of this process."""

    def __init__(self, method: str, slices: Path, cache: Path) -> None:
        self.method, self.slices, self.cache = "histeq", slices, cache
        self.run(cache / "before")  # what a process imports and computes once, the children have
        self.method = method
        self.plan(cache / "never run")

    def plan(self, out: Path) -> Launch:
        flags = {"method": self.method, "dataset": "folder", "data_root": str(self.slices), "device": "cpu"}
        settings = load(None, {**flags, "out": str(out), "cache": str(self.cache)}, list(SETS[self.method]))
        launch = Launch(settings, Options(checkpoint_seconds=0))
        launch.plan()
        return launch

    def run(self, out: Path) -> list[str]:
        return [outcome.reason for outcome in self.plan(out).outcomes()]

    def copied(self, out: Path, copies: Path) -> list[str]:
        """Run, and keep what a kill before each change would leave on the disk: before change 3 in ``copies/3``.

        What a trained network changes after its fit is what any method changes.
        """

        def counts(path: str) -> bool:
            return STATUS not in path and (self.method == "histeq" or not list(out.glob("fits/*/fit.json")))

        copy_before_changes(out, copies, counts)
        return self.run(out)


def left(out: Path) -> tuple[list[str], Any]:
    """Every file below a folder, and the numbers of its record."""
    files = sorted(path.relative_to(out).as_posix() for path in out.rglob("*"))
    (record,) = [json.loads(path.read_text()) for path in out.rglob("record.json")]
    kept = ("run_key", "fit_key", "metrics", "subjects", "thresholds", "fit", "strata")
    return files, {name: record[name] for name in kept}


@pytest.fixture(params=SETS)
def disk(request: pytest.FixtureRequest, slices: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Disk:
    for name in PRELOAD:  # once, not in every child
        import_module(name)
    monkeypatch.setattr(pictures, "all_plots", lambda *_, **__: [])
    monkeypatch.setattr(pictures, "sample_sheet", lambda *_, **__: None)
    return Disk(request.param, slices, tmp_path / "cache")


def test_killed_before_any_change(disk: Disk, tmp_path: Path) -> None:
    assert forked(lambda: disk.copied(tmp_path / "whole", tmp_path / "killed")) == [""]
    expected = left(tmp_path / "whole")
    assert not [name for name in expected[0] if Path(name).name.startswith(".")]
    copies = sorted((tmp_path / "killed").iterdir(), key=lambda copy: int(copy.name))
    assert len(copies) > 15
    for out in copies:
        for run in status.runs(out):
            assert run.state == "complete" or not list(run.folder.glob("record.json")), (out, run)
        assert forked(lambda out=out: disk.run(out)) == [""], out
        files, numbers = left(out)
        assert set(files) ^ set(expected[0]) == set(), out
        assert numbers == expected[1], out


def test_full_disk_at_any_size(disk: Disk, tmp_path: Path) -> None:
    assert forked(lambda: disk.run(tmp_path / "whole")) == [""]
    expected = left(tmp_path / "whole")
    out, said = tmp_path / "full", []
    for size in (100, 500, 2_000, 8_000, 30_000):

        def limited(size: int = size) -> list[str]:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
            try:
                return disk.run(out)
            except OSError as error:  # not in a cell: the command says it
                return [sentence(error)]

        said += forked(limited)
        assert not list(out.rglob("*.tmp"))
    assert {text.partition(" of ")[0] for text in said if text} == {"A file"}, said
    assert forked(lambda: disk.run(out)) == [""]
    assert left(out) == expected
