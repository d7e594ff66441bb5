"""Runs whose parameters name files of the user's: what is published, what moving them costs, and what becomes of the fit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from adbench import api
from adbench.config.cell import Cell, TunedFrom
from adbench.config.shared_fit import MANIFEST
from adbench.errors import UserError
from adbench.leaderboard.checks.all import check
from adbench.leaderboard.submission import pack
from adbench.methods.common.backbones import Backbone
from adbench.runner import shared_fits
from adbench.tune import space
from adbench.utils.hashing import digest

THIN = {
    "family": "resnet", "inputs": 3, "bottleneck": False, "stem": 8, "groups": 1, "blocks": [1, 1], "widths": [8, 16],
    "outputs": [8, 16],
}  # fmt: skip
SMALL = {"image_size": 64, "layers": [1]}


def _weights(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    save_file(Backbone(THIN, (2,)).net.state_dict(), path)
    return path


def _texts(folder: Path) -> dict[str, str]:
    """What every JSON file below ``folder`` says, but the traces and settings that stay on this machine."""
    return {str(path): path.read_text(encoding="utf-8") for path in folder.rglob("*.json")}


@pytest.fixture(scope="module")
def made(
    make_slices: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[api.Run, Path, dict[str, Any]]:
    root = tmp_path_factory.mktemp("theirs")
    weights = _weights(root / "of-jane" / "mine.safetensors")
    settings: dict[str, Any] = {"data_root": str(make_slices(root / "slices")), "device": "cpu", "out": root / "runs"}
    (run,) = api.run("features", "folder", set={"features": {**SMALL, "weights": str(weights)}}, **settings)
    return run, weights, settings


def test_no_path_is_published(made: tuple[api.Run, Path, dict[str, Any]], tmp_path: Path) -> None:
    run, weights, _ = made
    record = run.record
    assert record.method.params["weights"] == record.identity["params"]["weights"] == weights.name
    assert len(record.identity["files"]) == 1
    assert "of-jane" not in record.model_dump_json()
    assert check(pack(run.folder)) == []
    assert run.cell.params.weights == str(weights), "the run can be made again"
    assert api.load(run.folder)[0].method() is not None
    shared_fits.export(run.folder, tmp_path / "fit", author="A. Researcher", licence="cc-by-4.0")
    assert (tmp_path / "fit" / MANIFEST).exists()
    assert not [path for path, text in _texts(tmp_path / "fit").items() if "of-jane" in text]


def test_a_shared_fit_needs_no_file_of_its_maker(
    made: tuple[api.Run, Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, weights, settings = made
    shared_fits.export(run.folder, tmp_path / "fit", author="A. Researcher", licence="cc-by-4.0")
    away = weights.rename(weights.with_suffix(".away"))
    try:
        mine = {**settings, "out": tmp_path / "runs", "fit": str(tmp_path / "fit")}
        (scored,) = api.run((), "folder", **mine)
        assert scored.record.run_key == run.record.run_key
        assert scored.record.metrics["auprc"].value == run.record.metrics["auprc"].value
        assert run.predict(Path(settings["data_root"]) / "test", tmp_path / "maps")
    finally:
        away.rename(weights)


def test_moved_files_are_the_same_fit_and_others_of_the_name_are_not(
    made: tuple[api.Run, Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, weights, settings = made
    moved = tmp_path / "elsewhere" / weights.name
    moved.parent.mkdir()
    shutil.copy(weights, moved)
    other = _weights(tmp_path / "other" / weights.name, seed=1)
    monkeypatch.chdir(tmp_path)
    given = [str(moved), f"./elsewhere/{weights.name}", f"elsewhere/{weights.name}", str(other)]
    found = api.run("features", "folder", set={"features": {**SMALL, "weights": given}}, **settings)
    assert [one.record.run_key == run.record.run_key for one in found] == [True, True, True, False]
    assert len(list((settings["out"] / "fits").iterdir())) == 2


def test_workers_and_searches_are_told_the_path(made: tuple[api.Run, Path, dict[str, Any]]) -> None:
    run, weights, _ = made
    cell = run.cell
    assert Cell.from_json(json.loads(json.dumps(cell.to_json()))).params == cell.params
    assert cell.with_params({"sigma": 2.0}).params.weights == str(weights)  # type: ignore[attr-defined]
    path = weights.parent / "space.yaml"
    path.write_text(f"replace: {{weights: {{choices: [random, {weights}]}}}}", encoding="utf-8")
    wanted, _ = space.build_space(cell.method_class, cell.given, {}, path)
    assert wanted == {"weights": {"choices": ["random", str(weights)]}}
    chosen = {"search": "s", "method": "features", "objective": "recon", "value": 1.0, "default": None, "trials": 1, "complete": 1,
              "stopped": 0, "failed": 0, "cpu_hours": 0.0, "gpu_hours": 0.0, "seed": 0, "slices": "", "identity": "", "table": ""}  # fmt: skip
    searched = replace(cell, tuned_from=TunedFrom(params={"weights": str(weights)}, **chosen))
    assert searched.origin is not None
    assert searched.origin.params == {"weights": weights.name}


def test_files_of_one_name_are_no_seeds_of_one_method(made: tuple[api.Run, Path, dict[str, Any]]) -> None:
    run, weights, settings = made
    other = _weights(weights.parents[1] / "of-john" / weights.name, seed=1)
    (beside,) = api.run("features", "folder", seed=1, set={"features": {**SMALL, "weights": str(other)}}, **settings)
    (same,) = api.run("features", "folder", seed=2, set={"features": {**SMALL, "weights": str(weights)}}, **settings)
    groups = api.method_groups([run, beside, same])
    assert sorted(len(members) for members in groups.values()) == [1, 2]


def test_a_shared_fit_and_the_path_that_its_run_was_given(
    made: tuple[api.Run, Path, dict[str, Any]], tmp_path: Path
) -> None:
    run, weights, settings = made
    folder = tmp_path / "fit"
    shared_fits.export(run.folder, folder, author="A. Researcher", licence="cc-by-4.0")
    mine = {**settings, "out": tmp_path / "runs", "fit": str(folder)}
    (scored,) = api.run((), "folder", set={"method": {"weights": str(weights)}}, **mine)
    assert scored.record.run_key == run.record.run_key
    # as they were written before: with the whole path
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest.pop("digest")
    manifest["identity"]["params"]["weights"] = str(weights)
    manifest["fit_key"] = digest(manifest["identity"])
    (folder / MANIFEST).write_text(json.dumps({**manifest, "digest": digest(manifest)}))
    with pytest.raises(UserError, match="names a file by its whole path, as an earlier adbench wrote it"):
        api.run((), "folder", **mine)
