"""Rows that need no network and that a credible table must carry: ``histeq``, ``zscore``, ``constant``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from adbench.errors import UserError
from adbench.methods.base import FitReport, Method
from adbench.methods.card import Card
from adbench.params import ParamSet, param

if TYPE_CHECKING:
    import numpy as np
    import torch

    from adbench.datasets.slices import SliceBatch, SliceSet

DARK_LESIONS = frozenset({"T1"})


class HistEqParams(ParamSet):
    sigma: float = param(3.0, "Gaussian smoothing of the map.", unit="px of the slice", source="adbench", ge=0, le=50)
    polarity: Literal["auto", "bright", "dark"] = param(
        "auto", "Lesions are bright or dark; auto: dark on T1, bright elsewhere.", source="Meissen 2021"
    )


class HistEq(Method):
    """Histogram-equalised intensity: a voxel's rank among the brain voxels of its slice, smoothed.

    On FLAIR and T2 lesions are bright, on T1 dark, and this alone beats many deep methods. There is nothing to train.
    """

    name = "histeq"
    Params = HistEqParams
    params: HistEqParams
    card = Card(
        paper="Meissen et al. 2021, arXiv 2109.06023",
        equations=(
            "map: G_sigma * (share of brain voxels of the slice that are not brighter; for dark lesions: not darker)",
        ),
        variants={"polarity": "bright, dark, or auto: by the sequence"},
        deviations=("ranks within a slice instead of a histogram of the volume; smoothed with zeros around the brain",),
        published=(
            "FLAIR, pooled Dice with an oracle threshold: MSLUB .374, MSSEG15 .431; there AE .271 and VAE restoration .333 (arXiv 2109.06023)",
        ),
    )

    def fit(self, train: SliceSet, val: SliceSet | None) -> FitReport:
        return FitReport()

    def score(self, batch: SliceBatch) -> torch.Tensor:
        import torch

        from adbench.methods.common.image_ops import gaussian_blur

        polarity = self.params.polarity
        if polarity == "auto":
            polarity = "dark" if batch.modality.upper() in DARK_LESIONS else "bright"
        sign = 1.0 if polarity == "bright" else -1.0
        ranks = torch.zeros_like(batch.image)
        for image, brain, out in zip(batch.image, batch.brain, ranks, strict=True):
            values = sign * image[brain]
            if len(values):
                out[brain] = torch.searchsorted(values.sort().values, values, right=True) / len(values)
        return gaussian_blur(ranks, self.params.sigma)

    @classmethod
    def search_space(cls) -> dict[str, dict[str, Any]]:
        return {"sigma": {"low": 0.0, "high": 8.0}}


class ZScoreParams(ParamSet):
    sigma: float = param(
        3.0,
        "Gaussian smoothing of the slices, within the brain.",
        unit="px of the slice",
        source="adbench",
        ge=0,
        le=50,
    )
    sign: Literal["abs", "positive", "negative"] = param(
        "abs", "Which deviations count: both, brighter than healthy, darker than healthy.", source="adbench"
    )
    standardise: bool = param(
        True,
        "Centre each slice on the median and divide it by the interquartile range of its brain voxels first.",
        source="adbench",
    )
    floor: float = param(
        0.5, "Smallest standard deviation, as a share of the median one over the brain.", source="adbench", ge=0, le=10
    )
    window: int = param(
        2,
        "Training slices up to so many indices away describe a slice; the window grows until it holds 16 slices.",
        unit="slices",
        source="adbench",
        ge=0,
    )


class ZScore(Method):
    """Voxel-wise z of a slice against the registered healthy training slices at its height.

    Scanners give arbitrary intensities, so each slice is first standardised by median and interquartile range; then slices,
    training ones included, are smoothed within the brain, which forgives small misregistration. A pseudo-observation with the
    statistics of the whole brain keeps rarely covered voxels sane.
    """

    name = "zscore"
    Params = ZScoreParams
    params: ZScoreParams
    card = Card(
        paper="no paper: a row without a network that a credible table carries",
        equations=(
            "map: |x - mean| / max(std, floor) inside the brain, over the training brains that cover the voxel",
        ),
        variants={"sign": "absolute, brighter or darker than healthy", "standardise": "off: raw intensities"},
        published=("none",),
        tried=(
            "real FLAIR strokes, validation AUPRC / oracle Dice at sigma 3: raw .179 / .285, standardised by mean and std .324 / .396, by median and interquartile range .395 / .453",
            "absolute value after smoothing z .432 / .476, smoothing before z .458 / .487; floor .1: .433, .5: .451, 1: .435",
            "sign=positive without standardising: .411 / .464",
        ),
    )

    def fit(self, train: SliceSet, val: SliceSet | None) -> FitReport:
        import numpy as np
        import torch

        if not len(train):
            raise UserError("zscore needs healthy training slices, and there are none.")
        indices = np.array([number for batch in train.batches(256) for number in batch.slices])
        heights = np.unique(indices)
        means, stds = [], []
        for done, height in enumerate(heights, 1):
            distance = np.abs(indices - height)
            reach = max(self.params.window, int(np.sort(distance)[min(16, len(indices)) - 1]))
            mean, std = self._statistics(train, np.flatnonzero(distance <= reach))
            means.append(mean)
            stds.append(std)
            self.ctx.progress.update("statistics", done, len(heights))
        self._tensors = {
            "heights": torch.from_numpy(heights.astype(np.int64)),
            "mean": torch.stack(means),
            "std": torch.stack(stds),
        }
        return FitReport(parameters=sum(value.numel() for value in self._tensors.values()))

    def _statistics(self, train: SliceSet, positions: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and floored standard deviation (H, W) over the given training slices."""
        import numpy as np
        import torch

        shape = train.shape
        count, total, squares = (torch.zeros(shape, dtype=torch.float64) for _ in range(3))
        for start in range(0, len(positions), 256):
            batch = train.batch(np.asarray(positions[start : start + 256]))
            values = self._standardised(batch)[:, 0].double()
            count += batch.brain[:, 0].sum(0)
            total += values.sum(0)
            squares += (values**2).sum(0)
        everywhere = count.sum().clamp(min=1)
        centre = total.sum() / everywhere
        spread = squares.sum() / everywhere - centre**2
        mean = (total + centre) / (count + 1)
        variance = ((squares + spread + centre**2) / (count + 1) - mean**2).clamp(min=0)
        std = variance.sqrt()
        inside = count >= min(16, len(positions))
        typical = std[inside].median() if inside.any() else spread.sqrt()
        return mean.float(), std.clamp(min=max(1e-4, float(self.params.floor * typical))).float()

    def _standardised(self, batch: SliceBatch) -> torch.Tensor:
        """The slices as they are compared: standardised, then smoothed within the brain, 0 outside."""
        import torch

        from adbench.methods.common.image_ops import gaussian_blur

        inside = batch.brain.to(batch.image.dtype)
        out = batch.image * inside
        if self.params.standardise:
            quantiles = torch.tensor([0.25, 0.5, 0.75], device=batch.image.device)
            for target, brain in zip(out, batch.brain, strict=True):
                values = target[brain]
                if len(values):
                    low, middle, high = torch.quantile(values, quantiles)
                    target[brain] = (values - middle) / (high - low).clamp(min=1e-3)
        sigma = self.params.sigma
        return gaussian_blur(out, sigma) / gaussian_blur(inside, sigma).clamp(min=1e-6) * inside

    def score(self, batch: SliceBatch) -> torch.Tensor:
        import torch

        from adbench.methods.common.augment import one_sided
        from adbench.methods.common.image_ops import stretch

        device = batch.image.device
        heights = self._tensors["heights"]
        nearest = (torch.tensor(batch.slices)[:, None] - heights[None]).abs().argmin(dim=1)
        mean, std = (self._tensors[key][nearest][:, None].to(device) for key in ("mean", "std"))
        size = (batch.image.shape[-2], batch.image.shape[-1])
        z = (self._standardised(batch) - stretch(mean, size)) / stretch(std, size) * batch.brain
        return one_sided(z, self.params.sign)

    def state(self) -> dict[str, torch.Tensor]:
        return self._tensors

    def load_state(self, state: dict[str, torch.Tensor]) -> None:
        if set(state) != {"heights", "mean", "std"}:
            raise UserError("The checkpoint is not one of zscore: it must hold heights, mean and std.")
        self._tensors = state

    @classmethod
    def search_space(cls) -> dict[str, dict[str, Any]]:
        return {"sigma": {"low": 0.0, "high": 8.0}, "floor": {"low": 0.05, "high": 2.0, "log": True}}


class Constant(Method):
    """The same score for every voxel of the brain: the floor of every metric (its AUPRC is the prevalence)."""

    name = "constant"
    card = Card(
        paper="no paper: the chance level",
        equations=("map: 1 inside the brain, 0 outside",),
        published=("AUPRC equals the prevalence by definition",),
    )

    def fit(self, train: SliceSet, val: SliceSet | None) -> FitReport:
        return FitReport()

    def score(self, batch: SliceBatch) -> torch.Tensor:
        return batch.brain.to(batch.image.dtype)
