"""Denoising diffusion as a reconstruction baseline (the AnoDDPM, pDDPM and cDDPM lines)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import model_validator

from adbench.methods.base import Resources
from adbench.methods.card import Card
from adbench.methods.common.diffusion import TINY, DiffusionMethod, DiffusionParams
from adbench.params import ParamSet, param

if TYPE_CHECKING:
    import torch

    from adbench.datasets.slices import SliceBatch


class DDPMParams(DiffusionParams):
    channels: tuple[int, ...] = param(
        (128, 256, 256),
        "Channels by level; each level halves the grid.",
        source="pDDPM (128 x 1, 2, 2)",
        min_length=1,
        max_length=6,
    )
    head_channels: int = param(64, "Channels of an attention head.", source="adbench", ge=8)
    target: Literal["x0", "epsilon"] = param(
        "x0", "What the network predicts: the clean slice (trained with L1) or the noise (L2).", source="pDDPM, cDDPM"
    )
    schedule: Literal["linear", "cosine"] = param("cosine", "How the noise grows.", source="pDDPM")
    sampler: Literal["one_shot", "ancestral", "ddim"] = param(
        "one_shot",
        "From the noised slice: one prediction, every step with fresh noise, or few steps without.",
        source="pDDPM (one_shot), AnoDDPM (ancestral)",
    )
    start: int | None = param(
        None,
        "Step the slice is noised to; none: 500 of 1000 for one_shot, 250 of 1000 for the others, in proportion to T.",
        unit="steps",
        source="pDDPM, cDDPM; AnoDDPM",
        ge=0,
    )
    sampler_steps: int = param(10, "Predictions that ddim makes.", unit="steps", source="adbench", ge=1, le=1000)
    sign: Literal["abs", "positive", "negative"] = param(
        "abs",
        "Which residuals count: both, brighter than the reconstruction, darker (a prior on the contrast of lesions).",
        source="adbench",
    )

    @model_validator(mode="after")
    def _start_in_schedule(self) -> Self:
        if self.start is not None and self.start >= self.timesteps:
            raise ValueError(f"start must be below timesteps ({self.timesteps})")
        if self.first >= self.trained_steps:
            raise ValueError(f"start must be below t_max ({self.t_max}): the network never sees later steps")
        if self.sampler == "ddim" and self.sampler_steps > self.first + 1:
            raise ValueError(f"sampler_steps may not exceed the {self.first + 1} steps from start to 0")
        return self

    @property
    def first(self) -> int:
        """The step the slice is noised to."""
        if self.start is not None:
            return self.start
        return self.timesteps // (2 if self.sampler == "one_shot" else 4)


class DDPM(DiffusionMethod):
    """Noise a slice half-way, let a diffusion model trained on healthy slices denoise it: lesions do not come back.

    The network predicts the clean slice or the noise; noise is seeded by subject and slice, so maps do not depend on the batch.
    """

    name = "ddpm"
    Params = DDPMParams
    params: DDPMParams
    card = Card(
        paper="Ho et al. 2020, arXiv 2006.11239; AnoDDPM: Wyatt et al. 2022, CVPR workshops; pDDPM: Behrendt et al. 2023, arXiv 2303.03758; cDDPM: Behrendt et al. 2023, arXiv 2312.04215",
        equations=(
            "noising: x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps, t uniform over T = 1000 steps",
            "training: min mean|f(x_t, t) - x_0| (x0) or min mean (f(x_t, t) - eps)^2 (epsilon)",
            "one_shot: x_0' = f at t = 500; ancestral: every step from t = 250; ddim: few steps without noise",
            "map: |x - x_0'| inside the brain",
        ),
        variants={
            "target": "x0 (pDDPM, cDDPM) or epsilon (AnoDDPM)",
            "sampler": "one_shot, ancestral or ddim",
            "noise": "gaussian, or simplex (AnoDDPM)",
            "schedule": "linear or cosine",
            "sign": "absolute, bright or dark residual",
        },
        deviations=(
            "simplex noise is 2-D with unit variance, as the forward process assumes; AnoDDPM takes planes of an unscaled 3-D field",
            "pDDPM's patches and cDDPM's conditioning are other methods and not here",
        ),
        published=(
            "BraTS'21 T2, trained on IXI, per-volume Dice: .407 (pDDPM paper, quoted), .314 (MCDDPM repository), .226 (an independent re-run, m-krastev/brain-uad, 2026)",
            "MSLUB T2, trained on IXI: per-volume Dice .044, AUPRC .074 (MCDDPM repository)",
        ),
        tried=(
            "real FLAIR strokes, validation AUPRC: tiny, simplex, one_shot from 150 and trained below 300, .51; trained on all steps .46; Gaussian noise from 500 .32",
        ),
    )
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "tiny": {**TINY, "t_max": 300, "start": 150},
        "base": {"image_size": 96, "channels": (64, 128, 128), "steps": 30_000, "decay": "cosine", "sigma": 3.0},
        "paper": {"image_size": 96, "attention": (False, False, True), "steps": 100_000},
    }
    smoke: ClassVar[dict[str, Any]] = {
        "image_size": 32,
        "channels": (32, 32),
        "attention": (False, False),
        "stem": 2,
        "steps": 6,
        "batch": 4,
    }

    def score_and_reconstruct(self, batch: SliceBatch) -> tuple[torch.Tensor, torch.Tensor]:
        import torch

        from adbench.methods.common import augment, schedulers
        from adbench.methods.common.preprocess import Frame

        p = self.params
        with torch.inference_mode():
            frame = Frame.of(batch, p.image_size, p.standardise)
            image = frame.image
            schedule = schedulers.Schedule(p.schedule, p.timesteps)
            generators = self._generators(batch)

            def noise() -> torch.Tensor:
                return self._draw_noise(len(image), generators)

            x = schedule.noised(2 * image - 1, noise(), p.first)
            if p.sampler == "one_shot":
                clean = self._predict_clean(x, p.first)
            elif p.sampler == "ancestral":
                times = schedulers.respaced(p.first, 1)
                clean = schedulers.denoise(schedule, x, times, self._predict_clean, noise)
            else:
                times = sorted(
                    {round(p.first * k / p.sampler_steps) for k in range(1, p.sampler_steps + 1)}, reverse=True
                )
                clean = schedulers.denoise(schedule, x, times, self._predict_clean)
            recon = (clean + 1) / 2
            return augment.signed_map(frame.residual(recon), p.sign, p.sigma), frame.restored(recon)

    @classmethod
    def resources(cls, params: ParamSet) -> Resources:
        return Resources(cpus=2.0, gpu_memory_gb=10.0)
