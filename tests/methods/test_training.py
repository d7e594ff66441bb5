"""The training loop against closed forms, and its behaviour when things go wrong."""

from __future__ import annotations

import json
import shutil
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from memory_sets import make_set
from torch import nn

from adbench.config import registry
from adbench.context import Context, Progress
from adbench.errors import UserError
from adbench.methods import training
from adbench.methods.common.preprocess import SliceLoader
from adbench.methods.training.step import Average, Batches, Queue
from adbench.utils.signals import as_interrupts, exit_code

X = torch.linspace(-1, 1, 32)[:, None]


def stage(plan: training.Plan, *, validate: bool = True, bad_step: int = -1, dropout: float = 0.1) -> training.Stage:
    with training.seeded(0, "net"):
        net = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, 1))

    def draw(indices: torch.Tensor, generator: torch.Generator) -> training.Batch:
        x = X[indices]
        return {"x": x + 0.01 * torch.randn(x.shape, generator=generator), "y": x**2}

    def loss(module: nn.Module, batch: training.Batch, step: int) -> torch.Tensor:
        return ((module(batch["x"]) - batch["y"]) ** 2).mean() * (float("nan") if step == bad_step else 1.0)

    def figure(module: nn.Module) -> float:
        return float(((module(X) - X**2) ** 2).mean())

    return training.Stage("toy", net, len(X), draw, loss, plan, figure if validate else None)


PLAN = training.Plan(steps=40, batch=8, lr=1e-2, warmup=5, ema=0.9)


def test_learning_rate_warms_up_from_above_zero_and_follows_the_cosine() -> None:
    plan = training.Plan(steps=110, batch=1, lr=1.0, warmup=10)
    assert [plan.lr_at(step) for step in (0, 4, 9, 10)] == pytest.approx([0.1, 0.5, 1.0, 1.0])
    assert plan.lr_at(60) == pytest.approx(0.5)
    assert plan.lr_at(109) == pytest.approx(0, abs=1e-3)
    assert training.Plan(steps=5, batch=1, lr=0.3).lr_at(0) == 0.3
    assert training.Plan(steps=9, batch=1, lr=0.3, schedule="constant").lr_at(8) == 0.3
    timed = training.Plan(
        steps=110, batch=1, lr=1.0, warmup=500, seconds=60
    )  # the warm-up ends with a tenth of the time
    assert [timed.lr_at(step, spent) for step, spent in ((4, 0.0), (4, 0.05), (400, 0.05))] == pytest.approx(
        [0.01, 0.5, 0.802]
    )
    assert timed.lr_at(40, 0.5) == pytest.approx(0.5)


def test_batches_are_shuffled_passes_and_a_function_of_the_step() -> None:
    steps = [training.batch_indices(3, "a", step, 6, 10) for step in range(5)]
    seen = torch.cat(steps)
    for epoch in seen.split(10):
        assert sorted(epoch.tolist()) == list(range(10))
    assert torch.equal(training.batch_indices(3, "a", 4, 6, 10), steps[4])
    assert not torch.equal(training.batch_indices(4, "a", 0, 6, 10), steps[0])
    assert len(training.batch_indices(0, "a", 0, 25, 10)) == 25  # a batch may be larger than the data


def test_average_of_weights_is_the_closed_form() -> None:
    """d_k = min(decay, (1+k)/(10+k)) for update k = 1, 2, ... as diffusers warms it up; SGD-free check on recorded weights."""
    one = stage(training.Plan(steps=12, batch=8, lr=1e-2, ema=0.5), validate=False)
    weights = [one.module[0].weight.detach().clone()]  # type: ignore[index]
    run = training.Run(one, Context())
    for _ in range(12):
        run.take_step()
        weights.append(one.module[0].weight.detach().clone())  # type: ignore[index]
    expected = weights[0]
    for k, weight in enumerate(weights[1:], 1):
        # diffusers' first update has decay 0; later ones see k - 1 finished updates
        decay = min(0.5, k / (9 + k)) if k > 1 else 0.0
        expected = decay * expected + (1 - decay) * weight
    assert run.ema is not None
    assert torch.allclose(run.ema.weights[0], expected, atol=1e-6)


def test_one_adamw_step_with_clipping_is_the_closed_form() -> None:
    plan = training.Plan(steps=1, batch=32, lr=0.1, weight_decay=0.01, clip=1e-3, warmup=2)
    one = stage(plan, validate=False, dropout=0.0)
    before = one.module[3].bias.detach().clone()  # type: ignore[index]
    training.train_stage(one, Context())
    lr = 0.05  # warm-up: half of the peak at the first of two steps
    moved = one.module[3].bias.detach() - before * (1 - lr * 0.01)  # type: ignore[index]
    assert abs(float(moved)) == pytest.approx(
        lr, rel=1e-3
    )  # Adam's first step is lr·sign(g) whatever the gradient's length


def test_micro_batches_give_the_same_step() -> None:
    results = []
    for parts in (1, 4):
        one = stage(training.Plan(steps=5, batch=8, lr=1e-2, accumulate=parts), validate=False, dropout=0.0)
        training.train_stage(one, Context())
        results.append(one.module[0].weight.detach())  # type: ignore[index]
    assert torch.allclose(*results, atol=1e-6)


def test_out_of_memory_halves_the_micro_batch() -> None:
    one = stage(training.Plan(steps=3, batch=8, lr=1e-2), validate=False, dropout=0.0)
    plain = stage(training.Plan(steps=3, batch=8, lr=1e-2), validate=False, dropout=0.0)
    inner = one.loss

    def small(module: nn.Module, batch: training.Batch, step: int) -> torch.Tensor:
        if len(batch["x"]) > 3:
            raise torch.OutOfMemoryError("too large")
        return inner(module, batch, step)

    one.loss = small
    training.train_stage(one, Context())
    training.train_stage(plain, Context())
    assert torch.allclose(one.module[0].weight, plain.module[0].weight, atol=1e-6)  # type: ignore[index]

    def never(module: nn.Module, batch: training.Batch, step: int) -> torch.Tensor:
        raise torch.OutOfMemoryError("too large")

    one = stage(training.Plan(steps=3, batch=8, lr=1e-2))
    one.loss = never
    with pytest.raises(
        UserError, match="toy: its networks with one sample are more than cpu has memory for: choose a smaller preset"
    ):
        training.train_stage(one, Context())


def test_best_weights_are_kept() -> None:
    one = stage(PLAN)
    figures = iter([3.0, 1.0, 2.0] + [5.0] * 7)
    kept: list[torch.Tensor] = []

    def validate(module: nn.Module) -> float:
        kept.append(module[0].weight.detach().clone())  # type: ignore[index]
        return next(figures)

    one.validate = validate
    result = training.train_stage(one, Context())
    assert (result.best_step, result.best_loss) == (8, 1.0)
    assert torch.equal(one.module[0].weight, kept[1])  # type: ignore[index]
    assert [point["val_loss"] for point in result.curve if "val_loss" in point][:3] == [3.0, 1.0, 2.0]


def test_non_finite_loss_names_step_and_rate_and_keeps_the_checkpoint(tmp_path: Path) -> None:
    one = stage(PLAN, bad_step=17)
    ctx = Context(workdir=tmp_path, checkpoint_seconds=0)
    with pytest.raises(
        UserError, match=r"loss was not finite at step 17 with learning rate 0\.00.*checkpoint.*is kept"
    ):
        training.train_stage(one, ctx)
    assert (tmp_path / "toy" / "checkpoint.json").exists()
    assert (tmp_path / "toy" / "state-17.safetensors").exists()


class _Stop(Progress):
    """Raises after so many reports."""

    def __init__(self, after: int) -> None:
        self.left = after

    def update(self, phase: str, done: int, total: int, **figures: object) -> None:
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt


@pytest.mark.parametrize("after", [1, 7, 20, 39])
def test_interrupted_and_continued_equals_uninterrupted(tmp_path: Path, after: int) -> None:
    whole = stage(PLAN)
    expected = training.train_stage(whole, Context())
    with pytest.raises(KeyboardInterrupt):
        training.train_stage(stage(PLAN), Context(workdir=tmp_path, progress=_Stop(after), checkpoint_seconds=0))
    again = stage(PLAN)
    torch.manual_seed(99)  # the state of the global generator must not matter
    result = training.train_stage(again, Context(workdir=tmp_path, checkpoint_seconds=0))
    assert result.curve == expected.curve
    assert result.best_step == expected.best_step
    for key, value in whole.module.state_dict().items():
        assert torch.equal(value, again.module.state_dict()[key]), key
    # A finished stage is remembered, and only its weights are left on disk.
    third = stage(PLAN)
    assert training.train_stage(third, Context(workdir=tmp_path, progress=_Stop(1))).curve == expected.curve
    assert torch.equal(third.module[0].weight, whole.module[0].weight)  # type: ignore[index]
    assert [p.suffix for p in sorted((tmp_path / "toy").iterdir())] == [".safetensors", ".json"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_costs_at_most_one_step(tmp_path: Path, number: signal.Signals) -> None:
    whole = stage(PLAN)
    training.train_stage(whole, Context())
    stopped, draws = stage(PLAN), 0

    def draw(indices: torch.Tensor, generator: torch.Generator) -> training.Batch:
        nonlocal draws
        draws += 1
        if draws == 17:  # in the middle of a step
            signal.raise_signal(number)
        return stage(PLAN).draw(indices, generator)

    with as_interrupts(), pytest.raises(KeyboardInterrupt):
        training.train_stage(replace(stopped, draw=draw), Context(workdir=tmp_path))
    assert exit_code() == 128 + number
    begun = json.loads((tmp_path / "toy" / "checkpoint.json").read_text())["figures"]["step"]
    assert begun in (16, 17)
    again = stage(PLAN)
    training.train_stage(again, Context(workdir=tmp_path))
    for one, other in zip(whole.module.parameters(), again.module.parameters(), strict=True):
        assert torch.equal(one, other)


def test_checkpoint_of_other_parameters_is_not_continued(tmp_path: Path) -> None:
    ctx = Context(workdir=tmp_path)
    training.train_stage(stage(PLAN), ctx)
    other = training.Plan(steps=5, batch=8, lr=1e-2)
    assert training.train_stage(stage(other), ctx).steps == 5
    assert training.train_stage(stage(other), ctx).steps == 5


def _flip(path: Path, at: int = -1) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("file", "harm"),
    [
        ("best-*.safetensors", _flip),
        ("state-*.safetensors", _flip),
        ("state-*.safetensors", lambda path: path.write_bytes(path.read_bytes()[:50])),
        ("best-*.safetensors", Path.unlink),
        ("checkpoint.json", lambda path: path.write_text(path.read_text().replace('"step": ', '"step": 1', 1))),
        ("checkpoint.json", lambda path: path.write_text(path.read_text()[:-9])),
    ],
)
def test_a_damaged_checkpoint_is_refused(tmp_path: Path, file: str, harm: Callable[[Path], object]) -> None:
    with pytest.raises(KeyboardInterrupt):
        training.train_stage(stage(PLAN), Context(workdir=tmp_path, progress=_Stop(12), checkpoint_seconds=0))
    (path,) = (tmp_path / "toy").glob(file)
    harm(path)
    with pytest.raises(
        UserError,
        match=rf"{path.name} (was changed: .* \w+ and was written with '?\w+'?|is missing|is damaged).*Delete {tmp_path / 'toy'} and run",
    ):
        training.train_stage(stage(PLAN), Context(workdir=tmp_path))
    shutil.rmtree(tmp_path / "toy")
    assert (
        training.train_stage(stage(PLAN), Context(workdir=tmp_path)).curve
        == training.train_stage(stage(PLAN), Context()).curve
    )


def test_a_finished_stage_with_damaged_weights_is_refused(tmp_path: Path) -> None:
    training.train_stage(stage(PLAN), Context(workdir=tmp_path))
    (best,) = (tmp_path / "toy").glob("best-*.safetensors")
    _flip(best)
    with pytest.raises(UserError, match="was written with"):
        training.train_stage(stage(PLAN), Context(workdir=tmp_path))


def test_no_workdir_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    training.train_stage(stage(PLAN), Context(checkpoint_seconds=0))
    assert list(tmp_path.iterdir()) == []


def test_training_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    training.train_stage(stage(PLAN), Context())
    assert torch.equal(torch.rand(3), expected)


def test_full_disk_is_one_clear_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("adbench.methods.training.checkpoints.save_file", full)
    with pytest.raises(UserError, match="No space left for a checkpoint in"):
        training.train_stage(stage(PLAN), Context(workdir=tmp_path))


def test_slices_on_the_device_or_read_piecewise_are_equal() -> None:
    data = make_set(7)
    kept, read = SliceLoader(data, 32, "cpu"), SliceLoader(data, 32, "cpu", budget=0)
    assert kept._kept is not None
    assert read._kept is None
    where = torch.tensor([4, 0, 4])
    for one, other in zip(kept.get(where), read.get(where), strict=True):
        assert torch.equal(one, other)
    with pytest.raises(UserError, match="no healthy training slices"):
        SliceLoader(make_set(0), 32, "cpu")


def test_batches_drawn_ahead_are_those_that_the_step_draws() -> None:
    asked: list[tuple[str, tuple[int, ...]]] = []
    inner = stage(PLAN)
    draw = inner.draw

    def spied(indices: torch.Tensor, draws: torch.Generator) -> training.Batch:
        asked.append((threading.current_thread().name, tuple(indices.tolist())))
        assert not torch.is_grad_enabled()
        return draw(indices, draws)

    inner.draw = spied
    ahead, plain = (Batches(inner, 3, torch.device("cpu"), ahead=on) for on in (True, False))
    steps = (0, 1, 2, 7, 8)  # a jump, as after a checkpoint
    found = [ahead.take(step) for step in steps]
    ahead.close()
    step_of = {tuple(training.batch_indices(3, "toy", step, 8, len(X)).tolist()): step for step in range(12)}
    who = {step_of[indices]: name for name, indices in asked}
    main, thread = "MainThread", "adbench-draw_0"
    assert {step: who[step] for step in steps} == {0: main, 1: thread, 2: thread, 7: main, 8: thread}
    assert len(asked) == len(who)  # no batch is drawn twice
    for step, batch in zip(steps, found, strict=True):
        for key, value in plain.take(step).items():
            assert torch.equal(batch[key], value), (step, key)


def test_a_fit_that_draws_ahead_ends_in_the_same_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, ahead = stage(PLAN), stage(PLAN)
    expected = training.train_stage(plain, Context())
    monkeypatch.setattr("adbench.methods.training.run.Batches", partial(Batches, ahead=True))
    before = threading.active_count()
    assert training.train_stage(ahead, Context()).curve == expected.curve
    assert threading.active_count() == before
    for one, other in zip(plain.module.parameters(), ahead.module.parameters(), strict=True):
        assert torch.equal(one, other)


class Replayed:
    """What a recording does on a GPU, without one: nothing at first, then the same call on inputs that are copied in."""

    made = 0

    def __init__(self, call: Callable[[training.Batch], tuple[torch.Tensor, ...]], inputs: training.Batch) -> None:
        self.call, self.inputs = call, {name: torch.empty_like(value) for name, value in inputs.items()}
        Replayed.made += 1

    def __call__(self, inputs: training.Batch) -> tuple[torch.Tensor, ...]:
        for name, value in inputs.items():
            self.inputs[name].copy_(value)
        return self.call(self.inputs)


def test_replayed_steps_have_the_numbers_of_launched_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dropout, averages, warm-up and validation included; also when the training is interrupted and continued."""
    plain, replayed = stage(PLAN), stage(PLAN)
    expected = training.train_stage(plain, Context())
    made = training.Run.__init__

    def records(run: training.Run, *args: Any) -> None:
        made(run, *args)
        run._records = True

    monkeypatch.setattr(training.Run, "__init__", records)
    monkeypatch.setattr("adbench.methods.training.run.Recording", Replayed)
    Replayed.made = 0
    run = training.Run(stage(PLAN), ctx := Context(workdir=tmp_path))
    run.stage.module.train()
    with training.forked():
        for _ in range(7):
            run.take_step()
    run.check()
    run.save()
    assert training.train_stage(replayed, ctx).curve[-1] == expected.curve[-1]
    assert Replayed.made == 2
    for one, other in zip(plain.module.parameters(), replayed.module.parameters(), strict=True):
        assert torch.equal(one, other)


def test_what_cannot_be_recorded_is_launched(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    run = training.Run(stage(PLAN), Context())
    run._records, asked = True, []

    def refuse(*args: object) -> None:
        asked.append(run.step)
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr("adbench.methods.training.run.Recording", refuse)
    with training.forked():
        for _ in range(6):
            run.take_step()
    assert (asked, run.step) == ([3], 6)
    assert "toy: steps are launched one by one, which is slower (operation not permitted" in caplog.text


def test_an_error_while_drawing_ahead_reaches_the_step() -> None:
    broken = stage(PLAN)
    draw, broken.draw = broken.draw, lambda indices, draws: draw(indices, draws) if first(indices) else {"x": 1 // 0}

    def first(indices: torch.Tensor) -> bool:
        return torch.equal(indices, training.batch_indices(0, "toy", 0, 8, len(X)))

    batches = Batches(broken, 0, torch.device("cpu"), ahead=True)
    batches.take(0)
    with pytest.raises(ZeroDivisionError):
        batches.take(1)
    batches.close()


@pytest.mark.parametrize("name", ["ae", "vae", "dae", "ddpm"])
def test_a_step_never_looks_at_a_number_on_the_device(name: str) -> None:
    """On the meta device, which has no numbers, whatever would wait for one raises."""
    cls: Any = registry.load("methods", name)
    method = cls(cls.resolve("tiny", cls.smoke), Context())
    slices = SliceLoader(make_set(4), method.params.image_size, "cpu", standardise=True)
    batch = method.make_batch(slices, torch.arange(4), training.generator(0), training=True)
    with torch.device("meta"):
        network = method.build()
    weights = list(network.parameters())
    optimizer, average = torch.optim.Adam(weights), Average(weights, 0.9)
    loss = method.loss(network, {key: value.to("meta") for key, value in batch.items()})
    loss.backward()
    torch.nn.utils.clip_grad_norm_(weights, 1.0)
    optimizer.step()
    average.update()
    with pytest.raises(RuntimeError, match="meta"):
        loss.item()


def test_weights_and_their_averages_change_places_without_a_copy() -> None:
    layer = nn.Linear(3, 3)
    weights = list(layer.parameters())
    average = Average(weights, 0.9)
    with torch.no_grad():
        for weight in weights:
            weight.add_(1)
    before = [(weight.detach().clone(), weight.data_ptr()) for weight in weights]
    kept = [(value.clone(), value.data_ptr()) for value in average.weights]
    with suppress(KeyError), average.in_place():
        assert [weight.data_ptr() for weight in weights] == [place for _, place in kept]
        assert all(torch.equal(weight, value) for weight, (value, _) in zip(weights, kept, strict=True))
        raise KeyError
    assert [weight.data_ptr() for weight in weights] == [place for _, place in before]
    assert all(torch.equal(weight, value) for weight, (value, _) in zip(weights, before, strict=True))


def test_averages_have_the_bits_of_diffusers() -> None:
    from diffusers.training_utils import EMAModel

    weights = [nn.Parameter(torch.randn(50, generator=torch.Generator().manual_seed(n))) for n in range(3)]
    ours, theirs = Average(weights, 0.7), EMAModel(weights, decay=0.7, foreach=True)
    for step in range(30):
        with torch.no_grad():
            for weight in weights:
                weight.add_(torch.randn(50, generator=torch.Generator().manual_seed(100 + step)))
        ours.update()
        theirs.step(weights)
        assert all(torch.equal(a, b) for a, b in zip(ours.weights, theirs.shadow_params, strict=True)), step


def test_a_compiled_training_validates_and_ends_with_the_plain_module(monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced by dynamo and run by its eager backend, which rounds as the plain module does."""
    plain, traced = stage(PLAN, dropout=0.0), stage(PLAN, dropout=0.0)
    expected = training.train_stage(plain, Context())
    kinds: set[str] = set()
    loss, validate = traced.loss, traced.validate
    assert validate is not None

    def spied(module: nn.Module, batch: training.Batch, step: int) -> torch.Tensor:
        kinds.add(f"loss {type(module).__name__}")
        return loss(module, batch, step)

    def figure(module: nn.Module) -> float:
        kinds.add(f"figure {type(module).__name__}")
        return validate(module)

    traced.loss, traced.validate = spied, figure
    compiled = torch.compile
    monkeypatch.setattr("adbench.methods.training.stage.COMPILES_FROM_STEPS", PLAN.steps)
    monkeypatch.setattr("adbench.utils.compute.compile_mode", lambda device: "default")
    monkeypatch.setattr(
        torch, "compile", lambda module, mode, dynamic: compiled(module, backend="eager", dynamic=dynamic)
    )
    assert training.train_stage(traced, Context()).curve == expected.curve
    assert kinds == {"loss OptimizedModule", "figure Sequential"}
    assert traced.module.state_dict().keys() == plain.module.state_dict().keys()


IMAGES = torch.randn(16, 4, 8, 8, generator=torch.Generator().manual_seed(0))


def convolutions() -> training.Stage:
    with training.seeded(1, "net"):
        net = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.SiLU(), nn.Conv2d(8, 4, 3, padding=1))
        judge = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.SiLU(), nn.Conv2d(4, 1, 3))
    opponent = training.Opponent(judge, lambda one, other, batch: other(one(batch["x"])).square().mean(), 2, 1e-2)

    def loss(module: nn.Module, batch: training.Batch, step: int) -> torch.Tensor:
        return (module(batch["x"]) - batch["x"]).square().mean()

    plan = training.Plan(steps=12, batch=4, lr=1e-2, ema=0.9)
    return training.Stage(
        "toy", net, 16, lambda where, draws: {"x": IMAGES[where]}, loss, plan, lambda module: 1.0, opponent=opponent
    )


def test_a_training_is_resumed_in_the_layout_of_its_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU: fused optimisers, which take it that moments lie as their weights do, and channels last."""
    for name in ("Adam", "AdamW"):
        kind = getattr(torch.optim, name)
        monkeypatch.setattr(torch.optim, name, lambda *a, kind=kind, **named: kind(*a, **{**named, "fused": True}))
    monkeypatch.setattr("adbench.methods.training.run.memory_layout", lambda device: torch.channels_last)
    whole = training.Run(convolutions(), Context())
    begun = training.Run(convolutions(), ctx := Context(workdir=tmp_path))
    with training.forked():
        for _ in range(6):
            begun.take_step()
        begun.validate()
        begun.save()
        resumed = training.Run(convolutions(), ctx)
        assert not resumed.restore()
        for step in range(12):
            whole.take_step()
            if step > 5:
                resumed.take_step()
    assert whole.ema is not None
    assert resumed.ema is not None
    for one, other in zip((whole, resumed), (resumed, whole), strict=True):
        for mine, its in zip(one.modules.values(), other.modules.values(), strict=True):
            for weight, twin in zip(mine.parameters(), its.parameters(), strict=True):
                assert torch.equal(weight, twin)
                assert weight.stride() == twin.stride()
        for name in one.optimizers:
            mine_, its_ = (list(run.optimizers[name].state.items()) for run in (one, other))
            for (weight, moments), (_, twins) in zip(mine_, its_, strict=True):
                assert moments["exp_avg"].stride() == weight.stride()
                assert all(torch.equal(moments[key], twins[key]) for key in twins)
    for weight, average, twin in zip(resumed.parameters, resumed.ema.weights, whole.ema.weights, strict=True):
        assert torch.equal(average, twin)
        assert average.stride() == weight.stride()


def test_a_result_says_how_it_was_computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was on, not what the environment would allow; interrupted attempts that computed otherwise as well."""
    on_cpu = {
        "device": "cpu", "precision": "float32", "compile": "off", "steps": "launched", "micro_batches": 1,
        "resumes": "bit-equal",
    }  # fmt: skip
    monkeypatch.setenv("ADBENCH_COMPILE", "default")
    ctx = Context(workdir=tmp_path, checkpoint_seconds=0)
    with pytest.raises(KeyboardInterrupt):
        training.train_stage(stage(PLAN), replace(ctx, progress=_Stop(12)))
    assert training.train_stage(stage(PLAN), ctx).computed == [on_cpu]
    assert training.train_stage(stage(PLAN), ctx).computed == [on_cpu]  # finished: no step is taken
    shutil.rmtree(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        training.train_stage(stage(PLAN), replace(ctx, progress=_Stop(12)))
    small = stage(replace(PLAN, accumulate=2))
    result = training.train_stage(small, ctx)
    assert result.computed == [on_cpu, {**on_cpu, "micro_batches": 2}]
    assert training.report([("toy", result)], [small.module]).computed == {"toy": result.computed}
    timed = training.train_stage(stage(replace(PLAN, seconds=0.01)), Context())
    assert timed.computed == [{**on_cpu, "resumes": "as far as its clock lets it"}]


def scarce(most: int) -> Callable[[torch.Tensor], None]:
    """Runs out of memory for more than ``most`` samples."""

    def look(x: torch.Tensor) -> None:
        if len(x) > most:
            raise torch.OutOfMemoryError("too large")

    return look


def test_the_opponent_learns_in_smaller_pieces_too() -> None:
    plain, small = convolutions(), convolutions()
    assert plain.opponent is not None
    assert small.opponent is not None
    learn, look = small.opponent.loss, scarce(1)

    def loss(module: nn.Module, opponent: nn.Module, batch: training.Batch) -> torch.Tensor:
        look(batch["x"])
        return learn(module, opponent, batch)

    small.opponent.loss = loss
    training.train_stage(plain, Context())
    assert training.train_stage(small, Context()).computed[0]["micro_batches"] == 4
    for one, other in zip(plain.opponent.module.parameters(), small.opponent.module.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def test_memory_that_ends_is_one_sentence_wherever_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    def ends(*args: object, **named: object) -> Any:
        raise torch.OutOfMemoryError("no more")

    for place in ("torch.optim.AdamW.step", "adbench.methods.training.step.Average.fold", "torch.nn.Module.to"):
        with monkeypatch.context() as patch:
            patch.setattr(place, ends)
            with pytest.raises(UserError, match="toy: its networks with one sample are more than cpu has memory"):
                training.train_stage(stage(PLAN), Context())
    one = stage(PLAN)
    one.validate = ends
    with pytest.raises(UserError, match="more than cpu has memory for"):
        training.train_stage(one, Context())
    with pytest.raises(UserError, match="more than cpu has memory for"):
        training.train_stage(stage(PLAN), Context(watch=ends))


def test_a_validation_goes_on_without_the_recorded_step() -> None:
    run = training.Run(stage(PLAN), Context())
    run.recording = object()  # type: ignore[assignment]
    asked = []

    def validate(module: nn.Module) -> float:
        asked.append(run.recording is None)
        scarce(0)(X[: 0 if run.recording is None else 1])
        return 2.0

    run.stage.validate = validate
    assert run.validate() == {"val_loss": 2.0}
    assert asked == [False, True]


def test_portions_of_a_batch_have_its_mean_and_are_remembered(caplog: pytest.LogCaptureFixture) -> None:
    portions, look, asked = training.Portions("toy", Context().logger), scarce(3), []

    def mean(batch: training.Batch) -> torch.Tensor:
        asked.append(len(batch["x"]))
        look(batch["x"])
        return batch["x"].mean()

    x = torch.arange(10.0)
    assert portions.mean(mean, {"x": x}) == pytest.approx(4.5)
    assert asked == [10, 5, 3, 3, 3, 1]
    assert "toy: out of memory, going on with 4 micro-batches" in caplog.text
    assert portions.mean(mean, {"x": x}) == pytest.approx(4.5)
    assert asked[6:] == [3, 3, 3, 1]


def test_averages_are_folded_in_groups_of_bounded_size(monkeypatch: pytest.MonkeyPatch) -> None:
    from adbench.methods.training.step import _groups

    groups = _groups([3, 4, 20, 1, 9, 1], most=10)
    assert groups == [slice(0, 2), slice(2, 3), slice(3, 5), slice(5, 6)]
    assert _groups([]) == [slice(0, 0)]
    weights = [nn.Parameter(torch.randn(50, generator=torch.Generator().manual_seed(n))) for n in range(5)]
    monkeypatch.setattr("adbench.methods.training.step._groups", lambda sizes: _groups(sizes, most=400))
    pieces = Average(weights, 0.7)
    monkeypatch.undo()
    whole = Average(weights, 0.7)
    assert (len(pieces._groups), len(whole._groups)) == (3, 1)
    for _ in range(9):
        with torch.no_grad():
            for weight in weights:
                weight.mul_(0.9)
        pieces.update()
        whole.update()
    assert all(torch.equal(one, other) for one, other in zip(pieces.weights, whole.weights, strict=True))


def test_the_host_waits_for_the_step_some_before_the_newest(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []

    class End:
        """What an event of a GPU is asked for."""

        made = 0

        def __init__(self) -> None:
            self.number, End.made = End.made, End.made + 1

        def record(self) -> None:
            said.append(f"end of {self.number}")

        def synchronize(self) -> None:
            said.append(f"wait for {self.number}")

    monkeypatch.setattr(torch.cuda, "Event", End)
    queue = Queue(ahead=2)
    for _ in range(4):
        queue.add()
    assert said == ["end of 0", "end of 1", "end of 2", "wait for 0", "end of 3", "wait for 1"]
    assert training.Run(stage(replace(PLAN, seconds=9)), Context()).queue is None  # a CPU has no queue


def test_only_a_step_that_is_recorded_has_a_capturable_optimizer(monkeypatch: pytest.MonkeyPatch) -> None:
    run, seen = training.Run(stage(PLAN), Context()), []
    run._records = True

    def capturable() -> bool:
        return bool(run.optimizer.param_groups[0]["capturable"])

    def refuse(*args: object) -> None:
        seen.append(capturable())
        raise RuntimeError("not permitted")

    monkeypatch.setattr("adbench.methods.training.run.Recording", refuse)
    with training.forked():
        for _ in range(5):
            seen.append(capturable())
            run.take_step()
    assert seen == [False, False, False, False, True, False]
