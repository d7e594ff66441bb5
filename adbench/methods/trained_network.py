"""A method that is one network trained on healthy slices: the way from its batches and its loss to a fit and to maps."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar

from adbench.methods.base import FitReport, Method, Resources, forward_of
from adbench.methods.common.params import NetworkParams
from adbench.params import ParamSet

if TYPE_CHECKING:
    import torch
    from torch import nn

    from adbench.datasets.slices import SliceBatch, SliceSet
    from adbench.methods.common.preprocess import SliceLoader
    from adbench.methods.training import Batch


class TrainedNetwork(Method):
    """A method that is one network, which the shared training loop fits with Adam; its weights are its whole state.

    A subclass says how its network is built, what a batch holds, what its loss is, and how a slice is scored. Checkpoints,
    resuming to the same numbers, precision, several processes, and the choice of the best weights by the loss on ``val``
    come with it.

    Class attributes:
        gpu_memory_gb: GiB of GPU memory that a run needs.
        stage: name of the training, for progress, curves, seeds and checkpoints.
        val_slices: validation slices at most, evenly spread.
        val_batch: validation slices at a time; their random draws depend on it.
    """

    params: NetworkParams
    _network: nn.Module
    gpu_memory_gb: ClassVar[float] = 2.0
    stage: ClassVar[str] = "network"
    val_slices: ClassVar[int] = 512
    val_batch: ClassVar[int] = 64

    @abstractmethod
    def build(self) -> nn.Module:
        """The network with fresh weights."""

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
        """Scalar mean over the samples of ``batch``, for training and validation.

        A function of the two alone, made of tensors that lie on their device: on a GPU a step is recorded once and replayed
        (:attr:`adbench.methods.training.Stage.steady`).
        """

    @abstractmethod
    def score_and_reconstruct(self, batch: SliceBatch) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Maps and, if it makes any, pseudo-healthy images of one pass, both (B, 1, H, W)."""

    def apply(self, *inputs: torch.Tensor) -> torch.Tensor:
        """What the network says of ``inputs``: its first output, as :meth:`infer` gives it."""
        return forward_of(self)(self._network, *inputs)[0]

    def score(self, batch: SliceBatch) -> torch.Tensor:
        return self.score_and_reconstruct(batch)[0]

    def reconstruct(self, batch: SliceBatch) -> torch.Tensor | None:
        return self.score_and_reconstruct(batch)[1]

    def state(self) -> dict[str, torch.Tensor]:
        return dict(self._network.state_dict())

    def load_state(self, state: dict[str, torch.Tensor]) -> None:
        from adbench.methods.common.preprocess import frozen

        network = self.build()
        network.load_state_dict(state)
        self._network = frozen(network, self.ctx.device)

    @classmethod
    def resources(cls, params: ParamSet) -> Resources:
        return Resources(cpus=2.0, gpu_memory_gb=cls.gpu_memory_gb)

    def fit(self, train: SliceSet, val: SliceSet | None) -> FitReport:
        """Build the network and train it; the best weights by the validation loss are kept."""
        import torch

        from adbench.methods import training
        from adbench.methods.common.preprocess import SliceLoader, pieces

        p, ctx, name = self.params, self.ctx, self.trained_by or self.name
        with training.seeded(ctx.seed, name, "init"):
            self._network = self.build()
        slices = SliceLoader(train, p.image_size, ctx.device, standardise=p.standardise)
        held_out: SliceLoader | None = None
        if val is not None and len(val):
            held_out = SliceLoader(val.limited(self.val_slices), p.image_size, ctx.device, standardise=p.standardise)

        portions = training.Portions(f"{self.stage}, validation", ctx.logger)

        def validate(module: nn.Module) -> float:
            assert held_out is not None
            parts = pieces(len(held_out), self.val_batch)
            losses = []
            for indices in parts:
                generator = training.generator(ctx.seed, name, "validate", int(indices[0]))
                batch = self.make_batch(held_out, indices, generator, training=False)
                losses.append(portions.mean(lambda part: self.loss(module, part), batch))
            values: list[float] = torch.stack(losses).tolist()  # waits for the device once
            return sum(value * len(part) for value, part in zip(values, parts, strict=True)) / len(held_out)

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
                "params": p.trained_values,
                "train": train.digest,
                "val": val.digest if val else None,
            },
            steady=True,
        )
        return training.report([(self.stage, training.train_stage(stage, ctx))], [self._network])
