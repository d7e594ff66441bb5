"""What was saved is what is used: damage is named, and a record gives way to nothing but a complete one."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from adbench import api
from adbench.config import run_config
from adbench.context import Progress
from adbench.errors import UserError
from adbench.results import rundir
from adbench.runner import plan as planning
from adbench.runner import run_cell
from adbench.runner.fit import FIT
from adbench.utils.files import write_json
from adbench.utils.locks import LOCK, acquire

Cli = Callable[..., tuple[int, str, str]]


def plan(slices: Path, out: Path, method: str = "zscore") -> planning.Plan:
    settings = run_config.RunConfig(method=method, dataset="folder", data_root=str(slices), device="cpu")
    (planned,) = planning.plan(run_config.cells(settings), out, out / "cache")
    return planned


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != rundir.FAILURE}


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("name", ["model.safetensors", "method.json", "fit.json"])
def test_a_damaged_fit_is_refused_and_the_record_stays(slices: Path, tmp_path: Path, cli: Cli, name: str) -> None:
    planned = plan(slices, tmp_path)
    first = run_cell.run_cell(planned)
    before = content(planned.run_folder)
    path = planned.fit_folder / name
    if name == "model.safetensors":
        flip(path)
    else:
        path.write_text(path.read_text().replace('"zscore"', '"zscor"').replace('"parameters": ', '"parameters": 1'))
    code, _, err = cli(
        "run", "--method", "zscore", "--dataset", "folder", "--data-root", slices, "--device", "cpu", "--out", tmp_path,
        "--cache", tmp_path / "cache", "--force", "--quiet",
    )  # fmt: skip
    said = "".join(err.split())
    assert code != 0
    assert f"{name}waschanged:" in said
    assert "waswrittenwith" in said
    assert f"Delete{planned.fit_folder}andrunthesamecommandagain" in said
    assert content(planned.run_folder) == before
    with pytest.raises(UserError, match="was changed"):
        api.Run(planned.run_folder, cache=tmp_path / "cache", device="cpu").method()
    for file in planned.fit_folder.iterdir():
        file.unlink()
    assert run_cell.run_cell(planned, force=True).metrics == first.metrics


@pytest.mark.parametrize("phase", ["score", "evaluate", "record", "commit"])
def test_a_forced_run_that_fails_takes_nothing_away(
    slices: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, phase: str
) -> None:
    planned = plan(slices, tmp_path)
    run_cell.run_cell(planned, save_maps=True)
    before = content(planned.run_folder)

    def fail(*_: Any, **__: Any) -> Any:
        raise OSError(28, "No space left on device")

    where = {"score": "measure", "evaluate": "numbers", "record": "Record"}
    with monkeypatch.context() as patched:
        patched.setattr(*((run_cell, where[phase], fail) if phase in where else (rundir, "write_json", fail)))
        with pytest.raises(OSError, match="No space left"):
            run_cell.run_cell(planned, force=True)
    assert content(planned.run_folder) == before
    assert set(api.Run(planned.run_folder).record.files) >= {rundir.MAPS, "histograms.npz"}


def test_a_kill_while_files_are_renamed_loses_no_record(
    slices: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = plan(slices, tmp_path)
    first = run_cell.run_cell(planned)
    replace = Path.replace
    for renames in range(len(first.files) + 3):  # the outputs, the configuration, the samples, the record
        left = [renames]

        def stop(self: Path, target: Path, left: list[int] = left) -> Path:
            if self.parent.name == rundir.NEW:
                left[0] -= 1
                if left[0] < 0:
                    raise SystemExit("killed")
            return replace(self, target)

        with monkeypatch.context() as patched:
            patched.setattr(Path, "replace", stop)
            with pytest.raises(SystemExit):
                run_cell.run_cell(planned, force=True)
        assert not list(rundir.records(tmp_path)), "a record beside files of another attempt"
        with monkeypatch.context() as patched:
            patched.setattr(run_cell, "measure", lambda *_, **__: pytest.fail("it was made already"))
            again = run_cell.run_cell(planned)
        assert again.metrics == first.metrics
        assert not (planned.run_folder / rundir.NEW).exists()
        assert (
            api.Run(planned.run_folder).evaluation(intervals=False).metrics["auprc"].value
            == first.metrics["auprc"].value
        )


@pytest.mark.parametrize("made_meanwhile", [False, True])
def test_a_forced_run_that_waited_scores_again_unless_the_other_did(
    slices: Path, tmp_path: Path, made_meanwhile: bool
) -> None:
    planned = plan(slices, tmp_path)
    first, held, waits = run_cell.run_cell(planned), threading.Event(), threading.Event()

    def hold() -> None:
        with acquire(planned.run_folder):
            held.set()
            waits.wait(60)
            if made_meanwhile:
                made = first.model_copy(update={"timing": {**first.timing, "score": 99.0}})
                write_json(planned.run_folder / rundir.RECORD, made.model_dump(mode="json"))

    class Waits(Progress):
        def update(self, phase: str, done: int, total: int, **figures: Any) -> None:
            if phase.startswith("wait for"):
                waits.set()

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait(60)
    second = run_cell.run_cell(planned, Waits(), force=True)
    holder.join()
    assert second.timing != first.timing
    assert (second.timing["score"] == 99) == made_meanwhile


def test_maps_stay_with_a_record_that_is_made_again_for_a_metric(slices: Path, tmp_path: Path) -> None:
    planned = plan(slices, tmp_path)
    run_cell.run_cell(planned, save_maps=True)
    again = run_cell.run_cell(plan(slices, tmp_path), force=True)
    assert {rundir.MAPS, rundir.VAL_MAPS} <= again.files.keys()


def test_a_fit_says_which_files_are_its_own(slices: Path, tmp_path: Path) -> None:
    planned = plan(slices, tmp_path)
    run_cell.run_cell(planned)
    fit = json.loads((planned.fit_folder / FIT).read_text())
    assert set(fit["files"]) == {"model.safetensors", "method.json", "scoring.json"}
    files = {path.name for path in planned.fit_folder.iterdir()} - {LOCK}
    assert files == {"fit.json", "method.json", "model.safetensors", "origin.json", "scoring.json"}
