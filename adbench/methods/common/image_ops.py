"""Image operations that methods share: resizing, smoothing, intensity standardisation, augmentation, signed residuals.

Everything works on (B, C, H, W) tensors on their own device and treats each slice by itself. The module imports torch;
methods import it inside functions.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F


def resize(image: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """``image`` (B, C, H, W) on the grid ``size`` (h, w): bilinear, area-antialiased where it gets smaller, no padding."""
    if tuple(image.shape[-2:]) == tuple(size):
        return image
    return F.interpolate(image, size=size, mode="bilinear", align_corners=False, antialias=True)


def resize_mask(mask: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """A bool mask (B, 1, H, W) on the grid ``size`` (h, w): true where at least half of the area was."""
    if tuple(mask.shape[-2:]) == tuple(size):
        return mask
    return resize(mask.float(), size) >= 0.5


def gaussian_kernel(sigma: float, truncate: float = 4.0, device: torch.device | None = None) -> torch.Tensor:
    """Sampled Gaussian of standard deviation ``sigma`` px with unit sum, cut at ``truncate`` standard deviations."""
    radius = max(1, int(truncate * sigma + 0.5))
    x = torch.arange(-radius, radius + 1, dtype=torch.float64, device=device)
    kernel = torch.exp(-0.5 * (x / sigma) ** 2)
    return (kernel / kernel.sum()).float()


def gaussian_blur(image: torch.Tensor, sigma: float) -> torch.Tensor:
    """``image`` (B, C, H, W) convolved with a Gaussian of ``sigma`` px, zero outside the image; unchanged for 0.

    Equals ``scipy.ndimage.gaussian_filter(..., mode="constant")`` on each image.
    """
    if sigma <= 0:
        return image
    kernel = gaussian_kernel(sigma, device=image.device).to(image.dtype)
    radius = len(kernel) // 2
    # A CPU is faster with images as channels, to the same bits where the kernel is not much larger than they are.
    as_channels = image.is_cpu and radius < min(image.shape[-2:])
    count = max(1, math.prod(image.shape[:-2])) if as_channels else 1
    flat = image.reshape(-1, count, *image.shape[-2:])
    flat = F.conv2d(flat, kernel.view(1, 1, -1, 1).expand(count, 1, -1, 1), padding=(radius, 0), groups=count)
    flat = F.conv2d(flat, kernel.view(1, 1, 1, -1).expand(count, 1, 1, -1), padding=(0, radius), groups=count)
    return flat.reshape(image.shape)


def blur_within(image: torch.Tensor, inside: torch.Tensor, sigma: float) -> torch.Tensor:
    """``image`` (B, 1, H, W), 0 outside the mask ``inside`` (float), smoothed without mixing in what lies outside."""
    return gaussian_blur(image, sigma) / gaussian_blur(inside, sigma).clamp(min=1e-6) * inside


CENTRE, SPREAD = 0.4, 0.15  # where the median and one interquartile range of a standardised slice lie in [0, 1]


def ascending(values: torch.Tensor) -> torch.Tensor:
    """``values`` (B, n) sorted along each row; on a CPU by numpy, whose sort is several times as fast."""
    if values.is_cpu and not values.requires_grad:
        return torch.from_numpy(np.sort(values.numpy(), axis=1))
    return values.sort(dim=1).values


def brain_quantiles(image: torch.Tensor, brain: torch.Tensor, shares: tuple[float, ...]) -> torch.Tensor:
    """Quantiles (B, len(shares)) over the brain of each slice (B, 1, H, W), as ``torch.quantile`` interpolates them.

    All slices at once, so that no slice waits for the device; what a slice without brain gets means nothing.
    """
    values = ascending(image.float().masked_fill(~brain, math.inf).flatten(1))
    count = brain.flatten(1).sum(dim=1, keepdim=True)
    rank = torch.cat([(count - 1).clamp(min=0) * share for share in shares], dim=1)
    below = rank.floor()
    return values.gather(1, below.long()).lerp(values.gather(1, rank.ceil().long()), rank - below)


def standardise(image: torch.Tensor, brain: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Slices on one intensity scale: the median of the brain at 0.4, its interquartile range 0.15 wide, clipped to [0, 1].

    Args:
        image: (B, 1, H, W) in [0, 1].
        brain: (B, 1, H, W) bool.

    Returns:
        The slices, 0 outside the brain, and (B, 2) median and interquartile range for :func:`unstandardise`. A slice without
        brain becomes 0.
    """
    low, middle, high = brain_quantiles(image, brain, (0.25, 0.5, 0.75)).unbind(1)
    there = brain.flatten(1).any(dim=1)
    figures = torch.stack([middle.where(there, 0.0), (high - low).clamp(min=0.01).where(there, 1.0)], dim=1)
    middle, width = figures[:, 0].view(-1, 1, 1, 1), figures[:, 1].view(-1, 1, 1, 1)
    return ((image - middle) / width * SPREAD + CENTRE).clamp(0, 1) * brain, figures


def centred(image: torch.Tensor, brain: torch.Tensor) -> torch.Tensor:
    """Standardised slices on the scale of a network's activations: median 0, interquartile range 1, background 0."""
    return (image - CENTRE) / SPREAD * brain


def unstandardise(image: torch.Tensor, brain: torch.Tensor, figures: torch.Tensor) -> torch.Tensor:
    """The inverse of :func:`standardise` but for what was clipped: back to [0, 1], 0 outside the brain."""
    middle, width = figures[:, 0].view(-1, 1, 1, 1), figures[:, 1].view(-1, 1, 1, 1)
    return ((image - CENTRE) / SPREAD * width + middle).clamp(0, 1) * brain


def uniform(shape: tuple[int, ...], low: float, high: float, generator: torch.Generator) -> torch.Tensor:
    """Uniform float32 draws in [low, high) on the CPU, so that they do not depend on the device of the model."""
    return torch.rand(shape, generator=generator) * (high - low) + low


def _moved(
    image: torch.Tensor, brain: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, offset: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Slices and their masks rotated (and scaled) by ``cos``, ``sin`` (B,) and shifted by ``offset`` (B, 2) half sides."""
    ratio = image.shape[-2] / image.shape[-1]
    rows = [torch.stack([cos, -sin * ratio, offset[:, 0]], 1), torch.stack([sin / ratio, cos, offset[:, 1]], 1)]
    grid = F.affine_grid(torch.stack(rows, 1).to(image.device), list(image.shape), align_corners=False)
    both = F.grid_sample(torch.cat([image, brain.to(image.dtype)], 1), grid, padding_mode="zeros", align_corners=False)
    return both[:, :1], both[:, 1:] >= 0.5


def augment(
    image: torch.Tensor,
    brain: torch.Tensor,
    generator: torch.Generator,
    *,
    degrees: float = 5.0,
    shift: float = 8.0 / 256.0,
    intensity: float = 0.1,
    probability: float = 0.5,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Randomly rotated, shifted, brightened and contrasted slices (as in the official code of MAD-AD).

    Args:
        image: (B, 1, H, W) in [0, 1].
        brain: (B, 1, H, W) bool; it moves with the image and masks the background afterwards.
        generator: a CPU generator; every draw comes from it.
        degrees: largest rotation, either way.
        shift: largest shift as a share of the side (8 px of 256).
        intensity: largest change of brightness (added) and of contrast (factor about the mean of the brain).
        probability: of each of the four changes, independently, per slice.

    Returns:
        The changed image in [0, 1], background 0, and the moved mask.
    """
    count = image.shape[0]
    happens = (torch.rand((count, 4), generator=generator) < probability).float()
    angle = uniform((count,), -degrees, degrees, generator) * happens[:, 0] * (math.pi / 180)
    offset = uniform((count, 2), -shift, shift, generator) * happens[:, 1:2] * 2  # the grid spans 2
    bright = uniform((count,), -intensity, intensity, generator) * happens[:, 2]
    contrast = 1 + uniform((count,), -intensity, intensity, generator) * happens[:, 3]
    moved, mask = _moved(image, brain, torch.cos(angle), torch.sin(angle), offset)
    area = mask.sum(dim=(1, 2, 3), keepdim=True).clamp(min=1)
    mean = (moved * mask).sum(dim=(1, 2, 3), keepdim=True) / area
    scale = contrast.to(image.device).view(-1, 1, 1, 1)
    out = (moved - mean) * scale + mean + bright.to(image.device).view(-1, 1, 1, 1)
    return out.clamp(0, 1) * mask, mask


def random_flip(
    image: torch.Tensor, brain: torch.Tensor, generator: torch.Generator, probability: float = 0.5
) -> tuple[torch.Tensor, torch.Tensor]:
    """Each slice mirrored left-right with ``probability``."""
    happens = (torch.rand((len(image), 1, 1, 1), generator=generator) < probability).to(image.device)
    return torch.where(happens, image.flip(-1), image), torch.where(happens, brain.flip(-1), brain)


def random_affine(
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
    moved, mask = _moved(image, brain, torch.cos(angle) * zoom, torch.sin(angle) * zoom, offset)
    return moved * mask, mask


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
