"""An ensemble: which fits it is made of, what its map is, and that a run shares them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from adbench import api
from adbench.config import run_config
from adbench.context import Context
from adbench.datasets.slices import SliceBatch, SliceSet
from adbench.errors import UserError
from adbench.methods.base import FitReport, Method
from adbench.methods.ensemble import Ensemble
from adbench.params import ParamSet
from adbench.testing.data import small_sets

MEMBERS = ["histeq", "zscore sigma=2", "histeq sigma=1"]


def made_of(members: object, seed: int) -> list[tuple[str, int]]:
    return [(one.method, one.seed) for one in Ensemble.made_of(Ensemble.resolve("tiny", {"members": members}), seed)]


def test_each_member_has_a_seed_that_no_other_seed_of_the_ensemble_has() -> None:
    assert made_of("dae,dae,dae", 0) == [("dae", 0), ("dae", 1), ("dae", 2)]
    assert made_of("dae,dae,dae", 1) == [("dae", 3), ("dae", 4), ("dae", 5)]
    assert made_of(["dae", "restore", "dae sigma=3"], 2) == [("dae", 4), ("restore", 2), ("dae", 5)]


def test_members_have_the_preset_and_parameters_of_their_own() -> None:
    (one, two) = Ensemble.made_of(Ensemble.resolve("base", {"members": ["dae", "ae channels=16,32 steps=7"]}), 0)
    assert (one.preset, two.params.json_values["channels"]) == ("base", [16, 32])
    assert one.params == one.method_class.resolve("base", {})
    asked = Ensemble.resources(Ensemble.resolve("tiny", {"members": ["histeq", "andi"]}))
    assert asked.gpu_memory_gb == 10.0


@pytest.mark.parametrize(
    ("members", "why"),
    [
        (["dae", "dea"], "Unknown method 'dea'.*dae"),
        (["dae", "dae sigam=3"], "sigma"),
        (["dae", "dae sigma=-3"], "sigma = '-3'"),
        (["dae", "dae sigma 3"], "METHOD NAME=VALUE"),
        (["dae", "dae sigma=3 sigma=4"], "once"),
        (["dae", "ensemble"], "cannot be a member"),
        (["dae"], "members"),
        ([], "members"),
    ],
)
def test_what_is_no_member_is_told_before_anything_runs(members: list[str], why: str) -> None:
    settings = run_config.RunConfig(
        method="ensemble", dataset="phantom", device="cpu", set={"ensemble": {"members": members}}
    )
    with pytest.raises(UserError, match=why):
        run_config.cells(settings)


def test_a_run_averages_the_scaled_maps_of_the_fits_that_runs_of_the_members_have(slices: Path, tmp_path: Path) -> None:
    data = {"data_root": slices, "device": "cpu", "out": tmp_path, "cache": tmp_path / "cache", "save_maps": True}
    (zscore,) = api.run("zscore", "folder", set={"zscore": {"sigma": 2}}, **data)
    before = zscore.fit_folder.stat().st_mtime_ns, sorted((tmp_path / "fits").glob("zscore-*"))
    (made,) = api.run("ensemble", "folder", set={"ensemble": {"members": MEMBERS, "quantile": 0.9}}, **data)
    assert before == (zscore.fit_folder.stat().st_mtime_ns, sorted((tmp_path / "fits").glob("zscore-*")))
    others = [zscore, *(api.run("histeq", "folder", set={"histeq": {"sigma": sigma}}, **data)[0] for sigma in (3, 1))]
    expected, healthy = 0.0, made.data.val
    for one in others:
        scores = one.method().score(healthy.batch(slice(None))).numpy()[:, 0][healthy.brains()]
        expected = expected + np.asarray(one.maps, np.float64) / np.quantile(scores, 0.9) / 3
    np.testing.assert_allclose(np.asarray(made.maps), expected, rtol=1e-5, atol=1e-6)
    again = made.method().score(made.data.test.batch(slice(None)))[:, 0].numpy()
    brain = made.data.test.brains()
    np.testing.assert_allclose(again[brain], np.asarray(made.maps)[brain], rtol=1e-6)
    assert [part["method"] for part in made.record.identity["members"]] == ["histeq", "zscore", "histeq"]
    assert made.record.method.parameters == zscore.record.method.parameters


def test_a_member_that_gives_healthy_slices_nothing_has_no_scale(tmp_path: Path) -> None:
    class Silent(Method):
        name = "silent"

        def fit(self, train: SliceSet, val: SliceSet | None) -> FitReport:
            return FitReport()

        def score(self, batch: SliceBatch) -> torch.Tensor:
            return torch.zeros_like(batch.image)

    train, val, _ = small_sets(tmp_path)
    ensemble = Ensemble(Ensemble.resolve("tiny", {"members": "histeq,asymmetry"}), Context())
    ensemble.members = [(Silent(ParamSet(), Context()), FitReport())] * 2
    with pytest.raises(UserError, match=r"'histeq' of the ensemble gives healthy slices the score 0 .*no scale: raise"):
        ensemble.fit(train, val)
