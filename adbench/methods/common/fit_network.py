"""Fitting one network on healthy slices: what autoencoders and diffusion models have in common around the training loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from adbench.methods import training
from adbench.methods.base import FitReport
from adbench.methods.common.prefetch import Pictures

if TYPE_CHECKING:
    from adbench.context import Context
    from adbench.datasets.slices import SliceSet

# (slices, indices (B,), generator, vary) -> the tensors of a batch; ``vary`` is False in validation: nothing is augmented.
MakeBatch = Callable[[Pictures, torch.Tensor, torch.Generator, bool], training.Batch]


def fit_network(
    stage: str,
    method: str,
    network: nn.Module,
    make: MakeBatch,
    loss: Callable[[nn.Module, training.Batch], torch.Tensor],
    params: Any,
    data: tuple[SliceSet, SliceSet | None],
    ctx: Context,
    *,
    schedule: str,
    val_slices: int = 512,
    val_batch: int = 64,
) -> FitReport:
    """Train ``network`` in place with Adam; the best weights by the validation loss are kept.

    Args:
        stage: name of the stage, for progress, curves, seeds and checkpoints.
        method: name of the method, for the seeds of validation.
        network: trained in place.
        make: makes batches.
        loss: scalar mean over the samples of a batch, for training and validation.
        params: the method's parameters: image_size, standardise, steps, epochs, minutes, batch, lr, warmup, clip, ema.
        data: training slices, and validation slices or None.
        ctx: device, seed, workdir, progress.
        schedule: of the learning rate, "constant" or "cosine".
        val_slices: validation slices at most, evenly spread.
        val_batch: validation slices at a time; their draws depend on it.
    """
    train, val = data
    size = (params.image_size, params.image_size)
    pictures = Pictures(train, size, ctx.device, standardise=params.standardise)
    healthy = None
    if val is not None and len(val):
        healthy = Pictures(val.limited(val_slices), size, ctx.device, standardise=params.standardise)

    def validate(module: nn.Module) -> float:
        assert healthy is not None
        total = 0.0
        for start in range(0, len(healthy), val_batch):
            indices = torch.arange(start, min(start + val_batch, len(healthy)))
            generator = training.generator(ctx.seed, method, "validate", start)
            total += float(loss(module, make(healthy, indices, generator, False))) * len(indices)
        return total / len(healthy)

    result = training.train_stage(
        training.Stage(
            name=stage,
            module=network,
            samples=len(pictures),
            draw=lambda indices, generator: make(pictures, indices, generator, True),
            loss=lambda module, batch, step: loss(module, batch),
            validate=validate if healthy else None,
            plan=training.Plan(
                steps=params.length(len(pictures), params.steps, params.batch),
                seconds=params.seconds(),
                batch=params.batch,
                lr=params.lr,
                optimizer="adam",
                schedule=schedule,
                warmup=params.warmup,
                clip=params.clip,
                ema=params.ema,
            ),
            identity={
                "params": params.model_dump(mode="json"),
                "train": train.digest,
                "val": val.digest if val else None,
            },
            upcoming=pictures.expect,
        ),
        ctx,
    )
    return training.report([(stage, result)], [network])
