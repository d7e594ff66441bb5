"""A method in one file: how far each pixel stands out of the tissue around it, in units of healthy contrast."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adbench.methods.base import FitReport, Method
from adbench.params import ParamSet, param

if TYPE_CHECKING:
    import torch

    from adbench.datasets.slices import SliceBatch, SliceSet


class Params(ParamSet):
    """Parameters of :class:`LocalContrast`."""

    size: int = param(
        25, "Side of the square that a pixel is compared with.", unit="px", source="example", ge=3, le=255
    )


class LocalContrast(Method):
    """Absolute difference to the local brain mean, divided by its typical value in healthy slices."""

    name = "localcontrast"
    Params = Params

    def _difference(self, image: torch.Tensor, brain: torch.Tensor) -> torch.Tensor:
        """|image - local mean over the brain|, (B, 1, H, W), 0 outside the brain."""
        import torch.nn.functional as F

        size = self.params.size | 1
        inside = brain.float()
        pool = {"kernel_size": size, "stride": 1, "padding": size // 2}
        mean = F.avg_pool2d(image * inside, **pool) / F.avg_pool2d(inside, **pool).clamp_min(1e-6)
        return (image - mean).abs() * inside

    def fit(self, train: SliceSet, val: SliceSet | None) -> FitReport:
        total = count = 0.0
        for batch in train.batches(32):
            total += float(self._difference(batch.image, batch.brain).sum())
            count += float(batch.brain.sum())
        self.scale = total / count
        return FitReport(parameters=1)

    def score(self, batch: SliceBatch) -> torch.Tensor:
        return self._difference(batch.image, batch.brain) / self.scale

    def state(self) -> dict[str, torch.Tensor]:
        import torch

        return {"scale": torch.tensor(self.scale, dtype=torch.float64)}

    def load_state(self, state: dict[str, torch.Tensor]) -> None:
        self.scale = float(state["scale"])
