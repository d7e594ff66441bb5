"""From a stage to its trained weights."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from adbench.methods.training.draws import forked
from adbench.methods.training.events import Events
from adbench.methods.training.plan import moment
from adbench.methods.training.run import Run
from adbench.methods.training.stage import Stage, StageResult
from adbench.utils import distributed

if TYPE_CHECKING:
    from adbench.context import Context


def train_stage(stage: Stage, ctx: Context) -> StageResult:
    """Train ``stage.module`` in place and leave the kept weights in it, in evaluation mode.

    With ``ctx.workdir`` the stage keeps its checkpoints in the folder ``stage.name`` there and goes on from them; a finished
    stage is not trained again. Without it nothing touches the disk.

    Raises:
        UserError: a loss that is not finite (with step and learning rate), a full disk, a device too small for one sample.
    """
    with forked():
        run = Run(stage, ctx)
        first = 0
        if not run.restore():
            stage.module.train()
            first = run.step
            _loop(run)
            run.keep_last()
            run.save(finished=True)
            assert run.best is not None
            stage.module.load_state_dict(run.best)
    ctx.logger.debug("%s: steps %d to %d.", stage.name, first, run.step)
    stage.module.eval()
    note = ""
    if stage.plan.seconds is not None:
        note = (
            f"{stage.name} was trained for {stage.plan.seconds / 60:g} minutes, which were {run.step} steps here: "
            "this number, and so every number of the fit, depends on the machine."
        )
    return StageResult(run.step, run.curve, run.best_step, run.best_loss, run.earlier_seconds, note)


def _loop(run: Run) -> None:
    plan, progress, name = run.plan, run.ctx.progress, run.stage.name
    wanted = run.ctx.tensorboard and run.ctx.workdir is not None and distributed.rank() == 0
    events = Events(run.ctx.workdir / name / "tensorboard" if wanted and run.ctx.workdir else None, run.step)
    saved = shown = time.monotonic()
    shown -= 1.0
    val: dict[str, float] = {}
    finished = False
    try:
        while not finished:
            before = run.spent
            run.take_step()
            due = moment(plan, run.step, before, run.spent)
            finished = due.finished
            now = time.monotonic()
            saves = now - saved >= run.ctx.checkpoint_seconds and not finished
            if not (due.logs or saves or now - shown >= 1.0):
                continue
            run.check()
            recent = sum(run.losses) / max(1, len(run.losses))
            if due.logs:
                point = {"step": run.step, "loss": recent, "lr": run.lr}
                if due.validates and (value := run.validate()) is not None:
                    point["val_loss"] = value
                    val = {"val": value}
                run.curve.append(point)
                events.add(point)
                run.losses = []
            done, total = run.done(finished)
            progress.update(name, done, total, loss=recent, lr=run.lr, **val)
            shown = time.monotonic()
            if saves:
                run.save()
                saved = time.monotonic()
    finally:
        events.close()
