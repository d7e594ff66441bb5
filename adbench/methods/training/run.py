"""From a stage to its trained weights: the training loop, and the state that a checkpoint holds."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from adbench.errors import UserError
from adbench.methods.common.preprocess import autocast, memory_layout
from adbench.methods.common.recording import Recording
from adbench.methods.training.checkpoints import StageFolder
from adbench.methods.training.memory import Portions, within_memory
from adbench.methods.training.stage import Batch, Stage, StageResult
from adbench.methods.training.step import (
    Average,
    Batches,
    Queue,
    device_of,
    forked,
    micro_batches,
    of_first_process,
    sum_over_processes,
)
from adbench.utils import compute, distributed
from adbench.utils.seeds import derive
from adbench.utils.signals import Held, held
from adbench.utils.tracking import Tracker, open_trackers

if TYPE_CHECKING:
    from adbench.context import Context

LAUNCHED = 3  # steps before one is recorded: they compile, choose algorithms and allocate


def train_stage(stage: Stage, ctx: Context) -> StageResult:
    """Train ``stage.module`` in place and leave the kept weights in it, in evaluation mode.

    With ``ctx.workdir`` the stage keeps its checkpoints in the folder ``stage.name`` there and continues from them; a
    finished stage is not trained again. Without it nothing touches the disk.

    Raises:
        UserError: a loss that is not finite (with step and learning rate), a full disk, a device too small for one sample.
    """
    with held() as stopping, forked(), compute.applied(ctx.device), within_memory(stage.name, ctx.device):
        run = Run(stage, ctx)
        first = 0
        if not run.restore():
            stage.module.train()
            first = run.step
            _loop(run, stopping)
            run.keep_last()
            run.save(finished=True)
            assert run.best is not None
            stage.module.load_state_dict(run.best)
    ctx.logger.debug("%s: steps %d to %d.", stage.name, first, run.step)
    stage.module.eval()
    note = ""
    if stage.plan.seconds is not None:
        steps = "was 1 step" if run.step == 1 else f"were {run.step} steps"
        note = (
            f"{stage.name} was trained for {_time(run.took)}, with {_time(stage.plan.seconds)} asked for, which {steps} here: "
            "this number, and so every number of the fit, depends on the machine."
        )
    if (seen := run.step * stage.plan.batch) < stage.samples:
        less = f"{stage.name} saw {seen} of {stage.samples} training slices, less than one epoch: give it more steps or minutes."
        note = f"{note} {less}".strip()
    return StageResult(run.step, run.curve, run.best_step, run.best_loss, run.earlier_seconds, note, run.computed())


def _time(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds < 100 else f"{seconds / 60:.3g} minutes"


def _loop(run: Run, stopping: Held) -> None:
    ctx, name = run.ctx, run.stage.name
    trackers: list[Tracker] = []
    if ctx.track and ctx.workdir is not None and distributed.rank() == 0:
        trackers = open_trackers(ctx.track, ctx.workdir / name, run.step)
    saved = shown = time.monotonic()
    shown -= 1.0
    val: dict[str, float] = {}
    finished = False
    try:
        while not finished:
            before = run.spent
            run.take_step()
            finished, validates, logs = run.plan.due(run.step, before, run.spent)
            now = time.monotonic()
            saves = (bool(stopping) or now - saved >= ctx.checkpoint_seconds) and not finished
            if not (logs or saves or now - shown >= 1.0):
                continue
            run.check()
            recent = sum(run.losses) / max(1, len(run.losses))
            if logs:
                point = {"step": run.step, "loss": recent, "lr": run.lr}
                if validates and (figures := run.validate()):
                    point |= figures
                    val = {"val": figures["val_loss"]}
                run.curve.append(point)
                run.losses = []
                for tracker in trackers:
                    tracker.log({key: value for key, value in point.items() if key != "step"}, step=run.step)
            done, total = run.done(finished)
            ctx.progress.update(name, done, total, loss=recent, lr=run.lr, **val)
            shown = time.monotonic()
            if saves:
                run.save()
                saved = time.monotonic()
                stopping.end()
    finally:
        with ExitStack() as closing:  # each of them, whatever another raises
            for tracker in trackers:
                closing.callback(tracker.finish)
            run.batches.close()


class Run:
    """One stage while it is trained: a step, a validation, a checkpoint; :func:`train_stage` drives it."""

    def __init__(self, stage: Stage, ctx: Context) -> None:
        self.stage, self.ctx, self.plan = stage, ctx, stage.plan
        if self.plan.batch < distributed.world():
            raise UserError(
                f"{stage.name}: a batch of {self.plan.batch} cannot be shared by {distributed.world()} processes."
            )
        self.device = device_of(ctx.device)
        stage.module.to(device=self.device, memory_format=memory_layout(self.device))  # type: ignore[call-overload]
        mode = compute.compile_mode(str(self.device)) if self.plan.pays_to_compile else "off"
        # For the gradients alone: validation has batches of other shapes, and scoring weights of its own.
        self.trained: nn.Module = stage.module if mode == "off" else compute.compiled(stage.module, mode)
        self.parameters = [p for p in stage.module.parameters() if p.requires_grad]
        kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[self.plan.optimizer]
        on_gpu = self.device.type == "cuda"
        fused = True if on_gpu else None  # one kernel for all weights
        self.recording: Recording | None = None
        self._recording_now = False
        self._launched = 0  # steps that were not replayed
        self._records = on_gpu and stage.steady and stage.opponent is None and distributed.world() == 1
        self.optimizer = kind(
            self.parameters,
            # A recorded step reads a number on the device.
            lr=torch.tensor(self.plan.lr, device=self.device) if self._records else self.plan.lr,
            weight_decay=self.plan.weight_decay,
            fused=fused,
        )
        self.ema = Average(self.parameters, self.plan.ema) if self.plan.ema > 0 else None
        self.batches = Batches(stage, ctx.seed, self.device)
        # All that is trained, by its name in the checkpoint.
        self.modules: dict[str, nn.Module] = {"model": stage.module}
        self.optimizers: dict[str, torch.optim.Optimizer] = {"optimizer": self.optimizer}
        if stage.opponent is not None:
            opponent = self.modules["rival"] = stage.opponent.module
            opponent.to(device=self.device, memory_format=memory_layout(self.device))  # type: ignore[call-overload]
            self.optimizers["rival_optimizer"] = torch.optim.Adam(
                opponent.parameters(), lr=stage.opponent.lr, betas=(0.5, 0.9), fused=fused
            )
        self.step, self.lr, self.spent = 0, self.plan.lr_at(0), 0.0
        self.begin, self.earlier_seconds = time.perf_counter(), 0.0
        self.took = 0.0  # seconds until the last checkpoint
        self.portions = Portions(stage.name, ctx.logger, self.plan.accumulate)
        self.queue = Queue() if on_gpu and self.plan.seconds is not None else None
        self.compile = mode
        self.earlier: list[dict[str, Any]] = []  # how interrupted attempts computed
        self.curve: list[dict[str, float]] = []
        self.best: dict[str, torch.Tensor] | None = None
        self.best_step, self.best_loss = 0, None if stage.validate is None else math.inf
        self.pending: list[tuple[torch.Tensor, torch.Tensor]] = []  # loss and gradient norm, still on the device
        self.losses: list[float] = []  # since the last point of the curve
        plan = {key: value for key, value in asdict(self.plan).items() if key != "accumulate"}  # changes no number
        self.folder = StageFolder(
            ctx.workdir / stage.name if ctx.workdir is not None else None,
            {"seed": ctx.seed, "samples": stage.samples, **stage.identity, "plan": plan},
            ctx.logger,
        )

    @property
    def elapsed(self) -> float:
        """Seconds spent on the stage, earlier attempts included."""
        return self.earlier_seconds + time.perf_counter() - self.begin

    def done(self, finished: bool) -> tuple[int, int]:
        """How much of how much is done, for progress: steps, or seconds of a wall-clock budget."""
        if self.plan.seconds is None:
            return self.step, self.plan.steps
        total = max(1, round(self.plan.seconds))
        return total if finished else min(total - 1, int(self.spent * total)), total

    def computed(self) -> list[dict[str, Any]]:
        """How the stage was computed, an entry for each way: this attempt's (as it is now) after those of earlier ones."""
        if not self._launched:  # it takes no step
            return self.earlier
        if self.plan.seconds is not None:
            resumes = "as far as its clock lets it"
        elif self.device.type == "cpu":
            resumes = "bit-equal"
        else:
            resumes = "deterministic kernels" if torch.are_deterministic_algorithms_enabled() else "up to rounding"
        here = {
            "device": self.device.type,
            "precision": compute.precision(str(self.device)),
            "compile": self.compile,
            "steps": "launched" if self.recording is None else "recorded",
            "micro_batches": self.portions.parts,
            "resumes": resumes,
        }
        return [way for way in self.earlier if way != here] + [here]

    # Checkpoints

    def _state(self) -> dict[str, torch.Tensor]:
        tensors: dict[str, torch.Tensor] = {}
        for name, module in self.modules.items():
            tensors |= {f"{name}.{key}": value for key, value in module.state_dict().items()}
        for name, optimizer in self.optimizers.items():
            for index, values in optimizer.state_dict()["state"].items():
                tensors |= {f"{name}.{index}.{key}": value for key, value in values.items()}
        if self.ema is not None:
            tensors |= {f"ema.{index}": value for index, value in enumerate(self.ema.weights)}
        return tensors

    def save(self, *, finished: bool = False) -> None:
        """Commit a checkpoint: the whole training state, or the kept weights alone once the stage is finished."""
        self.took = self.elapsed
        if distributed.rank() > 0:
            return
        figures = {
            "step": self.step,
            "finished": finished,
            "curve": self.curve,
            "losses": self.losses,
            "best_step": self.best_step,
            "best_loss": None if self.best_loss == math.inf else self.best_loss,
            "seconds": self.took,
            "computed": self.computed(),
        }
        self.folder.write(self.step, figures, None if finished else self._state(), self.best, self.best_step)

    def restore(self) -> bool:
        """Continue from the checkpoint, if there is one; True when the stage had been finished."""
        found = self.folder.read()
        distributed.wait()  # no process writes before all have read
        if found is None:
            return False
        figures, state, best = found
        self.step, self.curve, self.best_step = figures["step"], figures["curve"], figures["best_step"]
        self.losses = figures["losses"]
        self.earlier = figures.get("computed", [])  # older checkpoints do not say
        if self.stage.validate is not None:
            self.best_loss = math.inf if figures["best_loss"] is None else figures["best_loss"]
        self.best = best or None
        self.earlier_seconds = self.took = float(figures["seconds"])
        if figures["finished"]:
            self.stage.module.load_state_dict(best)
            return True

        def part(name: str) -> dict[str, torch.Tensor]:
            prefix = f"{name}."
            return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}

        for name, module in self.modules.items():
            module.load_state_dict(part(name))
        for name, optimizer in self.optimizers.items():
            _load_optimizer(optimizer, part(name))
        if self.ema is not None:
            for index, average in enumerate(self.ema.weights):
                average.copy_(state[f"ema.{index}"])
            self.ema.updates = self.step
        self._look_at_clock()
        of = f" of {self.plan.steps}" if self.plan.seconds is None else ""
        self.ctx.logger.info("%s continues at step %d%s.", self.stage.name, self.step, of)
        return False

    # One step

    def _seed(self, what: str, number: int) -> None:
        """Seed dropout and the like; every process of a launch has draws of its own."""
        if self._recording_now:  # each replay is seeded before it begins
            return
        share = (distributed.rank(),) if distributed.rank() else ()
        torch.manual_seed(derive(self.ctx.seed, self.stage.name, what, self.step, number, *share))

    def _gradients(
        self,
        batch: Batch,
        loss: Callable[[Batch], torch.Tensor],
        optimizer: torch.optim.Optimizer,
        parameters: Iterable[torch.Tensor],
        dropout: str,
    ) -> torch.Tensor:
        """The mean loss over the step's samples, after its gradients are taken, in micro-batches that the memory holds."""

        def attempt(parts: int) -> torch.Tensor:
            optimizer.zero_grad(set_to_none=True)
            total = torch.zeros((), device=self.device)
            for number, (piece, share) in enumerate(micro_batches(batch, parts, self.plan.batch)):
                self._seed(dropout, number)
                with autocast(self.device):
                    value = loss(piece)
                torch.autograd.backward(value * share)
                total += value.detach().float() * share
            return total

        samples = len(next(iter(batch.values())))
        total = attempt(1) if self._recording_now else self.portions.fit(attempt, samples)
        sum_over_processes([*(p.grad for p in parameters), total])
        return total

    def _train_opponent(self, batch: Batch) -> None:
        opponent = self.stage.opponent
        if opponent is None or self.step < opponent.start:
            return
        optimizer = self.optimizers["rival_optimizer"]

        def loss(piece: Batch) -> torch.Tensor:
            return opponent.loss(self.stage.module, opponent.module, piece)

        self._gradients(batch, loss, optimizer, opponent.module.parameters(), "rival")
        optimizer.step()

    def _look_at_clock(self) -> None:
        if self.plan.seconds is not None:
            self.spent = of_first_process(self.elapsed / self.plan.seconds, self.device)

    def _update(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Loss and gradient norm of a batch, after the weights and their averages have moved."""
        loss = self._gradients(
            batch,
            lambda piece: self.stage.loss(self.trained, piece, self.step),
            self.optimizer,
            self.parameters,
            "dropout",
        )
        norm = nn.utils.clip_grad_norm_(self.parameters, self.plan.clip or math.inf)
        self.optimizer.step()
        if self.ema is not None:
            self.ema.fold()
        return loss, norm.detach().to(loss)

    def _record(self, batch: Batch) -> None:
        """Record a step, after some that were launched one by one; where that cannot be done, go on so."""
        self._launched += 1
        if not self._records or self._launched <= LAUNCHED or self.portions.parts > 1:
            return
        self._records = False  # tried once
        self.batches.settle()
        self.optimizer.zero_grad(set_to_none=True)
        self._recording_now = True
        _set(self.optimizer, capturable=True)  # only now: torch warns of launched steps with it
        try:
            self.recording = Recording(self._update, batch)
        except RuntimeError as error:
            reason = str(error).strip().split("\n")[0]
            self.ctx.logger.warning("%s: steps are launched one by one, which is slower (%s).", self.stage.name, reason)
            self.optimizer.zero_grad(set_to_none=True)
        finally:
            self._recording_now = False
            _set(self.optimizer, capturable=False)

    def _launch_again(self) -> None:
        """Give the memory of a recorded step back."""
        self.recording = None
        self.optimizer.zero_grad(set_to_none=True)
        torch.cuda.empty_cache()
        self.ctx.logger.warning("%s: out of memory, steps are launched one by one, which is slower.", self.stage.name)

    def take_step(self) -> None:
        """One optimiser step; its loss stays on the device until :meth:`check`."""
        batch = self.batches.take(self.step)
        self.lr = self.plan.lr_at(self.step, self.spent)
        for group in self.optimizer.param_groups:
            if isinstance(group["lr"], torch.Tensor):
                group["lr"].fill_(self.lr)
            else:
                group["lr"] = self.lr
        if self.ema is not None:
            self.ema.advance()
        if self.recording is None:
            self._record(batch)
        if self.recording is None:
            loss, norm = self._update(batch)
        else:
            self._seed("dropout", 0)
            loss, norm = self.recording(batch)
        self._train_opponent(batch)
        self.pending.append((loss, norm))
        self.step += 1
        if self.queue is not None:
            self.queue.add()
        self._look_at_clock()

    def check(self) -> None:
        """Take the losses off the device and look at them; done now and then, because it waits for the device.

        Raises:
            UserError: a loss or gradient was not finite.
        """
        if not self.pending:
            return
        losses, norms = torch.stack([torch.stack(pair) for pair in self.pending]).cpu().unbind(1)  # one copy
        bad = (~(losses.isfinite() & norms.isfinite())).nonzero().flatten()
        if len(bad):
            at = self.step - len(self.pending) + int(bad[0])
            what = "loss" if not losses[bad[0]].isfinite() else "gradient"
            rate = self.lr if self.plan.seconds is not None else self.plan.lr_at(at)
            kept = f" The last checkpoint in {self.folder.folder} is kept." if self.folder.folder else ""
            raise UserError(
                f"{self.stage.name}: the {what} was not finite at step {at} with learning rate {rate:.3g}: "
                f"lower the learning rate or lengthen the warm-up.{kept}"
            )
        self.pending.clear()
        self.losses += losses.tolist()

    # What is kept

    def validate(self) -> dict[str, float]:
        """Figures of the averaged weights, which are kept when their "val_loss" is the best so far; {} without validation."""
        figures: dict[str, float] = {}
        with self._averaged(), torch.no_grad():
            self.stage.module.eval()
            if self.stage.validate is not None:
                figures = self._figures(self.stage.validate)
                value = figures["val_loss"] = of_first_process(float(figures["val_loss"]), self.device)
                if self.best_loss is None or value < self.best_loss:
                    self.best_loss, self.best_step = value, self.step
                    self.best = self._weights()
            self._call_watch()
            self.stage.module.train()
        return figures

    def _figures(self, validate: Callable[[nn.Module], float | dict[str, float]]) -> dict[str, float]:
        """What ``validate`` says; where memory runs out, once more without what a recorded step holds of it."""
        while True:
            try:
                with autocast(self.device):
                    found = validate(self.stage.module)
                return dict(found) if isinstance(found, dict) else {"val_loss": found}
            except torch.OutOfMemoryError:
                if self.recording is None:
                    raise
            self._launch_again()

    def _call_watch(self) -> None:
        """Let ``Context.watch`` score with the weights as they are; the clock of a wall-clock budget stands still."""
        before = self.stage.watched_from
        if self.ctx.watch is None or before is None or distributed.rank() > 0:
            return
        start = time.perf_counter()
        done = self.step / self.plan.steps if self.plan.seconds is None else min(1.0, self.spent)
        self.ctx.watch(before + (1 - before) * done)
        self.begin += time.perf_counter() - start

    def keep_last(self) -> None:
        """Keep the averaged weights as they are now, unless a validation has chosen some."""
        if self.stage.validate is None or self.best is None:
            with self._averaged():
                self.best = self._weights()
            self.best_step = self.step

    def _weights(self) -> dict[str, torch.Tensor]:
        return {key: value.detach().to("cpu", copy=True) for key, value in self.stage.module.state_dict().items()}

    def _averaged(self) -> AbstractContextManager[None]:
        return nullcontext() if self.ema is None else self.ema.in_place()


def _set(optimizer: torch.optim.Optimizer, *, capturable: bool) -> None:
    for group in optimizer.param_groups:
        group["capturable"] = capturable


def _load_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor]) -> None:
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in tensors.items():
        index, _, name = key.partition(".")
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    for weight, moments in optimizer.state.items():  # fused kernels take it that both lie alike; a file has one layout
        for name, value in moments.items():
            if value.shape == weight.shape and weight.ndim:
                moments[name] = torch.empty_like(weight).copy_(value)
