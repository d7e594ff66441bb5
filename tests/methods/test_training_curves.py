"""``benchmarks/curves.py``: what its jobs are, and what goes on where it was stopped."""

from __future__ import annotations

import json
import sys
import time
from argparse import Namespace
from importlib import util
from pathlib import Path

import pytest
import torch
from memory_sets import make_set

from adbench.config import registry
from adbench.context import Context
from adbench.errors import UserError
from adbench.methods.ae import AE
from adbench.methods.madad.autoencoder import Healthy
from adbench.runner.fit import fit_method

_spec = util.spec_from_file_location("curves", Path(__file__).parents[2] / "benchmarks" / "curves.py")
assert _spec is not None
assert _spec.loader is not None
curves = util.module_from_spec(_spec)
sys.modules["curves"] = curves
_spec.loader.exec_module(curves)


def test_jobs_of_a_file_and_of_the_command_line(tmp_path: Path) -> None:
    file = tmp_path / "jobs.txt"
    file.write_text("# the floor\nfirst = latent:tiny:ae_channels=[8,16],ae_steps=3  # short\n\n")
    one, two, three = curves.read_jobs([str(file), "madad:tiny:autoencoder=@first,seed=2", "vae:tiny"])
    assert (one.name, one.method, one.values) == ("first", "latent", {"ae_channels": "[8,16]", "ae_steps": "3"})
    assert (two.name, two.needs) == ("madad:tiny:autoencoder=@first,seed=2", {"first"})
    assert (three.preset, three.values, three.needs) == ("tiny", {}, set())


LISTS = sorted(Path(curves.__file__).parent.glob("curves_*.txt"))


@pytest.mark.parametrize("path", LISTS, ids=[path.stem for path in LISTS])
def test_every_job_of_the_lists_is_a_run(path: Path, tmp_path: Path) -> None:
    jobs = curves.read_jobs([str(path)])
    args = Namespace(dataset="phantom", modality="FLAIR", data_root=None, device="cpu", out=tmp_path, set=[])
    cells = [job.cell(args, {}) for job in jobs]
    assert len({cell.key for cell in cells}) > 5
    assert {cell.preset for cell in cells} >= {"base"}


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        (["dae"], "neither a file nor a job: write METHOD:PRESET"),
        (["dae:tiny:steps"], "neither a file nor a job"),
        (["dae:tiny", "dae:tiny"], "two jobs called dae:tiny"),
        (["madad:tiny:autoencoder=@ea", "ea = latent:tiny"], "@ea of madad:tiny:autoencoder=@ea"),
        (["# nothing"], "Name a job"),
    ],
)
def test_what_is_no_job_is_said(texts: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        curves.read_jobs(texts)


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ("odd = dae:tiny:stepz=3", "The job odd cannot be run, and none was trained: .*'stepz'"),
        ("dae:tiny:steps=0", "The job dae:tiny:steps=0 cannot be run.*steps = 0 is not valid"),
        ("two = dae:tiny:steps=[3, 4]", "The job two cannot be run.*It stands for 2 runs"),
        ("next = nobodys:tiny", "The job next cannot be run.*nobodys"),
        ("far = features:tiny:weights=/nowhere.pt", "The job far cannot be run.*nowhere.pt"),
    ],
)
def test_a_job_that_cannot_be_run_is_named(bad: str, said: str, tmp_path: Path) -> None:
    small = ["dataset.n_train=2", "dataset.n_val=2", "dataset.n_test=2", "dataset.slices=2", "dataset.resolution=4"]
    args = Namespace(dataset="phantom", modality="FLAIR", data_root=None, device="cpu", out=tmp_path, set=small)
    jobs = curves.read_jobs(["base = latent:tiny:ae_steps=2", "madad:tiny:autoencoder=@base,steps=3"])
    assert set(curves.check(args, jobs)) == {"train", "test"}
    with pytest.raises(UserError, match=said):
        curves.check(args, [*jobs, *curves.read_jobs([bad])])


def test_points_that_are_made_again_take_the_place_of_the_first(tmp_path: Path) -> None:
    path, settings = tmp_path / "curves.jsonl", {"what": "settings", "test": "a1"}
    (job,) = curves.read_jobs(["dae:tiny"])
    log = curves.Log(path, settings)
    for seconds in (2.0, 4.0):
        log.add(job, {"what": "point", "seconds": seconds, "share": seconds / 5, "steps": 1, "val": seconds / 10})
    log.add(job, {"what": "end", "error": "no time left"})
    assert not log.done(job)
    again = curves.Log(path, settings)
    again.add(job, {"what": "start", "earlier": 3.0})
    assert [point["seconds"] for point in again.points["dae:tiny"]] == [2.0, 4.0]  # all, where the training had ended
    again.add(job, {"what": "point", "seconds": 3.5, "share": 0.7, "steps": 1, "val": 0.1})
    assert [point["seconds"] for point in again.points["dae:tiny"]] == [2.0, 3.5]
    test = {"value": 0.5, "low": 0.4, "high": 0.6}
    again.add(job, {"what": "end", "seconds": 5.0, "steps": 9, "val": 0.45, "test": test, "heads": {}})
    assert curves.Log(path, settings).done(job)
    assert "| `dae:tiny` | 5 | 9 | 0.450 | 0.200 at 2 s | 0.500 [0.400, 0.600] |  |" in curves.report([job], again)
    with pytest.raises(UserError, match="choose another --out"):
        curves.Log(path, {**settings, "test": "b2"})
    assert len(path.read_text().splitlines()) == 7
    assert json.loads(path.read_text().splitlines()[0]) == settings


def test_only_latents_have_a_spectrum() -> None:
    features, latent = registry.load("methods", "features"), registry.load("methods", "latent")
    assert curves.spectrum(features(features.resolve("tiny", {"weights": "random"}), Context())) == {}
    method = latent(latent.resolve("tiny", {}), Context())
    method._healthy = Healthy(torch.zeros(2), torch.diag(torch.tensor([1.0, 9.0])).double(), 200)
    assert curves.spectrum(method) == {"spectrum": [9.0, 1.0]}


def test_looking_costs_the_training_no_time(tmp_path: Path) -> None:
    params = AE.resolve("tiny", {"image_size": 32, "channels": (8,), "steps": 4})
    seen: list[float] = []

    def watch(method: object, done: float) -> None:
        seen.append(done)
        time.sleep(0.1)

    start = time.perf_counter()
    _, fit = fit_method(AE, params, make_set(6), make_set(3), tmp_path, "key", Context(workdir=tmp_path), watch)
    assert len(seen) == 4
    assert fit["seconds"] < time.perf_counter() - start - 0.1 * len(seen)
