"""One trial: what it reports, how it fails, how it goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from small_search import Begun, Settings
from small_search import Trial as RunTrial

from adbench.config import run_config
from adbench.context import Progress
from adbench.errors import CellFailed
from adbench.runner.plan import plan
from adbench.runner.run_cell import run_cell
from adbench.tune.task import SearchOptions
from adbench.tune.trials import Trial
from adbench.tune.worker import ATTEMPTS, FITS, REPORTS, run_apart, trial_folder


def test_it_reports_at_the_rungs_and_at_the_end_and_goes_on_after_a_kill(
    settings: Settings, begun: Begun, trial: RunTrial
) -> None:
    folder, _ = begun(settings())
    reports = trial(folder, 0, {})
    assert [report["share"] for report in reports] == sorted(report["share"] for report in reports)
    assert len(reports) == 3
    assert 10 <= reports[0]["share"] < 30 <= reports[1]["share"] < 100 == reports[2]["share"]
    assert [share for share, _ in reports[-1]["reports"]] == [report["share"] for report in reports]
    assert trial(folder, 0, {}) == reports  # trained and measured, and the process died before Ray knew
    path = trial_folder(folder, 0) / REPORTS
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "reports": content["reports"][:1]}))
    again = trial(folder, 0, {})  # the fit is there, its second report is lost
    assert (again[0], again[-1]["value"]) == (reports[0], reports[-1]["value"])


def test_without_early_stopping_and_from_a_method_that_trains_nothing_there_is_one_report(
    settings: Settings, begun: Begun, trial: RunTrial
) -> None:
    for wanted, options in ((settings(), {"halving": False}), (settings("histeq"), {})):
        folder, _ = begun(wanted, **options)
        (report,) = trial(folder, 0, {})
        assert report["share"] == 100
        assert 0 < report["value"] < 1


def test_trials_of_an_ensemble_take_fits_of_members_that_are_made_once_and_serve_runs(
    settings: Settings, begun: Begun, trial: RunTrial, tmp_path: Path
) -> None:
    member = "ae image_size=32 channels=8,16 latent=8 steps=6 batch=4 warmup=0"
    wanted = settings("ensemble", f'ensemble.members=[histeq, "{member}"]')
    folder, task = begun(wanted)
    assert set(task.space) == {"quantile"}
    trials = [trial(folder, number, {"quantile": quantile}) for number, quantile in ((0, 0.99), (1, 0.9), (2, 0.99))]
    assert [report["error"] for (report,) in trials] == [""] * 3
    values = [report["value"] for (report,) in trials]
    assert values[0] == values[2] != values[1]
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs" / "fits").glob("*/fit.json")}
    assert sorted(path.parent.name.partition("-")[0] for path in made) == ["ae", "histeq"]
    fits = list((folder / FITS).glob("*/fit.json"))
    assert len(fits) == 2  # of two quantiles
    assert len({json.loads(path.read_text())["steps"] for path in fits}) == 1
    assert not list((folder / FITS).rglob("checkpoint.json"))  # nothing was trained there
    (cell,) = run_config.cells(wanted)
    run_cell(plan([cell], wanted.out_folder, wanted.cache_folder)[0])
    there = {path: path.stat().st_mtime_ns for path in made}
    assert there == made
    assert len(list((tmp_path / "runs" / "fits").iterdir())) == 3  # and the ensemble's own


def test_trials_that_only_score_otherwise_train_once(
    settings: Settings, begun: Begun, trial: RunTrial, tmp_path: Path
) -> None:
    from adbench.tune.driver import Driver

    (tmp_path / "space.yaml").write_text("replace: {sigma: {low: 0.0, high: 8.0}}")
    folder, task = begun(settings(), space=tmp_path / "space.yaml")
    sigmas = (task.defaults["sigma"], 1.0, 5.0)
    found = [trial(folder, number, {"sigma": sigma})[-1]["value"] for number, sigma in enumerate(sigmas)]
    assert len(set(found)) == 3
    ended = [Trial(number, {"sigma": sigma}, "complete", {100.0: 0.5}) for number, sigma in enumerate(sigmas)]
    Driver(folder, task, SearchOptions(), ended, Progress(), print)._keep_best()  # which needs it
    (fit,) = (folder / FITS).glob("*/fit.json")
    apart, _ = begun(settings(), space=tmp_path / "space.yaml")  # trains anew
    assert trial(apart, 2, {"sigma": 5.0})[-1]["value"] == found[2]
    assert "sigma" in task.identity["scoring"]
    assert "sigma" not in task.identity["params"]
    assert fit.stat().st_size


def test_the_error_of_a_reconstruction_is_minimised_and_needs_one(
    settings: Settings, begun: Begun, trial: RunTrial
) -> None:
    folder, task = begun(settings(), objective="recon", halving=False)
    assert task.mode == "min"
    assert 0 < trial(folder, 0, {})[-1]["value"] < 0.5
    folder, _ = begun(settings("histeq"), objective="recon")
    (report,) = trial(folder, 0, {})
    assert "makes no reconstruction: use --objective val_auprc or pseudo" in report["error"]


@pytest.mark.parametrize(
    ("what", "why"),
    [
        ("raises", "RuntimeError: too fragile"),
        ("exits", "SystemExit: enough"),
        ("dies", "its process was ended by signal 9 (SIGKILL: the kernel does this when memory runs out)"),
        ("hangs", "it took longer than --time-limit (0.5 s)"),
    ],
)
def test_whatever_ends_its_process_is_the_failure_of_the_trial_and_not_tried_again(
    settings: Settings, begun: Begun, ray: None, tmp_path: Path, what: str, why: str
) -> None:
    (tmp_path / "space.yaml").write_text("replace: {what: {choices: [raises, exits, dies, hangs]}}")
    folder, _ = begun(settings("fragile"), space=tmp_path / "space.yaml")
    reports: list[dict[str, Any]] = []
    for _ in range(2):
        with pytest.raises(CellFailed) as caught:
            run_apart(
                folder, 3, {"what": what}, reports.append, seconds=0.5 * (what == "hangs") or None, cores=1, memory=None
            )
        assert str(caught.value) == why
    assert [report["error"] for report in reports] == [why] * 2
    assert why.split()[-1] in (trial_folder(folder, 3) / "failure.json").read_text()
    if what != "hangs":  # which may be over before it begins
        assert len((folder / "trials" / "tried").read_text().split()) == (ATTEMPTS if what == "dies" else 1)
