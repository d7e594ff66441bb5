"""Denoising diffusion as a reconstruction baseline (the AnoDDPM, pDDPM and cDDPM lines)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import model_validator

from adbench.methods.common.params import CHANNELS, SIGN, Sign
from adbench.methods.diffusion import SEEN, TINY, DiffusionMethod, DiffusionParams
from adbench.params import param

if TYPE_CHECKING:
    import torch

    from adbench.datasets.slices import SliceBatch


class DDPMParams(DiffusionParams):
    """Parameters of :class:`DDPM`."""

    channels: tuple[int, ...] = CHANNELS((128, 256, 256), source="pDDPM (128 x 1, 2, 2)", max_length=6)
    head_channels: int = param(64, "Channels of an attention head.", source="adbench", ge=8)
    target: Literal["x0", "epsilon"] = param(
        "x0", "What the network predicts: the clean slice (trained with L1) or the noise (L2).", source="pDDPM, cDDPM"
    )
    schedule: Literal["linear", "cosine"] = param("cosine", "How the noise grows.", source="pDDPM")
    sampler: Literal["one_shot", "ancestral", "ddim"] = param(
        "one_shot",
        "From the noised slice: one prediction, every step with fresh noise, or few steps without.",
        source="pDDPM (one_shot), AnoDDPM (ancestral)",
        scores=True,
    )
    start: int | None = param(
        None,
        "Step the slice is noised to; none: 500 of 1000 for one_shot, 250 of 1000 for the others, in proportion to T.",
        unit="steps",
        source="pDDPM, cDDPM; AnoDDPM",
        ge=0,
        scores=True,
    )
    sampler_steps: int = param(
        10, "Predictions that ddim makes.", unit="steps", source="adbench", ge=1, le=1000, scores=True
    )
    sign: Sign = SIGN("abs", source="adbench")

    @model_validator(mode="after")
    def _start_in_schedule(self) -> Self:
        self.check_start(self.first)
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
    gpu_memory_gb = 10.0
    Params = DDPMParams
    params: DDPMParams
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "tiny": {**TINY, "t_max": 300, "start": 150},
        "base": {
            **SEEN,
            "image_size": 96,
            "channels": (64, 128, 128),
            "steps": 30_000,
            "decay": "cosine",
            "t_max": 300,
            "start": 150,
        },
        "paper": {"image_size": 96, "attention": (False, False, True), "steps": 100_000},
    }

    def score_and_reconstruct(self, batch: SliceBatch) -> tuple[torch.Tensor, torch.Tensor]:
        import torch

        from adbench.methods.common import schedulers
        from adbench.methods.common.image_ops import signed_map
        from adbench.methods.common.preprocess import preprocess

        p, schedule = self.params, self.noise_schedule
        with torch.inference_mode():
            seen = preprocess(batch, p.image_size, p.standardise)
            generators = self.generators(batch)

            def noise() -> torch.Tensor:
                return self.draw_noise(len(seen.image), generators)

            x = schedule.noised(2 * seen.image - 1, noise(), p.first)
            if p.sampler == "one_shot":
                clean = self.predict_clean(x, p.first)
            elif p.sampler == "ancestral":
                clean = schedulers.denoise(schedule, x, schedulers.respaced(p.first, 1), self.predict_clean, noise)
            else:
                visited = {round(p.first * k / p.sampler_steps) for k in range(1, p.sampler_steps + 1)}
                clean = schedulers.denoise(schedule, x, sorted(visited, reverse=True), self.predict_clean)
            recon = (clean + 1) / 2
            return signed_map(seen.residual(recon), p.sign, p.sigma), seen.restore(recon)
