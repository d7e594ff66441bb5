"""The one training loop of every torch method.

A method describes a stage (:class:`Stage`): the module to train, how many samples there are, how a step's random draws are
made, the loss, and how it is validated. :func:`train_stage` does the rest: device and mixed precision (accelerate),
AdamW or Adam, per-step warm-up and cosine schedule, clipping, accumulation, EMA, validation, the best weights, checkpoints.

Every random number of step ``s`` comes from ``derive(seed, stage, ..., s)``, never from the state of a generator that
lives across steps. A run that was killed and continued therefore ends in the same bits as one that was not.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from adbench.errors import UserError
from adbench.methods.base import FitReport
from adbench.methods.checkpoints import StageFolder
from adbench.seeds import derive

if TYPE_CHECKING:
    from adbench.context import Context

Batch = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Plan:
    """How long and how a stage is trained.

    Attributes:
        steps: optimiser steps.
        batch: samples a step (over all devices and micro-batches).
        lr: peak learning rate.
        optimizer: "adamw" or "adam".
        weight_decay: of AdamW.
        schedule: "cosine" (to ``final_lr`` times the peak) or "constant", after the warm-up.
        warmup: steps of linear warm-up; the first step has ``lr / warmup``, never 0.
        final_lr: end of the cosine as a share of the peak.
        clip: largest gradient norm; 0 does not clip.
        ema: decay of the exponential moving average of the weights; 0 keeps none.
        accumulate: micro-batches a step, to save memory; doubled by itself when a CUDA device runs out.
        validate_every: steps between validations; 0 means about ten in all.
    """

    steps: int
    batch: int
    lr: float
    optimizer: str = "adamw"
    weight_decay: float = 0.0
    schedule: str = "cosine"
    warmup: int = 0
    final_lr: float = 0.0
    clip: float = 1.0
    ema: float = 0.0
    accumulate: int = 1
    validate_every: int = 0

    def lr_at(self, step: int) -> float:
        """Learning rate of optimiser step ``step`` (0-based)."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        if self.schedule == "constant":
            return self.lr
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.lr * (self.final_lr + (1 - self.final_lr) * 0.5 * (1 + math.cos(math.pi * done)))

    @property
    def validation_interval(self) -> int:
        return self.validate_every or max(1, -(-self.steps // 10))


@dataclass
class Opponent:
    """A second network trained in turn with the first (the discriminator of a GAN).

    Attributes:
        module: its network.
        loss: (module, opponent, batch) -> scalar, minimised over the opponent alone.
        start: first step at which it learns.
        lr: its learning rate, constant.
    """

    module: nn.Module
    loss: Callable[[nn.Module, nn.Module, Batch], torch.Tensor]
    start: int
    lr: float


@dataclass
class Stage:
    """What is trained.

    Attributes:
        name: names the stage in progress, curves, seeds and the checkpoint folder.
        module: trained in place; everything that needs a gradient runs through its ``forward``.
        samples: training samples to draw from.
        draw: (indices (B,), generator) -> tensors with first axis B. Every random draw of the step is made here, from the
            CPU generator, for the whole batch at once: what is drawn does not depend on micro-batches or on the device.
        loss: (module, batch, step) -> scalar mean over the samples of ``batch``, which may be a part of a step's batch.
        validate: (module in evaluation mode with the averaged weights) -> figure to minimise, or None: keep the last weights.
        plan: how.
        identity: whatever else the numbers depend on; a checkpoint with another identity is not continued.
        opponent: see :class:`Opponent`.
    """

    name: str
    module: nn.Module
    samples: int
    draw: Callable[[torch.Tensor, torch.Generator], Batch]
    loss: Callable[[nn.Module, Batch, int], torch.Tensor]
    plan: Plan
    validate: Callable[[nn.Module], float] | None = None
    identity: Mapping[str, Any] = field(default_factory=dict)
    opponent: Opponent | None = None


@dataclass
class StageResult:
    """What came out of a stage; the module holds the weights that were kept.

    Attributes:
        steps: optimiser steps.
        curve: logged points: step, loss (mean since the last point), lr, and val_loss where it was taken.
        best_step: optimiser steps done when the kept weights were taken.
        best_loss: their validation figure; None without validation.
        earlier_seconds: time spent on the stage by interrupted attempts that it went on from.
    """

    steps: int
    curve: list[dict[str, float]]
    best_step: int
    best_loss: float | None
    earlier_seconds: float


def generator(seed: int, *names: object) -> torch.Generator:
    """A CPU generator seeded by :func:`adbench.seeds.derive`."""
    return torch.Generator().manual_seed(derive(seed, *names))


def forked() -> Any:
    """Within the block torch's global generators may be seeded; after it they are as they were."""
    return torch.random.fork_rng(devices=[torch.cuda.current_device()] if torch.cuda.is_initialized() else [])


@contextmanager
def seeded(seed: int, *names: object) -> Iterator[None]:
    """Torch's global generators seeded within the block and put back after it (initial weights, dropout)."""
    with forked():
        torch.manual_seed(derive(seed, *names))
        yield


def batch_indices(seed: int, stage: str, step: int, batch: int, samples: int) -> torch.Tensor:
    """The samples of one step: consecutive pieces of shuffled passes over the data, as a function of the step alone."""
    first = step * batch
    chosen = []
    for epoch in range(first // samples, (first + batch - 1) // samples + 1):
        order = torch.randperm(samples, generator=generator(seed, stage, "order", epoch))
        start = max(0, first - epoch * samples)
        chosen.append(order[start : first + batch - epoch * samples])
    return torch.cat(chosen)


def make_accelerator(device: str) -> Any:
    """An accelerate handle for ``device``: bf16 on CUDA devices that have it, float32 elsewhere.

    Under ``accelerate launch`` the launcher's device of this process is used; otherwise ``device``.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, PartialState

    target = torch.device(device)
    launched = bool(PartialState._shared_state) and PartialState().num_processes > 1
    if target.type == "cuda" and target.index is not None and not launched:
        torch.cuda.set_device(target)  # accelerate works on the current device
    if PartialState._shared_state and not launched and PartialState().device.type != target.type:
        AcceleratorState._reset_state(reset_partial_state=True)  # an earlier fit of this process ran elsewhere
    bf16 = target.type == "cuda" and torch.cuda.is_bf16_supported()
    return Accelerator(cpu=target.type == "cpu", mixed_precision="bf16" if bf16 else "no")


def _micro_batches(batch: Batch, parts: int) -> Iterator[tuple[Batch, float]]:
    """``batch`` in ``parts`` pieces, each with its share of the samples."""
    count = len(next(iter(batch.values())))
    size = -(-count // parts)
    for start in range(0, count, size):
        piece = {key: value[start : start + size] for key, value in batch.items()}
        yield piece, min(size, count - start) / count


class _Run:
    """The state of one stage while it is trained."""

    def __init__(self, stage: Stage, ctx: Context) -> None:
        from diffusers.training_utils import EMAModel

        self.stage, self.ctx, self.plan = stage, ctx, stage.plan
        self.accelerator = make_accelerator(ctx.device)
        self.device = self.accelerator.device
        # Convolutions in bf16 are fastest with channels last; on a CPU the plain layout is.
        layout = torch.channels_last if self.device.type == "cuda" else torch.contiguous_format
        stage.module.to(device=self.device, memory_format=layout)  # type: ignore[call-overload]
        self.module = self.accelerator.prepare_model(stage.module)
        self.parameters = [p for p in stage.module.parameters() if p.requires_grad]
        kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[self.plan.optimizer]
        self.optimizer = kind(self.parameters, lr=self.plan.lr, weight_decay=self.plan.weight_decay)
        self.ema = EMAModel(self.parameters, decay=self.plan.ema, foreach=True) if self.plan.ema > 0 else None
        self.rival: tuple[nn.Module, torch.optim.Optimizer] | None = None
        if stage.opponent is not None:
            stage.opponent.module.to(self.device)
            adversary = self.accelerator.prepare_model(stage.opponent.module)
            self.rival = (
                adversary,
                torch.optim.Adam(stage.opponent.module.parameters(), lr=stage.opponent.lr, betas=(0.5, 0.9)),
            )
        self.step = 0
        self.begin, self.earlier_seconds = time.perf_counter(), 0.0
        self.parts = self.plan.accumulate
        self.curve: list[dict[str, float]] = []
        self.best: dict[str, torch.Tensor] | None = None
        self.best_step, self.best_loss = 0, None if stage.validate is None else math.inf
        self.pending: list[tuple[torch.Tensor, torch.Tensor]] = []  # loss and gradient norm, still on the device
        self.losses: list[float] = []  # since the last point of the curve
        self.folder = StageFolder(
            ctx.workdir / stage.name if ctx.workdir is not None else None,
            {"seed": ctx.seed, "samples": stage.samples, **stage.identity, "plan": self._plan_identity()},
            ctx.logger,
        )

    def _plan_identity(self) -> dict[str, Any]:
        return {key: value for key, value in asdict(self.plan).items() if key != "accumulate"}  # changes no number

    # Checkpoints

    def _state(self) -> dict[str, torch.Tensor]:
        tensors = {f"model.{key}": value for key, value in self.stage.module.state_dict().items()}
        for index, values in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{key}": value for key, value in values.items()}
        if self.ema is not None:
            tensors |= {f"ema.{index}": value for index, value in enumerate(self.ema.shadow_params)}
        if self.rival is not None and self.stage.opponent is not None:
            tensors |= {f"rival.{key}": value for key, value in self.stage.opponent.module.state_dict().items()}
            for index, values in self.rival[1].state_dict()["state"].items():
                tensors |= {f"rival_optimizer.{index}.{key}": value for key, value in values.items()}
        return tensors

    def save(self, *, finished: bool = False) -> None:
        if not self.accelerator.is_main_process:
            return
        figures = {
            "step": self.step,
            "finished": finished,
            "curve": self.curve,
            "losses": self.losses,
            "best_step": self.best_step,
            "best_loss": None if self.best_loss == math.inf else self.best_loss,
            "seconds": self.earlier_seconds + time.perf_counter() - self.begin,
        }
        self.folder.write(self.step, figures, None if finished else self._state(), self.best, self.best_step)

    def restore(self) -> bool:
        """Continue from the checkpoint, if there is one; True when the stage had been finished."""
        found = self.folder.read()
        if found is None:
            return False
        figures, state, best = found
        self.step, self.curve, self.best_step = figures["step"], figures["curve"], figures["best_step"]
        self.losses = figures["losses"]
        if self.stage.validate is not None:
            self.best_loss = math.inf if figures["best_loss"] is None else figures["best_loss"]
        self.best = best or None
        self.earlier_seconds = float(figures["seconds"])
        if figures["finished"]:
            self.stage.module.load_state_dict(best)
            return True

        def part(prefix: str) -> dict[str, torch.Tensor]:
            return {key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)}

        self.stage.module.load_state_dict(part("model."))
        _load_optimizer(self.optimizer, part("optimizer."))
        if self.ema is not None:
            for index, shadow in enumerate(self.ema.shadow_params):
                shadow.copy_(state[f"ema.{index}"])
            self.ema.optimization_step = self.step
        if self.rival is not None and self.stage.opponent is not None:
            self.stage.opponent.module.load_state_dict(part("rival."))
            _load_optimizer(self.rival[1], part("rival_optimizer."))
        self.ctx.logger.info("%s continues at step %d of %d.", self.stage.name, self.step, self.plan.steps)
        return False

    # One step

    def _backward(self, batch: Batch) -> torch.Tensor:
        """Gradients of the mean loss over ``batch``; halves the micro-batch when a CUDA device runs out of memory."""
        while True:
            try:
                self.optimizer.zero_grad(set_to_none=True)
                total = torch.zeros((), device=self.device)
                for number, (piece, share) in enumerate(_micro_batches(batch, self.parts)):
                    torch.manual_seed(derive(self.ctx.seed, self.stage.name, "dropout", self.step, number))
                    with self.accelerator.autocast():
                        loss = self.stage.loss(self.module, piece, self.step)
                    self.accelerator.backward(loss * share)
                    total += loss.detach().float() * share
                return total
            except torch.OutOfMemoryError:
                if self.parts >= len(next(iter(batch.values()))):
                    raise UserError(
                        f"{self.stage.name}: one sample is more than {self.ctx.device} has memory for: choose a smaller preset or image size."
                    ) from None
                self.parts *= 2
                self.optimizer.zero_grad(set_to_none=True)
                torch.cuda.empty_cache()
                self.ctx.logger.warning(
                    "%s: out of memory, going on with %d micro-batches a step.", self.stage.name, self.parts
                )

    def _train_rival(self, batch: Batch) -> None:
        opponent = self.stage.opponent
        if opponent is None or self.rival is None or self.step < opponent.start:
            return
        module, optimizer = self.rival
        optimizer.zero_grad(set_to_none=True)
        for number, (piece, share) in enumerate(_micro_batches(batch, self.parts)):
            torch.manual_seed(derive(self.ctx.seed, self.stage.name, "rival", self.step, number))
            with self.accelerator.autocast():
                loss = opponent.loss(self.module, module, piece)
            self.accelerator.backward(loss * share)
        optimizer.step()

    def take_step(self) -> None:
        plan, name = self.plan, self.stage.name
        indices = batch_indices(self.ctx.seed, name, self.step, plan.batch, self.stage.samples)
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        with torch.no_grad():
            batch = self.stage.draw(indices, generator(self.ctx.seed, name, "draw", self.step))
        batch = {key: value[rank::world].to(self.device) for key, value in batch.items()}
        for group in self.optimizer.param_groups:
            group["lr"] = plan.lr_at(self.step)
        loss = self._backward(batch)
        norm = nn.utils.clip_grad_norm_(self.parameters, plan.clip or math.inf)
        self.optimizer.step()
        if self.ema is not None:
            self.ema.step(self.parameters)
        self._train_rival(batch)
        self.pending.append((loss, norm.detach()))
        self.step += 1

    def check(self) -> None:
        """Take the losses off the device and look at them; done now and then, because it waits for the device.

        Raises:
            UserError: a loss or gradient was not finite.
        """
        if not self.pending:
            return
        losses = torch.stack([pair[0] for pair in self.pending]).cpu()
        norms = torch.stack([pair[1].to(losses) for pair in self.pending])
        bad = (~(losses.isfinite() & norms.isfinite())).nonzero().flatten()
        if len(bad):
            at = self.step - len(self.pending) + int(bad[0])
            what = "loss" if not losses[bad[0]].isfinite() else "gradient"
            kept = f" The last checkpoint in {self.folder.folder} is kept." if self.folder.folder else ""
            raise UserError(
                f"{self.stage.name}: the {what} was not finite at step {at} with learning rate {self.plan.lr_at(at):.3g}: "
                f"lower the learning rate or lengthen the warm-up.{kept}"
            )
        self.pending.clear()
        self.losses += losses.tolist()

    def validate(self) -> float | None:
        """Figure of the averaged weights, which are kept when it is the best so far."""
        if self.stage.validate is None:
            return None
        with self._averaged(), torch.no_grad(), self.accelerator.autocast():
            self.stage.module.eval()
            value = float(self.stage.validate(self.stage.module))
            self.stage.module.train()
            if self.best_loss is None or value < self.best_loss:
                self.best_loss, self.best_step = value, self.step
                self.best = {key: item.detach().cpu().clone() for key, item in self.stage.module.state_dict().items()}
        return value

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        if self.ema is None:
            yield
            return
        self.ema.store(self.parameters)
        self.ema.copy_to(self.parameters)
        try:
            yield
        finally:
            self.ema.restore(self.parameters)


def _load_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor]) -> None:
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in tensors.items():
        index, _, name = key.partition(".")
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def train_stage(stage: Stage, ctx: Context) -> StageResult:
    """Train ``stage.module`` in place and leave the kept weights in it, in evaluation mode.

    With ``ctx.workdir`` the stage keeps its checkpoints in the folder ``stage.name`` there and goes on from them; a finished
    stage is not trained again. Without it nothing touches the disk.

    Raises:
        UserError: a loss that is not finite (with step and learning rate), a full disk, a device too small for one sample.
    """
    with forked():
        run = _Run(stage, ctx)
        first = 0
        if not run.restore():
            stage.module.train()
            first = run.step
            _loop(run)
            if stage.validate is None or run.best is None:
                with run._averaged():
                    state = stage.module.state_dict()
                    run.best = {key: value.detach().cpu().clone() for key, value in state.items()}
                run.best_step = run.step
            run.save(finished=True)
            stage.module.load_state_dict(run.best)
    ctx.logger.debug("%s: steps %d to %d.", stage.name, first, run.step)
    stage.module.eval()
    return StageResult(run.step, run.curve, run.best_step, run.best_loss, run.earlier_seconds)


def _loop(run: _Run) -> None:
    plan, progress, name = run.plan, run.ctx.progress, run.stage.name
    interval = plan.validation_interval
    log_every = max(1, min(interval, plan.steps // 20, 100))
    saved = shown = time.monotonic()
    shown -= 1.0
    val: dict[str, float] = {}
    while run.step < plan.steps:
        run.take_step()
        validates = run.step % interval == 0 or run.step == plan.steps
        now = time.monotonic()
        saves = now - saved >= run.ctx.checkpoint_seconds and run.step < plan.steps
        # Points of the curve lie at fixed steps, so that a continued run logs the same ones.
        logs = validates or run.step % log_every == 0
        if not (logs or saves or now - shown >= 1.0):
            continue
        run.check()
        lr = plan.lr_at(run.step - 1)
        recent = sum(run.losses) / max(1, len(run.losses))
        if logs:
            point = {"step": run.step, "loss": recent, "lr": lr}
            if validates and (value := run.validate()) is not None:
                point["val_loss"] = value
                val = {"val": value}
            run.curve.append(point)
            run.losses = []
        progress.update(name, run.step, plan.steps, loss=recent, lr=lr, **val)
        shown = time.monotonic()
        if saves:
            run.save()
            saved = time.monotonic()


def report(stages: list[tuple[str, StageResult]], modules: list[nn.Module]) -> FitReport:
    """The :class:`~adbench.methods.base.FitReport` of a method trained in ``stages`` that consists of ``modules``."""
    best: dict[str, float] = {}
    for name, result in stages:
        best[f"{name}.step"] = result.best_step
        if result.best_loss is not None:
            best[f"{name}.val_loss"] = result.best_loss
    return FitReport(
        steps=sum(result.steps for _, result in stages),
        parameters=sum(p.numel() for module in modules for p in module.parameters()),
        best=best,
        curves={name: result.curve for name, result in stages},
        earlier_seconds=sum(result.earlier_seconds for _, result in stages),
    )
