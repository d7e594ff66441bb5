"""What the pixel-space diffusion methods share: parameters, the UNet, training, per-slice noise."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import model_validator

from adbench.methods.base import FitReport, NetworkMethod
from adbench.methods.common.training_length import TrainedParams
from adbench.params import param

if TYPE_CHECKING:
    import torch
    from torch import nn

    from adbench.datasets.slices import SliceBatch, SliceSet


# What the tiny presets share: a network for two cores, 400 steps in standardised intensities, simplex noise.
TINY: dict[str, Any] = {
    "image_size": 96,
    "channels": (32, 64, 96),
    "attention": (False, False, False),
    "head_channels": 32,
    "stem": 3,
    "steps": 400,
    "lr": 1e-3,
    "warmup": 20,
    "decay": "cosine",
    "ema": 0.98,
    "augment": False,
    "standardise": True,
    "noise": "simplex",
    "sigma": 5.0,
}


class DiffusionParams(TrainedParams):
    image_size: int = param(
        128, "Side of the network's square grid; slices are resized to it.", unit="px", source="THOR", ge=32, le=512
    )
    channels: tuple[int, ...] = param(
        (128, 256, 256), "Channels by level; each level halves the grid.", source="THOR", min_length=1, max_length=6
    )
    attention: tuple[bool, ...] = param((False, True, True), "Levels with self-attention.", source="THOR", max_length=6)
    head_channels: int = param(256, "Channels of an attention head.", source="THOR", ge=8)
    res_blocks: int = param(1, "Residual blocks a level.", source="THOR", ge=1, le=4)
    stem: int = param(
        1,
        "The network sees squares of so many px folded into channels: 2 quarters the cost.",
        unit="px",
        source="adbench",
        ge=1,
        le=4,
    )
    timesteps: int = param(1000, "Length T of the noise schedule.", unit="steps", source="Ho 2020", ge=2, le=10_000)
    t_max: int | None = param(
        None,
        "Training draws steps below it; none: all T. Steps above the start are never visited at test.",
        unit="steps",
        source="adbench",
        ge=1,
    )
    schedule: Literal["linear", "cosine"] = param("linear", "How the noise grows.", source="THOR")
    target: Literal["x0", "epsilon"] = param(
        "epsilon", "What the network predicts: the clean slice (trained with L1) or the noise (L2).", source="THOR"
    )
    noise: Literal["gaussian", "simplex"] = param("gaussian", "Kind of noise, training and test.", source="THOR")
    octaves: int = param(6, "Octaves of the simplex noise.", source="AnoDDPM, THOR", ge=1, le=10)
    persistence: float = param(
        0.8, "Amplitude of a simplex octave relative to the one before.", source="AnoDDPM, THOR", gt=0, le=1
    )
    frequency: float = param(
        64.0,
        "Cell of the first simplex octave on a grid of 128 px; scaled with image_size.",
        unit="px",
        source="AnoDDPM, THOR",
        ge=2,
        le=512,
    )
    standardise: bool = param(
        False,
        "Every slice on one intensity scale: its brain's median at 0.4, its interquartile range 0.15 wide.",
        source="adbench",
    )
    steps: int = param(50_000, "Optimiser steps.", unit="steps", source="adbench", ge=1)
    batch: int = param(16, "Slices a step.", unit="slices", source="THOR", ge=1, le=4096)
    lr: float = param(1e-4, "Peak learning rate of Adam.", source="THOR", gt=0, le=1)
    warmup: int = param(100, "Linear warm-up.", unit="steps", source="adbench", ge=0)
    decay: Literal["constant", "cosine"] = param("constant", "Learning rate after warm-up.", source="adbench")
    ema: float = param(0.999, "Decay of the averaged weights, 0: none.", source="Ho 2020 (.9999)", ge=0, lt=1)
    clip: float = param(1.0, "Largest gradient norm, 0: not clipped.", source="adbench", ge=0)
    augment: bool = param(True, "Rotate ±10°, shift ±10 %, scale .9-1.1 and mirror training slices.", source="THOR")
    sigma: float = param(
        0.0, "Gaussian smoothing of the map, 0: none.", unit="px of the slice", source="adbench", ge=0, le=50
    )

    @model_validator(mode="after")
    def _network_fits(self) -> Self:
        unit = self.stem * 2 ** (len(self.channels) - 1)
        if self.image_size % unit:
            raise ValueError(f"image_size must be a multiple of {unit} (stem, and one halving a level)")
        if self.t_max is not None and self.t_max > self.timesteps:
            raise ValueError(f"t_max may not exceed timesteps ({self.timesteps})")
        if len(self.attention) != len(self.channels):
            raise ValueError("attention needs one entry a level of channels")
        if any(c % 32 for c in self.channels):
            raise ValueError("channels must be multiples of 32 (group normalisation)")
        pairs = zip(self.channels, (*self.attention[:-1], True), strict=True)  # the middle block always attends
        if any(attends and c % self.head_channels for c, attends in pairs):
            raise ValueError("head_channels must divide the channels of every level with attention and of the last one")
        return self

    @property
    def trained_steps(self) -> int:
        """Training draws t from [0, trained_steps)."""
        return self.t_max if self.t_max is not None else self.timesteps


def build_unet(params: DiffusionParams) -> nn.Module:
    """MONAI's ``DiffusionModelUNet``: ((B, 1, S, S), steps (B,)) -> (B, 1, S, S), with the pixels folded by ``stem``."""
    import torch.nn.functional as F
    from monai.networks.nets import DiffusionModelUNet
    from torch import nn

    stem = params.stem

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.unet = DiffusionModelUNet(
                spatial_dims=2,
                in_channels=stem * stem,
                out_channels=stem * stem,
                channels=params.channels,
                attention_levels=params.attention,
                num_res_blocks=params.res_blocks,
                num_head_channels=params.head_channels,
            )

        def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            return F.pixel_shuffle(self.unet(F.pixel_unshuffle(x, stem), t), stem)

    return Network()


class DiffusionMethod(NetworkMethod):
    """Trains a diffusion UNet on healthy slices; subclasses say how a slice is scored with it.

    The network sees intensities in [-1, 1] (background -1). With ``target="epsilon"`` the loss is the mean square of
    ``f(x_t, t) - eps``, with ``"x0"`` the mean absolute value of ``f(x_t, t) - x_0``; t is uniform over the T steps (or
    those below ``t_max``).
    """

    params: DiffusionParams

    def build(self) -> nn.Module:
        return build_unet(self.params)

    def _draw_noise(self, count: int, generator: torch.Generator | list[torch.Generator]) -> torch.Tensor:
        """Noise (count, 1, S, S) of the chosen kind on the run's device."""
        from adbench.methods.common import noise

        p = self.params
        size = (p.image_size, p.image_size)
        if p.noise == "gaussian":
            return noise.gaussian(count, size, generator).to(self.ctx.device)
        shape = noise.Simplex(p.octaves, p.persistence, p.frequency * p.image_size / 128)
        return noise.simplex(count, size, generator, shape, self.ctx.device)

    def fit(self, train: SliceSet, val: SliceSet | None) -> FitReport:
        import torch

        from adbench.methods import training
        from adbench.methods.common import augment as slicewise
        from adbench.methods.common import fit_network, schedulers
        from adbench.methods.common.prefetch import Pictures

        p = self.params
        schedule = schedulers.Schedule(p.schedule, p.timesteps)
        with training.seeded(self.ctx.seed, self.name, "init"):
            self._network = self.build()

        def make(source: Pictures, indices: torch.Tensor, generator: torch.Generator, vary: bool) -> training.Batch:
            image, brain = source.get(indices)
            if vary and p.augment:
                image, brain = slicewise.mirror(*slicewise.move(image, brain, generator), generator)
            clean = 2 * image - 1
            added = self._draw_noise(len(image), generator).to(image.device)
            t = torch.randint(p.trained_steps, (len(image),), generator=generator)
            if not vary:  # validation: an even spread over time, so that its figure is steady
                t = torch.arange(len(image)) * p.trained_steps // len(image)
            wanted = added if p.target == "epsilon" else clean
            return {"x": schedule.noised(clean, added, t), "t": t.to(image.device), "wanted": wanted}

        def loss(module: nn.Module, batch: training.Batch) -> torch.Tensor:
            error = module(batch["x"], batch["t"]) - batch["wanted"]
            return error.square().mean() if p.target == "epsilon" else error.abs().mean()

        return fit_network.fit_network(
            "unet", self.name, self._network, make, loss, p, (train, val), self.ctx,
            schedule=p.decay, val_slices=256, val_batch=32,
        )  # fmt: skip

    def _generators(self, batch: SliceBatch) -> list[torch.Generator]:
        """A generator for each slice, seeded by its subject and index: maps do not depend on the batch."""
        from adbench.methods.common import noise
        from adbench.utils.seeds import derive

        pairs = zip(batch.subjects, batch.slices, strict=True)
        return noise.per_slice([derive(self.ctx.seed, "score", subject, index) for subject, index in pairs])

    def _predict_clean(self, x: torch.Tensor, t: int) -> torch.Tensor:
        """x_0 in [-1, 1] (clipped, as in Ho 2020) that the network sees in ``x`` at step ``t``."""
        import torch

        from adbench.methods.common.preprocess import fast
        from adbench.methods.common.schedulers import Schedule

        if not hasattr(self, "_schedule"):
            self._schedule = Schedule(self.params.schedule, self.params.timesteps)
        with fast(x.device):
            out = self._network(x, torch.full((len(x),), t, device=x.device))
        out = out.float()
        clean = out if self.params.target == "x0" else self._schedule.clean(x, out, t)
        return clean.clamp(-1, 1)

    @classmethod
    def search_space(cls) -> dict[str, dict[str, Any]]:
        return {"lr": {"low": 3e-5, "high": 1e-3, "log": True}, "sigma": {"low": 0.0, "high": 6.0}}
