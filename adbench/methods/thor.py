"""THOR: temporal harmonisation for optimal restoration (Bercea et al. 2024, MICCAI, arXiv 2403.08464)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import model_validator

from adbench.methods.base import FitReport
from adbench.methods.common.params import SIGN, Sign
from adbench.methods.diffusion import SEEN, SMOKE, TINY, DiffusionMethod, DiffusionParams
from adbench.params import param

if TYPE_CHECKING:
    import torch

    from adbench.datasets.slices import SliceBatch, SliceSet
    from adbench.methods.common.perceptual import Difference

STARTS = {
    "gaussian": (350, (300, 150, 50)),
    "pyramid": (350, (300, 150, 50)),  # THOR has none: white noise is the finest part of it
    "simplex": (250, (200, 150, 100, 50)),
}
PAPER_PARAMETERS = 18_500_993  # "18.5 M"


class THORParams(DiffusionParams):
    """Parameters of :class:`THOR`."""

    start: int | None = param(
        None,
        "Step the slice is noised to; none: 350 of 1000 for Gaussian and pyramid, 250 for simplex noise, in proportion to T.",
        unit="steps",
        source="THOR",
        ge=1,
        scores=True,
    )
    harmonise: tuple[int, ...] | None = param(
        None,
        "Steps at which the walk is harmonised; none: 300, 150, 50 (Gaussian, pyramid) or 200, 150, 100, 50 (simplex), in proportion.",
        unit="steps",
        source="THOR",
        scores=True,
    )
    stride: int = param(
        1,
        "Steps of the schedule that one sampling step covers (ancestral sampling on every n-th step).",
        unit="steps",
        source="THOR",
        ge=1,
        scores=True,
    )
    map_every: int = param(
        50, "A map is stored at every so many steps.", unit="steps", source="THOR", ge=1, scores=True
    )
    perceptual: Literal["gms", "ssim", "stlpips", "lpips", "none"] = param(
        "gms",
        "Perceptual map beside the residual; stlpips and lpips need weights (the paper: lpips, SqueezeNet).",
        source="THOR",
        scores=True,
    )
    window: int = param(
        13,
        "Side of the square closing and dilation of the region mask.",
        unit="px of 128",
        source="THOR",
        ge=1,
        le=65,
        scores=True,
    )
    normalise: bool = param(
        True,
        "Divide each stored map by its largest value in the slice, as the region mask needs it.",
        source="THOR",
        scores=True,
    )
    sign: Sign = SIGN("abs", source="adbench")

    @model_validator(mode="after")
    def _steps_in_order(self) -> Self:
        self.check_start(self.first)
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
    gpu_memory_gb = 12.0
    Params = THORParams
    params: THORParams
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "tiny": {
            **TINY,
            "target": "x0",
            "t_max": 260,
            "perceptual": "none",
            "stride": 25,
            "normalise": False,
        },
        "base": {**SEEN, "steps": 30_000, "decay": "cosine", "t_max": 260, "normalise": False},
        "paper": {"steps": 200_000},
    }
    smoke: ClassVar[dict[str, Any]] = {**SMOKE, "stride": 50}
    _difference: Difference | None = None

    def fit(self, train: SliceSet, val: SliceSet | None) -> FitReport:
        self._perceptual()  # weights that are missing are reported before the training, not after it
        report = super().fit(train, val)
        if self.params == self.resolve("paper", {}) and report.parameters != PAPER_PARAMETERS:
            raise AssertionError(f"the paper's network has {PAPER_PARAMETERS} parameters, this one {report.parameters}")
        return report

    def _perceptual(self) -> Difference:
        from adbench.methods.common import perceptual

        if self._difference is None:
            self._difference = perceptual.difference(self.params.perceptual, self.ctx.device)
        return self._difference

    def _map(self, clean: torch.Tensor, image: torch.Tensor, brain: torch.Tensor) -> torch.Tensor:
        """``|x0_hat - x| p`` inside the brain, of the differences that count."""
        from adbench.methods.common.image_ops import gaussian_blur, one_sided

        apart = one_sided(image - clean, self.params.sign)
        if self.params.perceptual == "none":
            return apart * brain
        weight = gaussian_blur(self._perceptual()(clean * brain, image), 2.0).clamp(0, 1)
        return apart * weight * brain

    def score_and_reconstruct(self, batch: SliceBatch) -> tuple[torch.Tensor, torch.Tensor]:
        import torch

        from adbench.methods.common.image_ops import gaussian_blur
        from adbench.methods.common.preprocess import preprocess

        p = self.params
        with torch.inference_mode():
            seen = preprocess(batch, p.image_size, p.standardise)
            maps, clean = self._walk(seen.image, seen.brain, self.generators(batch))
            return gaussian_blur(seen.to_slice_grid(maps) * batch.brain, p.sigma), seen.restore(clean)

    def _walk(
        self, image: torch.Tensor, brain: torch.Tensor, generators: list[torch.Generator]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Harmonic mean of the stored maps and the restored slice, both on the network's grid."""
        from adbench.methods.common import schedulers

        p, schedule = self.params, self.noise_schedule
        window = max(1, round(p.window * p.image_size / 128)) | 1  # odd
        epsilon = self.draw_noise(len(image), generators)
        stored = []
        x = schedule.noised(2 * image - 1, epsilon, p.first)
        times = schedulers.respaced(p.first, p.stride, {*p.marks, *range(0, p.first, p.map_every)})
        for t, to in zip(times, [*times[1:], -1], strict=True):
            clean = self.predict_clean(x, t)
            if t < p.first and (t % p.map_every == 0 or t in p.marks):
                found = self._map((clean + 1) / 2, image, brain)
                normal = found / found.amax(dim=(1, 2, 3), keepdim=True).clamp(min=1e-8)
                stored.append(normal if p.normalise else found)
                if t in p.marks:
                    region = region_mask(normal, window)
                    blend = region * (clean + 1) / 2 + (1 - region) * image
                    x = schedule.noised(2 * blend - 1, epsilon, t)
                    clean = self.predict_clean(x, t)
            x = schedule.ancestral(x, clean, t, to, lambda: self.draw_noise(len(image), generators))
        return harmonic_mean(stored), (x + 1) / 2 * brain

    @classmethod
    def search_space(cls) -> dict[str, dict[str, Any]]:
        return {
            **super().search_space(),
            "start": {"low": 150, "high": 600},
            "perceptual": {"choices": ["gms", "ssim", "none"]},
        }
