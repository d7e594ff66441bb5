"""The runner's promises: honest roles, keys that change with what matters, failures that are never cached."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from adbench import api, executors
from adbench.config import registry, run_config
from adbench.config.cell import Cell
from adbench.context import Progress
from adbench.errors import UserError
from adbench.evaluation import pictures
from adbench.methods.base import FitReport, Method
from adbench.results import record, rundir
from adbench.runner import plan as planning
from adbench.runner import run_cell
from adbench.runner.fit import FIT
from adbench.utils.locks import acquire


def plans(
    slices: Path, out: Path, *, method: str = "histeq", seed: int = 0, sets: dict | None = None
) -> list[planning.Plan]:
    settings = run_config.RunConfig(
        method=method, dataset="folder", data_root=str(slices), device="cpu", seed=seed, set=sets or {}
    )  # type: ignore[arg-type]
    return planning.plan(run_config.cells(settings), out, out / "cache")


class Spy(Method):
    """Remembers what it was shown and does as it is told."""

    name = "spy"
    seen: list
    behaviour = "good"

    def fit(self, train, val):
        type(self).seen = [train, val]
        if self.behaviour == "raises":
            raise ValueError("fit went wrong")
        return FitReport()

    def score(self, batch):
        if self.behaviour == "nan":
            return batch.image * float("nan")
        if self.behaviour == "shape":
            return batch.image[:, 0]
        return batch.image.double() + 1e-12 if self.behaviour == "double" else batch.image


@pytest.fixture
def spy(monkeypatch: pytest.MonkeyPatch) -> type[Spy]:
    entry = registry.Entry("methods", "spy", f"{__name__}:Spy", "a spy", "built-in")
    known, load = registry.entries, registry.load
    monkeypatch.setattr(
        registry, "entries", lambda kind: {**known(kind), **({"spy": entry} if kind == "methods" else {})}
    )
    monkeypatch.setattr(registry, "load", lambda kind, name: Spy if name == "spy" else load(kind, name))
    Spy.behaviour = "good"
    return Spy


def test_training_gets_healthy_slices_without_masks(spy: type[Spy], slices: Path, tmp_path: Path) -> None:
    (plan,) = plans(slices, tmp_path, method="spy")
    run_cell.run_cell(plan)
    train, val = spy.seen
    assert len(train) == 6
    assert {subject[:3] for subject in val.subjects} == {"val"}
    assert len(val) == 2  # the two of four validation slices without a lesion
    for handed in (train, val):
        assert not hasattr(handed, "lesions")
        assert not hasattr(handed.batch(slice(0, 1)), "lesion")


@pytest.mark.parametrize(
    ("behaviour", "message"),
    [
        ("raises", "fit went wrong"),
        ("nan", "val00"),  # the validation split is scored first
        ("shape", "the contract asks for a tensor (4, 1, 32, 32)"),
    ],
)
def test_failure_is_recorded_retried_and_never_counts(
    spy: type[Spy], slices: Path, tmp_path: Path, behaviour: str, message: str
) -> None:
    spy.behaviour = behaviour
    (plan,) = plans(slices, tmp_path, method="spy")
    (outcome,) = executors.serial([plan])
    assert message in str(outcome.error)
    failure = json.loads((plan.run_folder / rundir.FAILURE).read_text())
    assert "Traceback" in failure["traceback"]
    assert plan.record() is None
    spy.behaviour = "good"
    (outcome,) = executors.serial([plan])
    assert outcome.record is not None
    assert not outcome.reused
    assert not (plan.run_folder / rundir.FAILURE).exists()


def test_one_failing_cell_does_not_stop_the_others(spy: type[Spy], slices: Path, tmp_path: Path) -> None:
    spy.behaviour = "raises"
    both = [*plans(slices, tmp_path, method="spy"), *plans(slices, tmp_path, method="histeq")]
    outcomes = executors.serial(both)
    assert [outcome.record is None for outcome in outcomes] == [True, False]


def test_keys_change_with_what_matters_and_with_nothing_else(slices: Path, tmp_path: Path) -> None:
    (base,) = plans(slices, tmp_path)
    (seed,) = plans(slices, tmp_path, seed=1)
    (sigma,) = plans(slices, tmp_path, sets={"method": {"sigma": 1.0}})
    assert len({base.run_key, seed.run_key, sigma.run_key}) == 3
    assert len({base.fit_key, seed.fit_key}) == 2
    assert sigma.fit_key == base.fit_key  # it only smooths the map; zscore learns from smoothed slices
    assert (
        len({plans(slices, tmp_path, method="zscore", sets={"method": {"sigma": s}})[0].fit_key for s in (1, 2)}) == 2
    )
    assert sigma.identity["scoring"] == {"sigma": 1.0, "polarity": "auto"}
    assert "sigma" not in sigma.identity["params"]
    (median,), (none,) = (plans(slices, tmp_path, sets={"post": {"median": side}}) for side in (3, 0))
    assert (median.fit_key, none.run_key) == (base.fit_key, base.run_key)
    assert median.run_key != base.run_key
    assert "post" not in base.identity
    moved = slices.rename(tmp_path / "elsewhere")
    (same,) = plans(moved, tmp_path / "other out")
    assert (same.fit_key, same.run_key) == (base.fit_key, base.run_key)
    # A changed test mask changes the result's key and leaves the fit alone.
    mask = next((moved / "test").glob("*-segmentation.png"))
    other = next(p for p in sorted((moved / "test").glob("*-segmentation.png")) if p.read_bytes() != mask.read_bytes())
    mask.write_bytes(other.read_bytes())
    (relabelled,) = plans(moved, tmp_path)
    assert relabelled.fit_key == base.fit_key
    assert relabelled.run_key != base.run_key


def test_one_fit_serves_a_second_run(slices: Path, tmp_path: Path) -> None:
    (plan,) = plans(slices, tmp_path, method="zscore")
    first = run_cell.run_cell(plan)
    stamp = (plan.fit_folder / FIT).stat().st_mtime_ns
    again = run_cell.run_cell(plan, force=True)
    assert (plan.fit_folder / FIT).stat().st_mtime_ns == stamp
    assert again.metrics == first.metrics


SMALL_VAE = {"image_size": 32, "channels": [8, 16], "latent": 8, "steps": 4, "batch": 4, "warmup": 0}


def test_a_fit_scores_as_each_run_says(slices: Path, tmp_path: Path) -> None:
    def run(out: Path, **values: object) -> record.Record:
        (plan,) = plans(slices, out, method="vae", sets={"vae": {**SMALL_VAE, **values}})
        return run_cell.run_cell(plan)

    ways = ({"sigma": 1.0}, {"sigma": 3.0, "sign": "positive"}, {"scoring": "restoration", "restoration_steps": 2})
    together = [run(tmp_path / "together", **values) for values in ways]
    assert len(list((tmp_path / "together" / "fits").glob("vae-*"))) == 1
    assert len({one.metrics["auprc"].value for one in together}) == 3
    for number, (values, one) in enumerate(zip(ways, together, strict=True)):
        alone = run(tmp_path / f"alone-{number}", **values)
        assert (alone.run_key, alone.metrics) == (one.run_key, one.metrics)
        assert one.method.params | values == one.method.params
    for result in api.load(tmp_path / "together"):  # what is loaded from a run scores as that run did
        method = result.method()
        assert method is not None
        assert method.params.json_values == result.record.method.params


def test_an_interrupted_training_is_continued_by_a_run_that_scores_otherwise(slices: Path, tmp_path: Path) -> None:
    class Stopped(KeyboardInterrupt):
        pass

    class Stop(Progress):
        def update(self, phase: str, done: int, total: int, **figures: object) -> None:
            if phase == "vae" and done >= 2:
                raise Stopped

    def planned(sigma: float) -> planning.Plan:
        return plans(slices, tmp_path, method="vae", sets={"vae": {**SMALL_VAE, "steps": 6, "sigma": sigma}})[0]

    with pytest.raises(Stopped):
        run_cell.run_cell(planned(1.0), progress=Stop(), checkpoint_seconds=0)
    stage = json.loads((planned(2.0).fit_folder / "vae" / "checkpoint.json").read_text())
    assert "sigma" not in stage["identity"]["params"]
    made = run_cell.run_cell(planned(2.0))
    assert made.fit["steps"] == 6
    assert made.provenance["scored"] == [
        {"device": "cpu", "precision": "float32", "compile": "off", "networks": "launched"}
    ]


def test_record_round_trips_and_strangers_records_are_checked(slices: Path, tmp_path: Path) -> None:
    (plan,) = plans(slices, tmp_path)
    written = run_cell.run_cell(plan)
    path = plan.run_folder / record.RECORD
    assert record.read_record(path) == written
    assert str(tmp_path) not in path.read_text()  # no path of this machine leaves with a record
    content = json.loads(path.read_text())
    for damage, message in (
        ({**content, "schema_version": 99}, "schema 99"),
        ({**content, "prevalence": "high"}, "prevalence"),
        ({**content, "extra": 1}, "extra"),
        ([], "schema 'list'"),
    ):
        path.write_text(json.dumps(damage))
        with pytest.raises(UserError, match=message):
            record.read_record(path)
    path.write_text(json.dumps(content)[:-40])
    with pytest.raises(UserError, match="not readable JSON"):
        record.read_record(path)


def test_saved_maps_keep_their_type(spy: type[Spy], slices: Path, tmp_path: Path) -> None:
    """Float64 scores that float32 would tie stay apart."""
    spy.behaviour = "double"
    (plan,) = plans(slices, tmp_path, method="spy")
    run_cell.run_cell(plan, save_maps=True)
    for name in (rundir.MAPS, rundir.VAL_MAPS):
        saved = np.load(plan.run_folder / name)
        assert saved.dtype == np.float64
        assert saved.min() == 1e-12


def test_a_subject_without_brain_is_named_in_the_record(slices: Path, tmp_path: Path) -> None:
    (mask,) = (slices / "test").glob("test01*-brainmask.png")
    Image.new("L", (32, 32)).save(mask)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        (plan,) = plans(slices, tmp_path)
        made = run_cell.run_cell(plan)
    assert made.test.subjects == 5
    assert "1 case of the dataset has no slice with brain and is in no split: test01." in made.notes


@pytest.mark.usefixtures("pictures_drawn")
def test_pictures_are_drawn_after_the_record_and_fail_no_run(
    slices: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (plan,) = plans(slices, tmp_path)

    def fail(*_: object, **__: object) -> None:
        assert plan.done(), "a number waits for a picture"
        raise OSError("no ink")

    with monkeypatch.context() as patched:
        patched.setattr(pictures, "sample_sheet", fail)
        (outcome,) = executors.serial([plan])
    assert outcome.error is None
    assert "pictures" in caplog.text
    assert "no ink" in caplog.text
    assert not (plan.run_folder / "samples.png").exists()
    (again,) = executors.serial([plan])  # answered from its record, and drawn at last
    assert again.reused
    assert {path.name for path in plan.run_folder.iterdir()} >= rundir.DRAWN
    assert not (plan.run_folder / rundir.SAMPLES).exists()
    assert not rundir.DRAWN & outcome.record.files.keys()


def test_pictures_are_left_to_the_process_that_has_the_run_and_wait_until_they_are_wanted(
    slices: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (plan,) = plans(slices, tmp_path)
    (outcome,) = executors.serial([plan])
    assert outcome.record is not None
    assert not rundir.DRAWN & {path.name for path in plan.run_folder.iterdir()}
    monkeypatch.delenv("ADBENCH_PICTURES")
    with acquire(plan.run_folder):
        pictures.illustrate(plan.run_folder)
    assert not rundir.DRAWN & {path.name for path in plan.run_folder.iterdir()}
    assert (plan.run_folder / rundir.SAMPLES).exists()
    assert not caplog.text
    pictures.illustrate(plan.run_folder)
    assert (plan.run_folder / "samples.png").exists()


def test_a_cell_travels_as_plain_data(slices: Path, tmp_path: Path) -> None:
    (plan,) = plans(slices, tmp_path, sets={"method": {"sigma": 1.0}, "post": {"median": 3}})
    text = json.dumps(plan.cell.to_json())
    assert Cell.from_json(json.loads(text)) == plan.cell
