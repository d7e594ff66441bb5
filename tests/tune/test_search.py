"""A search from its definition to a record that says where its parameters come from."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image
from small_search import Settings

from adbench.cli.app import seconds
from adbench.config import run_config
from adbench.context import Progress
from adbench.errors import UserError
from adbench.methods.ae import AE
from adbench.results.record import TunedFrom, read_record
from adbench.runner.fit import FIT, fitted
from adbench.runner.plan import plan
from adbench.runner.run_cell import run_cell
from adbench.tune import trials
from adbench.tune.search import SearchResult, define
from adbench.tune.task import TASK, SearchOptions, Task
from adbench.tune.trials import Trial, count
from adbench.utils.locks import acquire


def test_a_search_finds_better_than_the_default_and_says_where_from(
    whole: SearchResult, cli: Callable[..., Any]
) -> None:
    best = whole.best
    assert best is not None
    assert whole.config is not None
    runs = whole.folder.parent.parent
    assert [trial.number for trial in whole.trials] == list(range(5))
    assert whole.trials[0].params == {
        name: AE.resolve("tiny", {"latent": 8}).model_dump()[name] for name in best.params
    }
    assert {trial.state for trial in whole.trials} == {"complete", "stopped"}
    assert best.value > whole.default  # type: ignore[operator]
    for trial in whole.trials:
        assert max(trial.reports) == 100 if trial.state == "complete" else max(trial.reports) < 50
    # Only the best fit is kept, and `adbench run` finds it.
    assert [path.name for path in (whole.folder / "trials").iterdir()] == [f"{best.number:04d}"]
    (fit,) = (runs / "fits").iterdir()
    trained = (fit / FIT).stat().st_mtime_ns
    code, _, err = cli("run", "--config", whole.config, "--quiet")
    assert code == 0, err
    assert (fit / FIT).stat().st_mtime_ns == trained
    (path,) = runs.rglob("record.json")
    tuned = read_record(path).tuned_from
    assert tuned is not None
    assert (tuned.search, tuned.objective, tuned.value) == (whole.folder.name, "val_auprc", best.value)
    assert (tuned.trials, tuned.complete + tuned.stopped, tuned.failed) == (5, 5, 0)
    assert tuned.params == best.params
    assert tuned.changed == ()
    assert tuned.default == whole.trials[0].value
    assert tuned.cpu_hours > 0
    assert [made["threads"] for made in read_record(path).provenance["fit"]] == [1], "OMP_NUM_THREADS of the tests"
    assert read_record(path).method.params.items() >= best.params.items()


def test_the_best_configuration_is_plain_yaml_and_knows_what_is_changed(whole: SearchResult) -> None:
    assert whole.config is not None
    content = yaml.safe_load(whole.config.read_text())
    assert content["device"] == "auto"
    assert content["tuned_from"]["method"] == "ae"
    (cell,) = run_config.cells(run_config.load(whole.config, {}, ["method.sigma=7.5"]))
    assert isinstance(cell.tuned_from, TunedFrom)
    assert cell.tuned_from.changed == ("sigma",)
    several = run_config.load(whole.config, {"method": ("ae", "constant")}, []).model_copy(update={"set": {}})
    by_method = {cell.method: cell.tuned_from for cell in run_config.cells(several)}
    assert by_method["ae"] is not None
    assert by_method["constant"] is None


def test_the_same_run_without_a_search_has_the_same_key_and_learns_its_origin(
    settings: Settings, tmp_path: Path
) -> None:
    origin = TunedFrom(
        **{"search": "s", "method": "histeq", "objective": "pseudo", "value": 0.5, "default": None, "params": {}},
        **{"trials": 2, "complete": 2, "stopped": 0, "failed": 0, "cpu_hours": 0.1, "gpu_hours": 0.0, "seed": 0},
        **{"slices": "", "identity": "", "table": ""},
    )
    plain = settings("histeq")
    tuned = plain.model_copy(update={"tuned_from": origin})
    (cell,) = plan(run_config.cells(plain), tmp_path / "runs", run_config.default_cache())
    first = run_cell(cell)
    assert first.tuned_from is None
    (same,) = plan(run_config.cells(tuned), tmp_path / "runs", run_config.default_cache())
    assert same.run_key == cell.run_key
    again = run_cell(same)
    assert again.tuned_from == origin
    assert again.created == first.created
    assert read_record(same.run_folder).tuned_from == origin
    assert run_cell(cell).tuned_from == origin  # known once, it is not forgotten


def test_what_is_left_for_people(whole: SearchResult, cli: Callable[..., Any]) -> None:
    rows = list(csv.DictReader((whole.folder / trials.TABLE).open()))
    assert [int(row["trial"]) for row in rows] == list(range(5))
    for row, trial in zip(rows, whole.trials, strict=True):
        assert row["state"] == trial.state
        assert float(row["objective"]) == pytest.approx(trial.value, rel=1e-5)
        assert float(row["sigma"]) == pytest.approx(trial.params["sigma"], rel=1e-5)
        assert [row["objective_at_10"] != "", row["objective_at_30"] != ""] == [
            any(10 <= share < 30 for share in trial.reports),
            any(30 <= share < 100 for share in trial.reports),
        ]
    assert Image.open(whole.folder / trials.PARALLEL).size[0] > 600
    answer = json.loads(json.dumps(whole.to_json(), allow_nan=False))
    assert answer["best"]["number"] == whole.best.number  # type: ignore[union-attr]
    assert answer["config"].endswith("best.yaml")


def test_plots_of_what_the_trials_allow(whole: SearchResult, tmp_path: Path) -> None:
    made = [Trial(n, {"lr": 0.003 / 2**n, "sigma": float(n)}, "complete", {100.0: 0.1 * n}) for n in range(6)]
    trials.write_plots(tmp_path, whole.task, made)
    for name in (trials.PARALLEL, trials.IMPORTANCE):
        assert Image.open(tmp_path / name).size[0] > 600
    trials.write_plots(tmp_path, whole.task, made[:4])  # too few for an estimate
    assert [path.name for path in tmp_path.glob("*.png")] == [trials.PARALLEL]
    trials.write_plots(tmp_path, whole.task, [])
    assert not list(tmp_path.glob("*.png"))


def test_formulas_in_a_table_stay_text(tmp_path: Path) -> None:
    trials.write_table(tmp_path, [Trial(0, {"kind": "=cmd()", "sigma": -0.5}, "failed", error="-x")])
    (row,) = csv.DictReader((tmp_path / trials.TABLE).open())
    assert (row["kind"], row["sigma"], row["error"], row["objective"]) == ("'=cmd()", "-0.5", "'-x", "")


@pytest.mark.parametrize(
    ("sets", "options", "message"),
    [
        ((), {}, "exists already"),
        (("method.lr=0.5",), {"resume": True}, "params.lr: was 0.001, now 0.5"),
        ((), {"resume": True, "space": "narrow: {sigma: {low: 1, high: 2}}"}, "space.sigma.low: was 0.0, now 1.0"),
        ((), {"resume": True, "objective": "pseudo"}, "objective: was 'val_auprc', now 'pseudo'"),
        ((), {"resume": True, "seed": 5}, "search_seed: was 0, now 5"),
        (("dataset.seed=1",), {"resume": True}, "train_slices: other training slices"),
    ],
)
def test_another_search_under_the_same_name_is_refused(
    sets: tuple[str, ...], options: dict[str, Any], message: str, settings: Settings, tmp_path: Path
) -> None:
    from adbench.tune.search import search

    task, _ = define(settings(), SearchOptions(), Progress())
    task.write(tmp_path / "runs" / "searches" / "one")
    if "space" in options:
        (tmp_path / "space.yaml").write_text(options["space"])
        options = {**options, "space": tmp_path / "space.yaml"}
    with pytest.raises(UserError) as caught:
        search(settings("ae", *sets), SearchOptions(trials=1, name="one", **options))
    assert message in str(caught.value)


def test_searches_that_are_missing_or_damaged(settings: Settings, tmp_path: Path) -> None:
    from adbench.tune.search import search

    with pytest.raises(UserError, match="There is no search to resume"):
        search(settings(), SearchOptions(name="other", resume=True))
    folder = tmp_path / "runs" / "searches" / "one"
    folder.mkdir(parents=True)
    for damage in ("[", "[1]", "{}", '{"version": 1}'):
        (folder / TASK).write_text(damage)
        with pytest.raises(UserError, match=r"search.json is damaged"):
            Task.read(folder)


def test_only_one_process_works_on_a_search(settings: Settings, tmp_path: Path) -> None:
    from adbench.tune.search import search

    folder = tmp_path / "runs" / "searches" / "one"
    with acquire(folder), pytest.raises(UserError, match=r"one is running \(process \d+ on"):
        search(settings("histeq"), SearchOptions(name="one"))


def test_a_search_that_began_and_ended_meanwhile_is_not_gone_on_with(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = import_module("adbench.tune.search")

    @contextmanager
    def late(folder: Path, *arguments: Any) -> Iterator[None]:
        task.write(folder)
        with acquire(folder, *arguments):
            yield

    task, _ = define(settings("histeq"), SearchOptions(), Progress())
    monkeypatch.setattr(module, "acquire", late)
    monkeypatch.setattr(module, "connect", lambda address: pytest.fail("it goes on"))
    with pytest.raises(UserError, match="one exists already"):
        module.search(settings("histeq"), SearchOptions(name="one"))


@pytest.mark.parametrize(
    ("sets", "options", "message"),
    [
        ((), {"objective": "test_auprc"}, "Unknown objective 'test_auprc'"),
        ((), {"objective": "pseud"}, "Did you mean 'pseudo'?"),
        ((), {"name": "../elsewhere"}, "names a folder"),
        ((), {"trials": 0}, "--trials must be at least 1"),
        (("pseudo.kind=bright",), {"objective": "pseudo"}, "Did you mean 'kinds'?"),
        (("pseudo.share=0.5",), {}, "this objective is another"),
        (("method.sigma=2", "method.polarity=bright"), {}, "nothing to search for histeq"),
    ],
)
def test_mistakes_are_found_before_anything_runs(
    sets: tuple[str, ...], options: dict[str, Any], message: str, settings: Settings, tmp_path: Path
) -> None:
    from adbench.tune.search import search

    with pytest.raises(UserError) as caught:
        search(settings("histeq", *sets), SearchOptions(**options))
    assert message in str(caught.value)
    assert not (tmp_path / "runs" / "searches").exists()


def test_several_cells_are_refused(settings: Settings) -> None:
    many = settings("histeq").model_copy(update={"seed": (0, 1)})
    with pytest.raises(UserError, match="asks for 2: histeq"):
        define(many, SearchOptions(), Progress())


def test_a_sweep_is_no_search(settings: Settings) -> None:
    with pytest.raises(UserError, match=r"sigma has several values \(1\.0, 2\.0\), a sweep for `adbench run`\."):
        define(settings("histeq", "histeq.sigma=1,2"), SearchOptions(), Progress())


def test_no_lesion_to_select_by(settings: Settings, slices: Path) -> None:
    for mask in (slices / "val").glob("*-segmentation.png"):
        Image.new("L", Image.open(mask).size).save(mask)
    folder = settings("zscore").model_copy(
        update={"dataset": ("folder",), "data_root": str(slices), "set": {}, "modality": ("FLAIR",)}
    )
    with pytest.raises(UserError, match="no lesion to select by: use --objective pseudo"):
        define(folder, SearchOptions(), Progress())
    task, _ = define(folder, SearchOptions(objective="pseudo"), Progress())
    assert task.select.open().lesion_voxels.any()  # type: ignore[attr-defined]


def test_durations() -> None:
    assert [seconds(text) for text in ("45s", "90m", "1.5h", "2 d")] == [45, 5400, 5400, 172800]
    for text in ("8", "h", "-1h", "8 hours", "0s"):
        with pytest.raises(UserError, match="is not a duration"):
            seconds(text)


def test_the_best_is_the_earliest_of_equals() -> None:
    made = [
        Trial(0, {}, "failed"),
        *(Trial(n, {}, "complete", {10.0: 9.0, 100.0: v}) for n, v in ((1, 2.0), (2, 1.0), (3, 1.0))),
    ]
    made.append(Trial(4, {}, "stopped", {10.0: 0.0}))
    assert [trial.number for trial in trials.ranked(made, "min")] == [2, 3, 1]
    assert [trial.number for trial in trials.ranked(made, "max")] == [1, 2, 3]
    assert count(made, "failed") == 1
    assert trials.hours([Trial(0, {}, "complete", seconds=1800.0, cpus=2.0, gpus=0.5)]) == (1.0, 0.25)


def test_watching_changes_no_bit_of_the_fit(whole: SearchResult, tmp_path: Path) -> None:
    best = whole.best
    assert best is not None
    assert len(best.reports) == 3
    (fit,) = (whole.folder.parent.parent / "fits").iterdir()
    plain = run_config.load(whole.config, {"out": str(tmp_path / "plain")}, [])
    (cell,) = plan(run_config.cells(plain), tmp_path / "plain", run_config.default_cache())
    run_cell(cell)
    assert fit.name == cell.fit_folder.name
    assert (fit / "model.safetensors").read_bytes() == (cell.fit_folder / "model.safetensors").read_bytes()
    assert fitted(fit, cell.fit_key) is not None
