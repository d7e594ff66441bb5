"""What the pixel-space diffusion methods share: parameters, the UNet, training, noise drawn per slice."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import model_validator

from adbench.methods.common.params import (
    BATCH,
    CHANNELS,
    EMA,
    IMAGE_SIZE,
    LR,
    SCHEDULE,
    STEM,
    STEPS,
    WARMUP,
    NetworkParams,
)
from adbench.methods.trained_network import TrainedNetwork
from adbench.params import param
from adbench.utils.compute import to_device

if TYPE_CHECKING:
    import torch
    from torch import nn

    from adbench.datasets.slices import SliceBatch
    from adbench.methods.common.preprocess import SliceLoader
    from adbench.methods.common.schedulers import Schedule
    from adbench.methods.training import Batch


Noise = Literal["gaussian", "simplex", "pyramid"]

# How tiny and base show slices to a network, noise and smooth them: without these the same network finds little (ddpm.md).
SEEN: dict[str, Any] = {"standardise": True, "noise": "simplex", "sigma": 5.0}
# What the tiny presets share: a network for two cores, 400 steps.
TINY: dict[str, Any] = {
    **SEEN,
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
}
SMOKE: dict[str, Any] = {
    "image_size": 32,
    "channels": (32, 32),
    "attention": (False, False),
    "stem": 2,
    "steps": 6,
    "batch": 4,
}


class DiffusionParams(NetworkParams):
    """Parameters of a diffusion model in pixel space; defaults are those of THOR."""

    image_size: int = IMAGE_SIZE(128, source="THOR")
    channels: tuple[int, ...] = CHANNELS((128, 256, 256), source="THOR", max_length=6)
    attention: tuple[bool, ...] = param((False, True, True), "Levels with self-attention.", source="THOR", max_length=6)
    head_channels: int = param(256, "Channels of an attention head.", source="THOR", ge=8)
    res_blocks: int = param(1, "Residual blocks per level.", source="THOR", ge=1, le=4)
    stem: int = STEM(1, source="adbench")
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
    noise: Noise = param("gaussian", "Kind of noise, training and test.", source="THOR")
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
    discount: float = param(
        0.8, "Weight of a grid of pyramid noise relative to the finer one.", source="ANDi", ge=0, le=1
    )
    steps: int = STEPS(50_000, source="adbench")
    batch: int = BATCH(16, source="THOR")
    lr: float = LR(1e-4, source="THOR")
    warmup: int = WARMUP(100, source="adbench")
    decay: Literal["constant", "cosine"] = SCHEDULE("constant", source="adbench")
    ema: float = EMA(0.999, source="Ho 2020 (.9999)")
    augment: bool = param(True, "Rotate ±10°, shift ±10 %, scale .9-1.1 and mirror training slices.", source="THOR")

    @model_validator(mode="after")
    def _network_fits(self) -> Self:
        unit = self.stem * 2 ** (len(self.channels) - 1)
        if self.image_size % unit:
            raise ValueError(f"image_size must be a multiple of {unit} (stem, and one halving per level)")
        if self.t_max is not None and self.t_max > self.timesteps:
            raise ValueError(f"t_max may not exceed timesteps ({self.timesteps})")
        if len(self.attention) != len(self.channels):
            raise ValueError("attention needs one entry per level of channels")
        if any(c % 32 for c in self.channels):
            raise ValueError("channels must be multiples of 32 (group normalisation)")
        pairs = zip(self.channels, (*self.attention[:-1], True), strict=True)  # the middle block always attends
        if any(attends and c % self.head_channels for c, attends in pairs):
            raise ValueError("head_channels must divide the channels of every level with attention and of the last one")
        return self

    @property
    def lr_schedule(self) -> str:
        """Learning rate after the warm-up; the field ``schedule`` is that of the noise."""
        return self.decay

    @property
    def trained_steps(self) -> int:
        """Training draws t from [0, trained_steps)."""
        return self.t_max if self.t_max is not None else self.timesteps

    def check_start(self, start: int) -> None:
        """Raise ``ValueError`` unless slices may be noised to the step ``start``."""
        if start >= self.timesteps:
            raise ValueError(f"start must be below timesteps ({self.timesteps})")
        if start >= self.trained_steps:
            raise ValueError(f"start must be below t_max ({self.t_max}): the network never sees later steps")


class DiffusionMethod(TrainedNetwork):
    """Trains a diffusion UNet on healthy slices; subclasses say how a slice is scored with it.

    The network sees intensities in [-1, 1] (background -1). With ``target="epsilon"`` the loss is the mean square of
    ``f(x_t, t) - eps``, with ``"x0"`` the mean absolute value of ``f(x_t, t) - x_0``; t is uniform over the T steps (or
    those below ``t_max``).
    """

    params: DiffusionParams
    stage = "unet"
    val_slices = 256
    val_batch = 32
    smoke: ClassVar[dict[str, Any]] = SMOKE

    @property
    def network_options(self) -> dict[str, Any]:
        """Arguments of MONAI's ``DiffusionModelUNet``."""
        p = self.params
        return {
            "channels": p.channels,
            "attention_levels": p.attention,
            "num_res_blocks": p.res_blocks,
            "num_head_channels": p.head_channels,
        }

    def build(self) -> nn.Module:
        from adbench.methods.common.networks import DiffusionUNet

        return DiffusionUNet(self.params.stem, **self.network_options)

    @property
    def noise_schedule(self) -> Schedule:
        """The schedule of the noise, made once."""
        from adbench.methods.common.schedulers import Schedule

        if not hasattr(self, "_schedule"):
            self._schedule = Schedule(self.params.schedule, self.params.timesteps)
        return self._schedule

    def draw_noise(
        self, count: int, generator: torch.Generator | list[torch.Generator], kind: Noise | None = None
    ) -> torch.Tensor:
        """Noise (count, 1, S, S) on the run's device.

        Args:
            count: slices.
            generator: one for all, or one per slice.
            kind: of noise; None: the one of training.
        """
        from adbench.methods.common import noise

        p = self.params
        size, kind = (p.image_size, p.image_size), kind or p.noise
        if kind == "gaussian":
            return to_device(noise.gaussian(count, size, generator), self.ctx.device)
        if kind == "pyramid":
            return to_device(noise.pyramid(count, size, generator, p.discount), self.ctx.device)
        shape = noise.Simplex(p.octaves, p.persistence, p.frequency * p.image_size / 128)
        return noise.simplex(count, size, generator, shape, self.ctx.device)

    def make_batch(
        self, slices: SliceLoader, indices: torch.Tensor, generator: torch.Generator, *, training: bool
    ) -> Batch:
        import torch

        from adbench.methods.common import image_ops

        p = self.params
        image, brain = slices.get(indices)
        if training and p.augment:
            image, brain = image_ops.random_affine(image, brain, generator)
            image, brain = image_ops.random_flip(image, brain, generator)
        clean = 2 * image - 1
        added = self.draw_noise(len(image), generator).to(image.device)
        t = torch.randint(p.trained_steps, (len(image),), generator=generator)
        if not training:  # an even spread over time, so that the validation loss is steady
            t = torch.arange(len(image)) * p.trained_steps // len(image)
        wanted = added if p.target == "epsilon" else clean
        return {"x": self.noise_schedule.noised(clean, added, t), "t": t.to(image.device), "wanted": wanted}

    def loss(self, network: nn.Module, batch: Batch) -> torch.Tensor:
        """Mean square error of the predicted noise, or mean absolute error of the predicted slice."""
        error: torch.Tensor = network(batch["x"], batch["t"]) - batch["wanted"]
        return error.square().mean() if self.params.target == "epsilon" else error.abs().mean()

    def generators(self, batch: SliceBatch) -> list[torch.Generator]:
        """A generator for each slice, seeded by its subject and index: maps do not depend on the batch."""
        from adbench.methods.training import generator

        slices = zip(batch.subjects, batch.slices, strict=True)
        return [generator(self.ctx.seed, "score", subject, index) for subject, index in slices]

    def predict_clean(self, x: torch.Tensor, t: int, *, clip: bool = True) -> torch.Tensor:
        """x_0 that the network sees in ``x`` at step ``t``; clipped to [-1, 1] as in Ho 2020, unless ``clip`` is false."""
        import torch

        out = self.apply(x, torch.full((len(x),), t, device=x.device))
        clean = out if self.params.target == "x0" else self.noise_schedule.clean(x, out, t)
        return clean.clamp(-1, 1) if clip else clean

    @classmethod
    def search_space(cls) -> dict[str, dict[str, Any]]:
        return {"lr": {"low": 3e-5, "high": 1e-3, "log": True}, "sigma": {"low": 0.0, "high": 6.0}}
