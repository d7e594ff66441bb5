"""Denoising diffusion as a reconstruction baseline (the AnoDDPM, pDDPM and cDDPM lines)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import model_validator

from adbench.methods.base import Resources
from adbench.methods.diffusion import DiffusionMethod, DiffusionParams
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

    Training: ``x_t = sqrt(bar_t) x_0 + sqrt(1 - bar_t) eps``, the network predicts ``x_0`` (L1) or ``eps`` (L2).
    Test: noise the slice to ``start``; map ``|x - x0_hat|`` inside the brain. Noise is seeded by subject and slice.

    Variants: ``target`` x0 | epsilon, ``schedule`` linear | cosine, ``noise`` gaussian | simplex (AnoDDPM), ``sampler``
    one_shot | ancestral | ddim, ``sign``.
    ``tiny`` is simplex, one_shot from 150, trained on the steps below 300 alone, in standardised intensities: on real FLAIR
    strokes (validation AUPRC) .51 against .46 when it is trained on all steps, .32 with Gaussian noise from 500.
    Deviations: simplex noise is 2-D, with unit variance, as the forward process assumes (AnoDDPM samples planes of an
    unscaled 3-D field); pDDPM's patches and cDDPM's conditioning are other methods.
    Published: on BraTS'21 T2 the same name reaches per-volume Dice 0.23 to 0.41, depending on who ran it.
    """

    name = "ddpm"
    Params = DDPMParams
    params: DDPMParams
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "tiny": {
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
            "t_max": 300,
            "start": 150,
            "sigma": 5.0,
        },
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

        from adbench.methods import sampling, slicewise
        from adbench.methods.frame import Frame

        p = self.params
        with torch.inference_mode():
            frame = Frame.of(batch, p.image_size, p.standardise)
            image = frame.image
            schedule = sampling.Schedule(p.schedule, p.timesteps)
            generators = self._generators(batch)

            def noise() -> torch.Tensor:
                return self._draw_noise(len(image), generators)

            x = schedule.noised(2 * image - 1, noise(), p.first)
            if p.sampler == "one_shot":
                clean = self._predict_clean(x, p.first)
            elif p.sampler == "ancestral":
                times = sampling.respaced(p.first, 1)
                clean = sampling.denoise(schedule, x, times, self._predict_clean, noise)
            else:
                times = sorted(
                    {round(p.first * k / p.sampler_steps) for k in range(1, p.sampler_steps + 1)}, reverse=True
                )
                clean = sampling.denoise(schedule, x, times, self._predict_clean)
            recon = (clean + 1) / 2
            return slicewise.signed_map(frame.residual(recon), p.sign, p.sigma), frame.restored(recon)

    @classmethod
    def resources(cls, params: ParamSet) -> Resources:
        return Resources(cpus=2.0, gpu_memory_gb=10.0)
