"""THOR: temporal harmonisation for optimal restoration (Bercea et al. 2024, MICCAI, arXiv 2403.08464)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import model_validator

from adbench.methods.base import FitReport, Resources
from adbench.methods.card import Card
from adbench.methods.common.diffusion import TINY, DiffusionMethod, DiffusionParams
from adbench.params import ParamSet, param

if TYPE_CHECKING:
    import torch

    from adbench.datasets.slices import SliceBatch, SliceSet

STARTS = {"gaussian": (350, (300, 150, 50)), "simplex": (250, (200, 150, 100, 50))}
PAPER_PARAMETERS = 18_500_993  # "18.5 M"


class THORParams(DiffusionParams):
    start: int | None = param(
        None,
        "Step the slice is noised to; none: 350 of 1000 for Gaussian, 250 for simplex noise, in proportion to T.",
        unit="steps",
        source="THOR",
        ge=1,
    )
    harmonise: tuple[int, ...] | None = param(
        None,
        "Steps at which the walk is harmonised; none: 300, 150, 50 (Gaussian) or 200, 150, 100, 50 (simplex), in proportion.",
        unit="steps",
        source="THOR",
    )
    stride: int = param(
        1,
        "Steps of the schedule that one sampling step covers (ancestral sampling on every n-th step).",
        unit="steps",
        source="THOR",
        ge=1,
    )
    map_every: int = param(50, "A map is stored at every so many steps.", unit="steps", source="THOR", ge=1)
    perceptual: Literal["gms", "ssim", "stlpips", "lpips", "none"] = param(
        "gms",
        "Perceptual map beside the residual; stlpips and lpips need weights (the paper: lpips, SqueezeNet).",
        source="THOR",
    )
    window: int = param(
        13, "Side of the square closing and dilation of the region mask.", unit="px of 128", source="THOR", ge=1, le=65
    )
    normalise: bool = param(
        True, "Divide each stored map by its largest value in the slice, as the region mask needs it.", source="THOR"
    )

    @model_validator(mode="after")
    def _steps_in_order(self) -> Self:
        if self.first >= self.timesteps:
            raise ValueError(f"start must be below timesteps ({self.timesteps})")
        if self.first >= self.trained_steps:
            raise ValueError(f"start must be below t_max ({self.t_max}): the network never sees later steps")
        if any(not 0 <= t < self.first for t in self.marks):
            raise ValueError(f"every step of harmonise must lie in [0, start = {self.first})")
        if self.stride > self.first:
            raise ValueError(f"stride may not exceed start ({self.first})")
        return self

    @property
    def first(self) -> int:
        """The step the slice is noised to."""
        return self.start if self.start is not None else max(1, STARTS[self.noise][0] * self.timesteps // 1000)

    @property
    def marks(self) -> tuple[int, ...]:
        """The steps of harmonisation, descending."""
        if self.harmonise is not None:
            return tuple(sorted(set(self.harmonise), reverse=True))
        return tuple(sorted({t * self.timesteps // 1000 for t in STARTS[self.noise][1]}, reverse=True))


def region_mask(maps: torch.Tensor, window: int) -> torch.Tensor:
    """``clip((dilate(close(m)) + m) / 2, 0, 1)`` with grey dilation and closing over a square of ``window`` px."""
    import torch.nn.functional as F

    def dilate(x: torch.Tensor) -> torch.Tensor:
        return F.max_pool2d(x, window, stride=1, padding=window // 2)

    closed = -dilate(-dilate(maps))
    return ((dilate(closed) + maps) / 2).clamp(0, 1)


def harmonic_mean(maps: list[torch.Tensor], floor: float = 1e-6) -> torch.Tensor:
    """Harmonic mean over the list, voxel by voxel; values below ``floor`` count as ``floor``, and all such give 0."""
    import torch

    stack = torch.stack(maps)
    mean = len(maps) / (1 / stack.clamp(min=floor)).sum(dim=0)
    return mean.where((stack > floor).any(dim=0), torch.zeros_like(mean))


class THOR(DiffusionMethod):
    """A diffusion walk from a noised slice to a healthy one, led back to the slice itself wherever nothing looks anomalous.

    At some steps of the walk the predicted slice is compared with the real one, what does not differ is put back, and the walk
    goes on with the noise it began with. The harmonic mean of the comparisons is the map. Tables must show which perceptual
    map took part: ``THOR[gms]``.
    """

    name = "thor"
    Params = THORParams
    params: THORParams
    card = Card(
        paper="Bercea et al. 2024, MICCAI, arXiv 2403.08464",
        equations=(
            "training: min mean (f(x_t, t) - eps)^2, T = 1000, linear beta from 1e-4 to .02",
            "start: x_t = sqrt(abar) x + sqrt(1 - abar) eps, t = 350 (Gaussian) or 250 (simplex); then ancestral sampling",
            "at 300, 150, 50 (Gaussian) or 200, 150, 100, 50 (simplex): m = |x_0' - x| p / max, p = clip(G_2 * P(x_0', x), 0, 1)",
            "M = clip((dilate13(close13(m)) + m) / 2, 0, 1); the walk goes on from M x_0' + (1 - M) x, noised with the same eps",
            "map: harmonic mean of the m of these and of every 50th step",
        ),
        variants={
            "noise": "gaussian or simplex, each with its start and steps",
            "perceptual": "P: gms, ssim, stlpips, lpips or none (p = 1)",
            "normalise": "maps divided by their largest value in the slice (the paper), or comparable between slices",
            "stride": "ancestral sampling on every n-th step",
        },
        deviations=(
            "gms instead of LPIPS by default: the weights of LPIPS are a download",
            "trained on eps itself; the published code rescales the target by mistake",
            "intensities in [-1, 1]; simplex noise 2-D with unit variance; the 13 px of the mask follow the grid",
            "the largest value of a map is taken within its slice: it does not depend on the batch",
            "tiny is too short a training for eps: it predicts x0, is trained on the steps it visits, walks in strides of 25 and goes without a perceptual map, because blurred reconstructions differ from every fold",
        ),
        published=(
            "ATLAS T1, trained on IXI and lesion-free ATLAS: Dice .297, protocol not stated (a public leaderboard)",
            "methods of this kind: per-volume Dice .05 to .35 on ATLAS T1 when trained on IXI",
        ),
        tried=(
            "real FLAIR strokes, validation AUPRC of tiny: none .42, ssim .32, gms .22; Gaussian noise .33 (none), .16 (gms); eps as the target .11 (gms)",
        ),
    )
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "tiny": {
            **TINY,
            "target": "x0",
            "t_max": 260,
            "perceptual": "none",
            "stride": 25,
            "normalise": False,
        },
        "base": {"steps": 30_000, "decay": "cosine", "normalise": False, "sigma": 3.0},
        "paper": {"steps": 200_000},
    }
    smoke: ClassVar[dict[str, Any]] = {
        "image_size": 32,
        "channels": (32, 32),
        "attention": (False, False),
        "stem": 2,
        "steps": 6,
        "batch": 4,
        "stride": 50,
    }
    _difference: Any = None

    def fit(self, train: SliceSet, val: SliceSet | None) -> FitReport:
        self._perceptual()  # weights that are missing are reported before the training, not after it
        report = super().fit(train, val)
        if self.params == self.resolve("paper", {}) and report.parameters != PAPER_PARAMETERS:
            raise AssertionError(f"the paper's network has {PAPER_PARAMETERS} parameters, this one {report.parameters}")
        return report

    def _perceptual(self) -> Any:
        from adbench.methods.common import perceptual

        if self._difference is None:
            self._difference = perceptual.difference(self.params.perceptual, self.ctx.device)
        return self._difference

    def _map(self, clean: torch.Tensor, image: torch.Tensor, brain: torch.Tensor) -> torch.Tensor:
        """``|x0_hat - x| p`` inside the brain."""
        from adbench.methods.common.image_ops import gaussian_blur

        if self.params.perceptual == "none":
            return (clean - image).abs() * brain
        weight = gaussian_blur(self._perceptual()(clean * brain, image), 2.0).clamp(0, 1)
        return (clean - image).abs() * weight * brain

    def score_and_reconstruct(self, batch: SliceBatch) -> tuple[torch.Tensor, torch.Tensor]:
        import torch

        from adbench.methods.common.image_ops import gaussian_blur
        from adbench.methods.common.preprocess import Frame

        p = self.params
        with torch.inference_mode():
            frame = Frame.of(batch, p.image_size, p.standardise)
            maps, clean = self._walk(frame.image, frame.brain, self._generators(batch))
            return gaussian_blur(frame.stretched(maps) * batch.brain, p.sigma), frame.restored(clean)

    def _walk(
        self, image: torch.Tensor, brain: torch.Tensor, generators: list[torch.Generator]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Harmonic mean of the stored maps and the restored slice, both on the network's grid."""
        from adbench.methods.common import schedulers

        p = self.params
        schedule = schedulers.Schedule(p.schedule, p.timesteps)
        window = max(1, round(p.window * p.image_size / 128)) | 1  # odd
        epsilon = self._draw_noise(len(image), generators)
        stored = []
        x = schedule.noised(2 * image - 1, epsilon, p.first)
        times = schedulers.respaced(p.first, p.stride, {*p.marks, *range(0, p.first, p.map_every)})
        for t, to in zip(times, [*times[1:], -1], strict=True):
            clean = self._predict_clean(x, t)
            if t < p.first and (t % p.map_every == 0 or t in p.marks):
                found = self._map((clean + 1) / 2, image, brain)
                normal = found / found.amax(dim=(1, 2, 3), keepdim=True).clamp(min=1e-8)
                stored.append(normal if p.normalise else found)
                if t in p.marks:
                    region = region_mask(normal, window)
                    blend = region * (clean + 1) / 2 + (1 - region) * image
                    x = schedule.noised(2 * blend - 1, epsilon, t)
                    clean = self._predict_clean(x, t)
            x = schedule.ancestral(x, clean, t, to, lambda: self._draw_noise(len(image), generators))
        return harmonic_mean(stored), (x + 1) / 2 * brain

    @classmethod
    def resources(cls, params: ParamSet) -> Resources:
        return Resources(cpus=2.0, gpu_memory_gb=12.0)

    @classmethod
    def search_space(cls) -> dict[str, dict[str, Any]]:
        return {
            **super().search_space(),
            "start": {"low": 150, "high": 600},
            "perceptual": {"choices": ["gms", "ssim", "none"]},
        }
