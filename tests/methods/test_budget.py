"""Budgets in epochs and in minutes, trackers, and those who watch a method learn."""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from memory_sets import SMALL, make_set
from test_training import PLAN, stage

from adbench.context import Context, Progress
from adbench.errors import UserError
from adbench.executors import Options
from adbench.methods import training
from adbench.methods.ae import AE
from adbench.methods.madad.method import MADAD
from adbench.utils import tracking


def ticking(monkeypatch: pytest.MonkeyPatch, seconds: float = 0.5) -> None:
    """A clock that goes on by so much whenever somebody looks."""
    ticks = itertools.count(100.0, seconds)
    monkeypatch.setattr(
        "adbench.methods.training.run.time", SimpleNamespace(perf_counter=lambda: next(ticks), monotonic=time.monotonic)
    )


@pytest.mark.parametrize(("epochs", "steps"), [(2, 6), (0.1, 1), (2.5, 8)])
def test_epochs_are_passes_over_the_slices(epochs: float, steps: int) -> None:
    """12 slices in batches of 4: an epoch is three steps; a part of one counts."""
    small = {"image_size": 32, "channels": (8,), "batch": 4}
    params = AE.resolve("tiny", {**small, "epochs": epochs})
    assert AE.budget(params) is None
    report = AE(params, Context()).fit(make_set(12), None)
    assert report.steps == steps
    assert [note.partition(":")[0] for note in report.notes] == (
        ["autoencoder saw 4 of 12 training slices, less than one epoch"] if epochs < 1 else []
    )
    if epochs < 1:
        both = MADAD(MADAD.resolve("tiny", {**SMALL, "epochs": epochs}), Context()).fit(make_set(12), None)
        assert both.steps == 2 * steps


def test_minutes_end_by_the_clock_and_are_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    ticking(monkeypatch)
    one = stage(training.Plan(steps=7, seconds=20.0, batch=8, lr=1.0, warmup=3))
    result = training.train_stage(one, Context())
    assert result.steps == 40  # half a second each
    rates = {point["step"]: point["lr"] for point in result.curve}
    assert rates[2] == pytest.approx(2 / 3)
    assert rates[20] == pytest.approx(0.5 * (1 + torch.cos(torch.tensor(torch.pi * 19 / 40))))
    assert rates[40] == pytest.approx(0, abs=0.01)
    assert [point["step"] for point in result.curve if "val_loss" in point] == list(range(4, 41, 4))
    assert "trained for 20.5 s, with 20 s asked for, which were 40 steps here" in result.note


def test_a_note_says_the_time_that_was_spent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The first step ends after its budget; a finished stage that is read again says the same."""
    plan = training.Plan(steps=7, seconds=0.006, batch=8, lr=1.0)
    for _ in range(2):
        ticking(monkeypatch, seconds=70.0)
        result = training.train_stage(stage(plan), Context(workdir=tmp_path))
        assert "trained for 2.33 minutes, with 0.006 s asked for, which was 1 step here: this" in result.note


def test_minutes_of_interrupted_attempts_count(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Stop(Progress):
        def update(self, phase: str, done: int, total: int, **figures: object) -> None:
            assert total == 20
            if done >= 12:
                raise KeyboardInterrupt

    plan = training.Plan(steps=1, seconds=20.0, batch=8, lr=1e-2)
    ticking(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        training.train_stage(stage(plan), Context(workdir=tmp_path, progress=Stop(), checkpoint_seconds=0))
    ticking(monkeypatch)
    result = training.train_stage(stage(plan), Context(workdir=tmp_path, checkpoint_seconds=1e9))
    assert result.earlier_seconds > 10
    assert result.earlier_seconds + 0.5 * (40 - result.steps) < 20  # what was left, not the whole anew
    assert result.steps < 45


def test_minutes_are_shared_by_the_stages_of_a_method() -> None:
    params = MADAD.resolve("tiny", {**SMALL, "minutes": 1e-4})
    assert MADAD.budget(params) is None
    report = MADAD(params, Context()).fit(make_set(12), make_set(5, seed=1, name="v"))
    assert [note.split()[0] for note in report.notes] == ["autoencoder", "unet"]
    assert [len(curve) for curve in report.curves.values()] == [1, 1]  # hardly time for one step


def test_one_budget_only() -> None:
    with pytest.raises(UserError, match="give epochs or minutes, not both"):
        AE.resolve("tiny", {"epochs": 1, "minutes": 1})
    with pytest.raises(UserError, match="minutes = 0 is not valid"):
        AE.resolve("tiny", {"minutes": 0})


def test_curves_for_tensorboard(tmp_path: Path) -> None:
    from tensorboardX.proto.event_pb2 import Event

    result = training.train_stage(stage(PLAN), Context(workdir=tmp_path, track="tensorboard, tensorboard"))  # each once
    (path,) = (tmp_path / "toy" / "tensorboard").iterdir()
    raw, at, seen = path.read_bytes(), 0, []
    while at < len(raw):  # length (8), its checksum (4), event, its checksum (4)
        size = int.from_bytes(raw[at : at + 8], "little")
        event = Event.FromString(raw[at + 12 : at + 12 + size])
        seen += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
        at += 12 + size + 4
    wanted = [(p["step"], key, p[key]) for p in result.curve for key in p if key != "step"]
    assert [each[:2] for each in seen] == [each[:2] for each in wanted]
    assert [each[2] for each in seen] == pytest.approx([each[2] for each in wanted], rel=1e-6)


def test_a_tracker_that_is_not_there_is_refused_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"Unknown tracker 'mlfow'\. Did you mean 'mlflow'"):
        Options(track="mlfow")
    monkeypatch.setitem(tracking.TRACKERS, "wandb", ("no_such_package", "accelerate"))
    with pytest.raises(UserError, match=r"The tracker wandb needs no_such_package: pip install no_such_package, or"):
        Options(track="wandb")
    with pytest.raises(UserError, match=r"The tracker wandb needs"):
        Options(track="tensorboard, wandb")
    assert Options(track="tensorboard").track == "tensorboard"


def test_mlflow_gets_the_curve_in_files_and_a_resumed_training_its_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow", reason='needs MLflow: pip install "adbench-mri[mlflow]"')
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    work = tmp_path / "fits" / "toy-1a2b"
    result = training.train_stage(stage(PLAN), Context(workdir=work, track="mlflow, tensorboard,mlflow"))
    assert len(list((work / "toy" / "tensorboard").iterdir())) == 1, "each tracker once"
    from mlflow import MlflowClient

    client = MlflowClient((tmp_path / "mlruns").as_uri())
    (experiment,) = (one for one in client.search_experiments() if one.name == "adbench")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_name == "toy-1a2b toy"
    stored = {one.step: one.value for one in client.get_metric_history(run.info.run_id, "loss")}
    assert stored == pytest.approx({point["step"]: point["loss"] for point in result.curve})
    (again,) = tracking.open_trackers("mlflow", work / "toy", 3)
    again.log({"loss": 0.5}, step=99)
    again.finish()
    assert len(client.search_runs([experiment.experiment_id])) == 1
    assert client.get_metric_history(run.info.run_id, "loss")[-1].step == 99


def test_every_tracker_is_finished_whatever_another_raises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = []

    class Own:
        def __init__(self, name: str) -> None:
            self.name = name

        def log(self, values: Mapping[str, float], step: int) -> None: ...

        def finish(self) -> None:
            ended.append(self.name)
            if self.name == "wandb":
                raise OSError("no connection")

    def start(name: str, folder: Path, step: int) -> Own:
        if name == broken:
            raise OSError("does not start")
        return Own(name)

    monkeypatch.setattr(tracking, "TRACKERS", {"wandb": (), "tensorboard": (), "mlflow": ()})
    monkeypatch.setattr(tracking, "_open", start)
    for broken, names, expected in (
        ("", "tensorboard,wandb,mlflow", {"tensorboard", "wandb", "mlflow"}),
        ("mlflow", "tensorboard,mlflow", {"tensorboard"}),
    ):
        ended.clear()
        with pytest.raises(OSError, match="does not start" if broken else "no connection"):
            training.train_stage(stage(PLAN), Context(workdir=tmp_path / f"fits/toy-{len(broken)}", track=names))
        assert set(ended) == expected
        assert len(ended) == len(expected)


@pytest.mark.parametrize("name", ["ae", "madad"])
def test_watchers_score_with_the_weights_of_the_moment(name: str) -> None:
    """They see growing shares, get maps that change, and leave no trace in the numbers."""
    val = make_set(5, seed=1, name="v")
    cls, values = (AE, {"image_size": 32, "channels": (8,), "steps": 8}) if name == "ae" else (MADAD, SMALL)
    seen = []

    def watch(share: float) -> None:
        maps = watched.score(val.batch(slice(None)))
        assert bool(maps.isfinite().all())
        seen.append((share, float(watched.reconstruct(val.batch(slice(None))).sum())))

    watched = cls(cls.resolve("tiny", values), Context(watch=watch))  # type: ignore[arg-type]
    plain = cls(cls.resolve("tiny", values), Context())
    curves = [method.fit(make_set(12), val).curves for method in (watched, plain)]
    assert curves[0] == curves[1]
    shares = [share for share, _ in seen]
    assert shares == sorted(shares)
    assert shares[-1] == 1
    assert shares[0] == pytest.approx(1 / 8 if name == "ae" else (6 + 1) / (6 + 8))
    assert len({total for _, total in seen}) > 1
