"""Baselines without a network: ``histeq``, ``zscore``, ``asymmetry`` and ``constant``."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

from adbench.errors import UserError
from adbench.methods.base import FitReport, Method
from adbench.methods.common.params import SIGMA, SIGN, Sign
from adbench.params import ParamSet, param

if TYPE_CHECKING:
    import numpy as np
    import torch

    from adbench.datasets.slices import SliceBatch, SliceSet

DARK_LESIONS = frozenset({"T1"})  # sequences on which lesions are darker than healthy tissue
GRID = 64  # px; the midline is searched on masks of this side


class _Untrained(Method):
    """A method with nothing to learn."""

    def fit(self, train: SliceSet, val: SliceSet | None) -> FitReport:
        return FitReport()


class HistEqParams(ParamSet):
    """Parameters of :class:`HistEq`."""

    sigma: float = SIGMA(3.0, source="adbench")
    polarity: Literal["auto", "bright", "dark"] = param(
        "auto", "Lesions are bright or dark; auto: dark on T1, bright elsewhere.", source="Meissen 2021", scores=True
    )


class HistEq(_Untrained):
    """Histogram-equalised intensity: a voxel's rank among the brain voxels of its slice, smoothed.

    On FLAIR and T2 lesions are bright, on T1 dark, and this alone beats many deep methods. There is nothing to train.
    """

    name = "histeq"
    Params = HistEqParams
    params: HistEqParams

    def score(self, batch: SliceBatch) -> torch.Tensor:
        import torch

        from adbench.methods.common.image_ops import ascending, gaussian_blur

        polarity = self.params.polarity
        if polarity == "auto":
            polarity = "dark" if batch.modality.upper() in DARK_LESIONS else "bright"
        sign = 1.0 if polarity == "bright" else -1.0
        ranks = torch.zeros_like(batch.image)
        for image, brain, out in zip(batch.image, batch.brain, ranks, strict=True):
            values = sign * image[brain]
            if len(values):
                out[brain] = torch.searchsorted(ascending(values[None])[0], values, right=True) / len(values)
        return gaussian_blur(ranks, self.params.sigma)

    @classmethod
    def search_space(cls) -> dict[str, dict[str, Any]]:
        return {"sigma": {"low": 0.0, "high": 8.0}}


class ZScoreParams(ParamSet):
    """Parameters of :class:`ZScore`."""

    sigma: float = SIGMA(
        3.0, doc="Gaussian smoothing of the slices, within the brain; 0: none.", source="adbench", scores=False
    )
    sign: Sign = SIGN("abs", source="adbench")
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
    sized_by_data = True  # a mean and a deviation at each height that the training slices come from
    Params = ZScoreParams
    params: ZScoreParams

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
        from adbench.methods.common.image_ops import blur_within, brain_quantiles

        inside = batch.brain.to(batch.image.dtype)
        out = batch.image * inside
        if self.params.standardise:
            figures = brain_quantiles(out, batch.brain, (0.25, 0.5, 0.75))
            low, middle, high = figures.view(-1, 3, 1, 1).split(1, dim=1)  # type: ignore[no-untyped-call]
            out = ((out - middle) / (high - low).clamp(min=1e-3)).where(batch.brain, 0.0)
        return blur_within(out, inside, self.params.sigma)

    def score(self, batch: SliceBatch) -> torch.Tensor:
        import torch

        from adbench.methods.common.image_ops import one_sided, resize

        device = batch.image.device
        heights = self._tensors["heights"]
        nearest = (torch.tensor(batch.slices)[:, None] - heights[None]).abs().argmin(dim=1)
        mean, std = (self._tensors[key][nearest][:, None].to(device) for key in ("mean", "std"))
        size = (batch.image.shape[-2], batch.image.shape[-1])
        z = (self._standardised(batch) - resize(mean, size)) / resize(std, size) * batch.brain
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


class AsymmetryParams(ParamSet):
    """Parameters of :class:`Asymmetry`."""

    presmooth: float = param(
        6.0,
        "Gaussian smoothing of the slice within the brain before it is mirrored, which forgives folds that do not match.",
        unit="px of the slice",
        source="adbench",
        ge=0,
        le=50,
        scores=True,
    )
    sigma: float = SIGMA(5.0, source="adbench")
    sign: Sign = SIGN("abs", source="adbench")
    standardise: bool = param(
        True,
        "Divide by the interquartile range of the slice's brain, to compare slices.",
        source="adbench",
        scores=True,
    )
    max_tilt: float = param(
        10.0,
        "Largest tilt of the midline that is tried, in steps of 3°, then 1°.",
        unit="degrees",
        source="adbench",
        ge=0,
        le=45,
        scores=True,
    )


def midline(brain: torch.Tensor, max_tilt: float = 10.0) -> torch.Tensor:
    """The mirror line of each brain mask (B, 1, H, W): (B, 3) of tilt in radians and a point (x, y) of it in px.

    A line runs top to bottom when the tilt is 0. Starting from the centroid, tilts of up to ``max_tilt`` degrees and sideways
    shifts of up to 4 px (of 64) are tried; the line across which the mask overlaps its mirror image best is taken, the
    least tilted and shifted among equals.
    """
    import torch
    import torch.nn.functional as F

    from adbench.methods.common.image_ops import resize

    height, width = brain.shape[-2:]
    small = resize(brain.float(), (GRID, GRID))
    y, x = torch.meshgrid(*(torch.arange(n, device=brain.device) + 0.5 for n in (GRID, GRID)), indexing="ij")
    mass = small.sum(dim=(1, 2, 3)).clamp(min=1e-6)
    cx, cy = ((small[:, 0] * axis).sum(dim=(1, 2)) / mass for axis in (x, y))
    best = torch.full((len(brain),), -1.0, device=brain.device)
    found = torch.stack([torch.zeros_like(cx), cx, cy], dim=1)

    def attempt(steps: list[tuple[float, float]]) -> None:
        """Tries lines that differ from the best ones so far by (tilt in degrees, shift in px)."""
        nonlocal best, found
        origin = found
        # Small changes first: a later line must be better, not equal.
        for tilt, shift in sorted(steps, key=lambda step: (abs(step[0]) / 3 + abs(step[1]), step)):
            line = origin + torch.tensor([math.radians(tilt), shift, 0.0], device=brain.device)
            other = F.grid_sample(small, _mirror_grid(line, (GRID, GRID)), padding_mode="zeros", align_corners=False)
            overlap = (other * small).sum(dim=(1, 2, 3)) / mass
            better = overlap > best + 1e-6
            best = torch.where(better, overlap, best)
            found = torch.where(better[:, None], line, found)

    widest = int(max_tilt) // 3 * 3
    attempt([(tilt, shift) for tilt in range(-widest, widest + 1, 3) for shift in range(-4, 5)])
    attempt([(tilt, shift / 2) for tilt in (-1, 0, 1) for shift in (-1, 0, 1)])
    scale = torch.tensor([1.0, width / GRID, height / GRID], device=brain.device)
    return found * scale


def _mirror_grid(line: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """For ``grid_sample``: where each pixel's mirror image lies, (B, h, w, 2) in [-1, 1]; ``line`` in px of this grid."""
    import torch

    height, width = size
    y, x = torch.meshgrid(
        torch.arange(height, device=line.device) + 0.5, torch.arange(width, device=line.device) + 0.5, indexing="ij"
    )
    tilt, px, py = (line[:, k].view(-1, 1, 1) for k in range(3))
    distance = (x - px) * torch.cos(tilt) + (y - py) * torch.sin(tilt)  # from the line, along its normal
    mirrored = torch.stack([x - 2 * distance * torch.cos(tilt), y - 2 * distance * torch.sin(tilt)], dim=-1)
    return mirrored / torch.tensor([width / 2, height / 2], device=line.device) - 1


def mirrored(image: torch.Tensor, line: torch.Tensor) -> torch.Tensor:
    """``image`` (B, C, H, W) reflected across each slice's ``line`` of :func:`midline`, 0 from outside the image."""
    import torch.nn.functional as F

    grid = _mirror_grid(line.to(image), (image.shape[-2], image.shape[-1]))
    return F.grid_sample(image, grid, padding_mode="zeros", align_corners=False)


class Asymmetry(_Untrained):
    """A healthy brain is nearly symmetric: the map is a slice's difference from its own mirror image.

    The mirror line is the one that maps the brain mask best onto itself. The slice is smoothed first, the map afterwards.
    There is nothing to train. It cannot see symmetric disease, and without a sign it marks the healthy side too.
    """

    name = "asymmetry"
    Params = AsymmetryParams
    params: AsymmetryParams

    def score_and_reconstruct(self, batch: SliceBatch) -> tuple[torch.Tensor, torch.Tensor | None]:
        import torch

        from adbench.methods.common.image_ops import blur_within, signed_map, standardise

        p = self.params
        with torch.inference_mode():
            inside = batch.brain.to(batch.image.dtype)
            image = batch.image * inside
            if p.standardise:
                image, _ = standardise(image, batch.brain)
            smooth = blur_within(image, inside, p.presmooth)
            line = midline(batch.brain, p.max_tilt)
            both = inside * (mirrored(inside, line) > 0.99)
            residual = (smooth - mirrored(smooth, line)) * both
            return signed_map(residual, p.sign, p.sigma), None

    def score(self, batch: SliceBatch) -> torch.Tensor:
        return self.score_and_reconstruct(batch)[0]

    @classmethod
    def search_space(cls) -> dict[str, dict[str, Any]]:
        return {"presmooth": {"low": 0.0, "high": 6.0}, "sigma": {"low": 0.0, "high": 6.0}}


class Constant(_Untrained):
    """The same score for every voxel of the brain: the floor of every metric (its AUPRC is the prevalence)."""

    name = "constant"

    def score(self, batch: SliceBatch) -> torch.Tensor:
        return batch.brain.to(batch.image.dtype)
