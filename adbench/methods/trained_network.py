"""A method that is one network trained on healthy slices: the way from its batches and its loss to a fit."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar

from adbench.methods.base import FitReport, NetworkMethod
from adbench.methods.common.params import NetworkParams

if TYPE_CHECKING:
    import torch
    from torch import nn

    from adbench.datasets.slices import SliceSet
    from adbench.methods.common.preprocess import SliceLoader
    from adbench.methods.training import Batch


class TrainedNetwork(NetworkMethod):
    """A :class:`~adbench.methods.base.NetworkMethod` that the shared training loop fits with Adam.

    A subclass says how its network is built, what a batch holds and what its loss is. Checkpoints, resuming to the same
    numbers, mixed precision, several processes, and the choice of the best weights by the loss on ``val`` come with it.

    Class attributes:
        stage: name of the training, for progress, curves, seeds and checkpoints.
        val_slices: validation slices at most, evenly spread.
        val_batch: validation slices at a time; their random draws depend on it.
    """

    params: NetworkParams
    stage: ClassVar[str] = "network"
    val_slices: ClassVar[int] = 512
    val_batch: ClassVar[int] = 64

    @abstractmethod
    def make_batch(
        self, slices: SliceLoader, indices: torch.Tensor, generator: torch.Generator, *, training: bool
    ) -> Batch:
        """The tensors of one batch, each with first axis B.

        Args:
            slices: ``slices.get(indices)`` gives images (B, 1, S, S) in [0, 1] and brain masks, on the device.
            indices: (B,) positions.
            generator: the CPU generator of every random draw of this batch.
            training: False in validation: nothing is augmented.
        """

    @abstractmethod
    def loss(self, network: nn.Module, batch: Batch) -> torch.Tensor:
        """Scalar mean over the samples of ``batch``, for training and validation."""

    def fit(self, train: SliceSet, val: SliceSet | None) -> FitReport:
        """Build the network and train it; the best weights by the validation loss are kept."""
        from adbench.methods import training
        from adbench.methods.common.preprocess import SliceLoader, pieces

        p, ctx = self.params, self.ctx
        with training.seeded(ctx.seed, self.name, "init"):
            self._network = self.build()
        slices = SliceLoader(train, p.image_size, ctx.device, standardise=p.standardise)
        held_out: SliceLoader | None = None
        if val is not None and len(val):
            held_out = SliceLoader(val.limited(self.val_slices), p.image_size, ctx.device, standardise=p.standardise)

        def validate(module: nn.Module) -> float:
            assert held_out is not None
            total = 0.0
            for indices in pieces(len(held_out), self.val_batch):
                generator = training.generator(ctx.seed, self.name, "validate", int(indices[0]))
                batch = self.make_batch(held_out, indices, generator, training=False)
                total += float(self.loss(module, batch)) * len(indices)
            return total / len(held_out)

        stage = training.Stage(
            name=self.stage,
            module=self._network,
            samples=len(slices),
            draw=lambda indices, generator: self.make_batch(slices, indices, generator, training=True),
            loss=lambda module, batch, step: self.loss(module, batch),
            validate=validate if held_out else None,
            plan=training.Plan(
                steps=p.length(len(slices), p.steps, p.batch),
                seconds=p.seconds(),
                batch=p.batch,
                lr=p.lr,
                optimizer="adam",
                schedule=p.lr_schedule,
                warmup=p.warmup,
                clip=p.clip,
                ema=p.ema,
            ),
            identity={
                "params": p.model_dump(mode="json"),
                "train": train.digest,
                "val": val.digest if val else None,
            },
            upcoming=slices.prefetch,
        )
        return training.report([(self.stage, training.train_stage(stage, ctx))], [self._network])
