"""Left-right asymmetry: no training."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

from adbench.methods.base import FitReport, Method
from adbench.methods.card import Card
from adbench.params import ParamSet, param

if TYPE_CHECKING:
    import torch

    from adbench.datasets.slices import SliceBatch, SliceSet

GRID = 64  # px; the midline is searched on masks of this side


class AsymmetryParams(ParamSet):
    presmooth: float = param(
        6.0,
        "Gaussian smoothing of the slice within the brain before it is mirrored, which forgives folds that do not match.",
        unit="px of the slice",
        source="adbench",
        ge=0,
        le=50,
    )
    sigma: float = param(
        5.0, "Gaussian smoothing of the map, 0: none.", unit="px of the slice", source="adbench", ge=0, le=50
    )
    sign: Literal["abs", "positive", "negative"] = param(
        "abs", "Which differences count: both, brighter than the other side, darker.", source="adbench"
    )
    standardise: bool = param(
        True, "Divide by the interquartile range of the slice's brain, to compare slices.", source="adbench"
    )
    max_tilt: float = param(
        10.0,
        "Largest tilt of the midline that is tried, in steps of 3°, then 1°.",
        unit="degrees",
        source="adbench",
        ge=0,
        le=45,
    )


def midline(brain: torch.Tensor, max_tilt: float = 10.0) -> torch.Tensor:
    """The mirror line of each brain mask (B, 1, H, W): (B, 3) of tilt in radians and a point (x, y) of it in px.

    A line runs top to bottom when the tilt is 0. Starting from the centroid, tilts of up to ``max_tilt`` degrees and sideways
    shifts of up to 4 px (of 64) are tried; the line across which the mask overlaps its mirror image best is taken, the
    least tilted and shifted among equals.
    """
    import torch
    import torch.nn.functional as F

    from adbench.methods.common.image_ops import shrink

    height, width = brain.shape[-2:]
    small = shrink(brain.float(), (GRID, GRID))
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
    """``image`` (B, C, H, W) reflected across each slice's ``line`` of :func:`midline`, 0 from outside the picture."""
    import torch.nn.functional as F

    grid = _mirror_grid(line.to(image), (image.shape[-2], image.shape[-1]))
    return F.grid_sample(image, grid, padding_mode="zeros", align_corners=False)


class Asymmetry(Method):
    """A healthy brain is nearly symmetric: the map is a slice's difference from its own mirror image.

    The mirror line is the one that maps the brain mask best onto itself. The slice is smoothed first, the map afterwards.
    There is nothing to train. It cannot see symmetric disease, and without a sign it marks the healthy side too.
    """

    name = "asymmetry"
    Params = AsymmetryParams
    params: AsymmetryParams
    card = Card(
        paper="no paper: a row without training that a credible table carries",
        equations=("map: G_sigma * |x - S(x)| where both sides are brain, x smoothed, S the reflection",),
        variants={"sign": "absolute, brighter or darker than the other side"},
        published=("none",),
        tried=(
            "real FLAIR strokes, validation AUPRC: .25 at presmooth 2 and sigma 3, .33 at 6 and 5, .62 there with sign=positive",
        ),
    )

    def fit(self, train: SliceSet, val: SliceSet | None) -> FitReport:
        return FitReport()

    def score_and_reconstruct(self, batch: SliceBatch) -> tuple[torch.Tensor, torch.Tensor | None]:
        import torch

        from adbench.methods.common import augment, image_ops
        from adbench.methods.common.image_ops import gaussian_blur

        p = self.params
        with torch.inference_mode():
            inside = batch.brain.to(batch.image.dtype)
            image = batch.image * inside
            if p.standardise:
                image, _ = image_ops.standardise(image, batch.brain)
            smooth = gaussian_blur(image, p.presmooth) / gaussian_blur(inside, p.presmooth).clamp(min=1e-6) * inside
            line = midline(batch.brain, p.max_tilt)
            both = inside * (mirrored(inside, line) > 0.99)
            residual = (smooth - mirrored(smooth, line)) * both
            return augment.signed_map(residual, p.sign, p.sigma), None

    def score(self, batch: SliceBatch) -> torch.Tensor:
        return self.score_and_reconstruct(batch)[0]

    @classmethod
    def search_space(cls) -> dict[str, dict[str, Any]]:
        return {"presmooth": {"low": 0.0, "high": 6.0}, "sigma": {"low": 0.0, "high": 6.0}}
