"""Operations on single slices that several methods share: mirroring, affine augmentation, signed maps.

Everything works on (B, 1, H, W) tensors on their own device and treats each slice by itself. The module imports torch;
methods import it inside functions.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from adbench.methods.common.image_ops import gaussian_blur, uniform


def mirror(
    image: torch.Tensor, brain: torch.Tensor, generator: torch.Generator, probability: float = 0.5
) -> tuple[torch.Tensor, torch.Tensor]:
    """Each slice mirrored left-right with ``probability``."""
    happens = (torch.rand((len(image), 1, 1, 1), generator=generator) < probability).to(image.device)
    return torch.where(happens, image.flip(-1), image), torch.where(happens, brain.flip(-1), brain)


def move(
    image: torch.Tensor,
    brain: torch.Tensor,
    generator: torch.Generator,
    *,
    degrees: float = 10.0,
    shift: float = 0.1,
    scale: float = 0.1,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Slices rotated by up to ``degrees``, shifted by up to ``shift`` of the side, scaled by up to ``1 ± scale``."""
    count = len(image)
    angle = uniform((count,), -degrees, degrees, generator) * (math.pi / 180)
    offset = uniform((count, 2), -shift, shift, generator) * 2  # the grid spans 2
    zoom = 1 / uniform((count,), 1 - scale, 1 + scale, generator)
    cos, sin = torch.cos(angle) * zoom, torch.sin(angle) * zoom
    affine = torch.stack([torch.stack([cos, -sin, offset[:, 0]], 1), torch.stack([sin, cos, offset[:, 1]], 1)], 1)
    grid = F.affine_grid(affine.to(image.device), list(image.shape), align_corners=False)
    both = F.grid_sample(torch.cat([image, brain.to(image.dtype)], 1), grid, padding_mode="zeros", align_corners=False)
    mask = both[:, 1:] >= 0.5
    return both[:, :1] * mask, mask


def one_sided(residual: torch.Tensor, sign: str) -> torch.Tensor:
    """What counts of a signed residual: "abs" both sides, "positive" (brighter than healthy) or "negative"; not negative."""
    if sign == "positive":
        return residual.clamp(min=0)
    return residual.abs() if sign == "abs" else (-residual).clamp(min=0)


def signed_map(residual: torch.Tensor, sign: str, sigma: float, smooth: str = "magnitude") -> torch.Tensor:
    """The anomaly map of a signed residual ``x - x_healthy``.

    Args:
        residual: (B, 1, H, W), 0 outside the brain.
        sign: "abs", "positive" (brighter than healthy) or "negative".
        sigma: Gaussian smoothing in px, 0: none.
        smooth: "magnitude" smooths the chosen part of the residual, "signed" smooths the residual before the choice.
    """
    if smooth == "signed":
        residual = gaussian_blur(residual, sigma)
    part = one_sided(residual, sign)
    return part if smooth == "signed" else gaussian_blur(part, sigma)
