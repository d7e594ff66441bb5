"""A search from its definition to a record that says where its parameters come from."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from adbench.config import run_config
from adbench.config.run_config import RunConfig
from adbench.errors import UserError
from adbench.methods.ae import AE
from adbench.methods.simple import HistEq
from adbench.results.record import TunedFrom, read
from adbench.runner.fit import FIT, fitted
from adbench.runner.plan import plan
from adbench.runner.run_cell import run_cell
from adbench.tune import report as reports
from adbench.tune.search import Result, seconds
from adbench.tune.table import TRIALS, Table
from adbench.tune.task import difference
from adbench.tune.worker import fit_folder
from adbench.utils.locks import acquire

Settings = Callable[..., RunConfig]
Tune = Callable[..., Result]


def figures(table: Table) -> list[Any]:
    return [(trial.params, trial.state, trial.reports) for trial in table.trials]


def test_a_search_finds_better_than_the_default_and_says_where_from(
    settings: Settings, tune: Tune, cli: Callable[..., Any], tmp_path: Path
) -> None:
    result = tune(settings(), trials=5)
    table, best = result.table, result.best
    assert best is not None
    assert result.config is not None
    assert [trial.number for trial in table.trials] == list(range(5))
    assert table.trials[0].params == {
        name: AE.resolve("tiny", {"latent": 8}).model_dump()[name] for name in best.params
    }
    assert {trial.state for trial in table.trials} == {"complete", "stopped"}
    assert best.value > table.trials[0].value  # type: ignore[operator]
    for trial in table.in_state("stopped"):
        assert max(trial.reports) < 50
    # Only the best fit is kept, and `adbench run` finds it.
    assert [path.name for path in (result.folder / "trials").iterdir()] == [f"{best.number:04d}"]
    (fit,) = (tmp_path / "runs" / "fits").iterdir()
    trained = (fit / FIT).stat().st_mtime_ns
    code, _, err = cli("run", "--config", result.config, "--quiet")
    assert code == 0, err
    assert (fit / FIT).stat().st_mtime_ns == trained
    (path,) = (tmp_path / "runs").rglob("record.json")
    tuned = read(path).tuned_from
    assert tuned is not None
    assert (tuned.search, tuned.objective, tuned.value) == (result.folder.name, "val_auprc", best.value)
    assert (tuned.trials, tuned.complete + tuned.stopped, tuned.failed) == (5, 5, 0)
    assert tuned.params == best.params
    assert tuned.changed == ()
    assert tuned.default == table.trials[0].value
    assert tuned.cpu_hours > 0
    assert [made["threads"] for made in read(path).provenance["fit"]] == [1], "OMP_NUM_THREADS of the tests"
    assert read(path).method.params.items() >= best.params.items()


def test_the_same_run_without_a_search_has_the_same_key_and_learns_its_origin(
    settings: Settings, tune: Tune, tmp_path: Path
) -> None:
    result = tune(settings("histeq"), trials=2)
    assert result.config is not None
    tuned = run_config.load(result.config, {}, [])
    plain = tuned.model_copy(update={"tuned_from": None})
    (cell,) = plan(run_config.cells(plain), tmp_path / "runs", run_config.default_cache())
    first = run_cell(cell)
    assert first.tuned_from is None
    (same,) = plan(run_config.cells(tuned), tmp_path / "runs", run_config.default_cache())
    assert same.run_key == cell.run_key
    again = run_cell(same)
    assert again.tuned_from == tuned.tuned_from
    assert again.created == first.created
    assert read(same.run_folder).tuned_from == tuned.tuned_from
    assert run_cell(cell).tuned_from == tuned.tuned_from  # known once, it is not forgotten


def test_changed_parameters_and_other_methods_are_told_apart(settings: Settings, tune: Tune) -> None:
    result = tune(settings("histeq"), trials=2)
    (cell,) = run_config.cells(run_config.load(result.config, {}, ["method.sigma=7.5"]))
    assert isinstance(cell.tuned_from, TunedFrom)
    assert cell.tuned_from.changed == ("sigma",)
    by_method = {
        cell.method: cell.tuned_from
        for cell in run_config.cells(
            run_config.load(result.config, {"method": ("histeq", "constant")}, []).model_copy(update={"set": {}})
        )
    }
    assert by_method["histeq"] is not None
    assert by_method["constant"] is None


def test_resumed_in_the_middle_it_ends_as_if_nothing_had_happened(settings: Settings, tune: Tune) -> None:
    whole = tune(settings(), trials=7, name="whole")
    part = tune(settings(), trials=4, name="parts")
    # A kill: trial 2 was trained and had not told so yet.
    rows = json.loads((part.folder / TRIALS).read_text())[:3]
    assert len(rows[2]["reports"]) == 3
    rows[2] |= {"state": "running", "reports": dict(list(rows[2]["reports"].items())[:2])}
    (part.folder / TRIALS).write_text(json.dumps(rows))
    resumed = tune(settings(), trials=7, name="parts", resume=True)
    assert figures(resumed.table) == figures(whole.table)
    # A kill at the very beginning of a trial.
    rows = json.loads((part.folder / TRIALS).read_text())[:6]
    rows[5] |= {"state": "running", "reports": {}}
    (part.folder / TRIALS).write_text(json.dumps(rows))
    resumed = tune(settings(), trials=7, name="parts", resume=True)
    assert figures(resumed.table) == figures(whole.table)
    # Everything is done: the answer is at hand.
    assert figures(tune(settings(), trials=7, name="parts", resume=True).table) == figures(resumed.table)


@pytest.mark.parametrize(
    ("sets", "options", "message"),
    [
        ((), {"name": "one"}, "is there already"),
        ((), {"name": "other", "resume": True}, "There is no search to resume"),
        (("method.lr=0.5",), {"name": "one", "resume": True}, "params: lr was 0.001, now 0.5"),
        (
            (),
            {"name": "one", "resume": True, "space": "narrow: {sigma: {low: 1, high: 2}}"},
            "space: sigma was {'low': 0.0",
        ),
        ((), {"name": "one", "resume": True, "objective": "pseudo"}, "objective was 'val_auprc', now 'pseudo'"),
        ((), {"name": "one", "resume": True, "seed": 5}, "search_seed was 0, now 5"),
        (("dataset.seed=1",), {"name": "one", "resume": True}, "train_slices was"),
    ],
)
def test_another_search_under_the_same_name_is_refused(
    sets: tuple[str, ...], options: dict[str, Any], message: str, settings: Settings, tune: Tune, tmp_path: Path
) -> None:
    tune(settings(), trials=1, name="one")
    if "space" in options:
        (tmp_path / "space.yaml").write_text(options["space"])
        options = {**options, "space": tmp_path / "space.yaml"}
    with pytest.raises(UserError) as caught:
        tune(settings("ae", *sets), trials=1, **options)
    assert message in str(caught.value)


def test_only_one_process_works_on_a_search(settings: Settings, tune: Tune) -> None:
    result = tune(settings("histeq"), trials=1, name="one")
    with acquire(result.folder), pytest.raises(UserError, match=r"one is running \(process \d+ on"):
        tune(settings("histeq"), trials=2, name="one", resume=True)


@pytest.mark.parametrize(
    ("sets", "options", "message"),
    [
        ((), {"objective": "test_auprc"}, "Unknown objective 'test_auprc'"),
        ((), {"objective": "pseud"}, "Did you mean 'pseudo'?"),
        ((), {"name": "../elsewhere"}, "names a folder"),
        (("pseudo.kind=bright",), {"objective": "pseudo"}, "Did you mean 'kinds'?"),
        (("pseudo.share=0.5",), {}, "this objective is another"),
        (("method.sigma=2", "method.polarity=bright"), {}, "nothing to search for histeq"),
    ],
)
def test_mistakes_are_found_before_anything_runs(
    sets: tuple[str, ...], options: dict[str, Any], message: str, settings: Settings, tune: Tune, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as caught:
        tune(settings("histeq", *sets), trials=2, **options)
    assert message in str(caught.value)
    assert not (tmp_path / "runs" / "searches").exists()


def test_several_cells_are_refused(settings: Settings, tune: Tune) -> None:
    many = settings("histeq").model_copy(update={"seed": (0, 1)})
    with pytest.raises(UserError, match="asks for 2: histeq"):
        tune(many, trials=2)


def test_no_lesion_to_select_by(settings: Settings, tune: Tune, slices: Path) -> None:
    for mask in (slices / "val").glob("*-segmentation.png"):
        Image.new("L", Image.open(mask).size).save(mask)
    folder = settings("zscore").model_copy(
        update={"dataset": ("folder",), "data_root": str(slices), "set": {}, "modality": ("FLAIR",)}
    )
    with pytest.raises(UserError, match="no lesion to select by: use --objective pseudo"):
        tune(folder, trials=1)
    assert tune(folder, trials=2, objective="pseudo").best is not None


def test_recon_is_minimised_and_needs_a_reconstruction(settings: Settings, tune: Tune) -> None:
    result = tune(settings(), trials=3, objective="recon", halving=False)
    values = [trial.value for trial in result.table.trials]
    assert all(0 < value < 0.5 for value in values if value is not None)
    assert result.best is not None
    assert result.best.value == min(values)  # type: ignore[type-var]
    with pytest.raises(UserError, match="makes no reconstruction") as caught:
        raise UserError(tune(settings("histeq"), trials=1, objective="recon").table.trials[0].error)
    assert "val_auprc or pseudo" in str(caught.value)


def test_a_method_that_reports_once_is_never_stopped(settings: Settings, tune: Tune) -> None:
    result = tune(settings("histeq"), trials=5)
    assert [list(trial.reports) for trial in result.table.trials] == [[100.0]] * 5
    assert {trial.state for trial in result.table.trials} == {"complete"}


def test_a_failing_trial_is_recorded_and_the_others_go_on(
    settings: Settings, tune: Tune, monkeypatch: pytest.MonkeyPatch
) -> None:
    score = HistEq.score

    def picky(self: HistEq, batch: Any) -> Any:
        if self.params.sigma > 4:
            raise RuntimeError("too smooth")
        return score(self, batch)

    monkeypatch.setattr(HistEq, "score", picky)
    result = tune(settings("histeq"), trials=6)
    failed = result.table.in_state("failed")
    assert failed
    assert {trial.error for trial in failed} == {"RuntimeError: too smooth"}
    assert all(trial.params["sigma"] > 4 for trial in failed)
    assert result.best is not None
    assert result.best.params["sigma"] <= 4
    assert "too smooth" in (fit_folder(result.folder, failed[0].number) / "failure.json").read_text()


def test_a_hopeless_search_is_given_up(settings: Settings, tune: Tune, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: HistEq, *_: Any) -> Any:
        raise RuntimeError("no luck")

    monkeypatch.setattr(HistEq, "fit", broken)
    result = tune(settings("histeq"), trials=20)
    assert len(result.table.trials) == 5
    assert result.best is None
    assert result.config is None


def test_the_report(settings: Settings, tune: Tune) -> None:
    result = tune(settings("histeq"), trials=8)
    rows = list(csv.DictReader((result.folder / reports.TABLE).open()))
    assert [int(row["trial"]) for row in rows] == list(range(8))
    assert float(rows[3]["objective"]) == pytest.approx(result.table.trials[3].value, rel=1e-5)
    assert float(rows[3]["sigma"]) == pytest.approx(result.table.trials[3].params["sigma"], rel=1e-5)
    for name in (reports.PARALLEL, reports.IMPORTANCE):
        assert Image.open(result.folder / name).size[0] > 600
    shares = reports.importance(result.task.space, result.table)
    assert set(shares) == set(result.task.space)
    assert sum(shares.values()) == pytest.approx(1)
    summary = reports.summary(result.task, result.table, result.folder, result.config)
    assert json.loads(json.dumps(summary, allow_nan=False))["best"]["number"] == result.best.number  # type: ignore[union-attr]


def test_formulas_in_a_table_stay_text() -> None:
    assert reports._text("=cmd()") == "'=cmd()"
    assert reports._text(-0.5) == "-0.5"


def test_watching_changes_no_bit_of_the_fit(settings: Settings, tune: Tune, tmp_path: Path) -> None:
    watched = tune(settings(), trials=1)
    assert len(watched.table.trials[0].reports) == 3
    (fit,) = (tmp_path / "runs" / "fits").iterdir()
    plain = settings().model_copy(update={"out": str(tmp_path / "plain")})
    (cell,) = plan(run_config.cells(plain), tmp_path / "plain", run_config.default_cache())
    run_cell(cell)
    assert fit.name == cell.fit_folder.name
    assert (fit / "model.safetensors").read_bytes() == (cell.fit_folder / "model.safetensors").read_bytes()
    assert fitted(fit, cell.fit_key) is not None


def test_durations() -> None:
    assert [seconds(text) for text in ("45s", "90m", "1.5h", "2 d")] == [45, 5400, 5400, 172800]
    for text in ("8", "h", "-1h", "8 hours", "0s"):
        with pytest.raises(UserError, match="is not a duration"):
            seconds(text)


def test_the_first_difference_is_named() -> None:
    assert difference({"a": 1, "b": {"c": 1, "d": 2}}, {"a": 1, "b": {"c": 1, "d": 3}}) == "b: d was 2, now 3"
    assert difference({"a": 1}, {"a": 1}) == ""
    assert difference({"a": 1}, {"a": 1, "new": 2}) == "new was None, now 2"


def test_the_best_configuration_is_plain_yaml(settings: Settings, tune: Tune) -> None:
    result = tune(settings("histeq"), trials=2)
    assert result.config is not None
    content = yaml.safe_load(result.config.read_text())
    assert content["device"] == "auto"
    assert content["tuned_from"]["method"] == "histeq"
