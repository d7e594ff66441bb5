"""Synthetic anomalies for training: shapes, foreign patches, tissue bias, Poisson blending (FPI, PII, NSA, DISYRE).

They share no shape, no formula and no random number with :mod:`adbench.datasets.synthetic_lesions`, which measures methods.
Everything works on (B, 1, S, S) tensors in [0, 1]; random numbers come from a CPU generator. The module imports torch;
methods import it inside functions.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from adbench.methods.common import image_ops, noise

TISSUES = 5  # classes of intensity (DISYRE)
SHARPEST = 0.5  # px; narrower edges are hard ones


def shapes(brain: torch.Tensor, generator: torch.Generator, smallest: float, largest: float) -> torch.Tensor:
    """One soft shape per slice, centred in its brain: a turned rectangle, an ellipse, or an irregular blob.

    Args:
        brain: (B, 1, S, S) bool; a shape is 0 outside.
        generator: a CPU generator.
        smallest: shortest side in px.
        largest: longest side in px.

    Returns:
        (B, 1, S, S) in [0, 1]. Edges are those of a Gaussian blur of standard deviation U(0, 5) px of 128 with probability
        0.7, else hard; a slice without brain gets none.
    """
    count, side = len(brain), brain.shape[-1]
    kind = torch.randint(3, (count, 1, 1, 1), generator=generator)
    half = image_ops.uniform((count, 2, 1, 1, 1), smallest, largest, generator) / 2
    angle = image_ops.uniform((count, 1, 1, 1), 0, math.pi, generator)
    blurred = torch.rand((count, 1, 1, 1), generator=generator) < 0.7
    width = image_ops.uniform((count, 1, 1, 1), 0, 5 * side / 128, generator) * blurred
    bumps = noise.coarse(count, (side, side), generator, cells=8, std=0.6)

    there = brain.flatten(1).float().cpu()
    there[:, 0] += there.sum(dim=1) == 0  # a slice without brain has a centre, and no shape
    centre = torch.multinomial(there, 1, generator=generator).view(-1, 1, 1, 1)
    line = torch.arange(side, dtype=torch.float32)
    down, right = line[:, None] - centre // side, line - centre % side
    a = (torch.cos(angle) * right + torch.sin(angle) * down) / half[:, 0]
    b = (torch.cos(angle) * down - torch.sin(angle) * right) / half[:, 1]
    radius = torch.where(kind == 0, torch.maximum(a.abs(), b.abs()), (a.square() + b.square()).sqrt())
    radius = radius * torch.where(kind == 2, bumps.exp(), 1.0)
    distance = (1 - radius) * half.amin(dim=1)  # px inside the edge, about
    soft = torch.special.ndtr(distance / width.clamp(min=1e-3))
    shape = torch.where(width < SHARPEST, (distance > 0).float(), soft)
    return shape.where(shape > 1e-3, 0.0).to(brain.device) * brain


def blend(image: torch.Tensor, foreign: torch.Tensor, shape: torch.Tensor, strength: torch.Tensor) -> torch.Tensor:
    """``(1 - a m) x + a m x_f``: foreign patch interpolation (Tan et al. 2020, FPI).

    Args:
        image: x.
        foreign: x_f.
        shape: m in [0, 1].
        strength: a, (B, 1, 1, 1) in [0, 1].
    """
    return image + strength * shape * (foreign - image)


def matched(image: torch.Tensor, foreign: torch.Tensor, shape: torch.Tensor) -> torch.Tensor:
    """``foreign`` with the smallest and the largest value under the shape that ``image`` has there (DISYRE v2)."""

    def ends(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        low = values.masked_fill(shape == 0, 1.0).amin(dim=(2, 3), keepdim=True)
        return low, values.masked_fill(shape == 0, 0.0).amax(dim=(2, 3), keepdim=True)

    (low, high), (its_low, its_high) = ends(image), ends(foreign)
    return (foreign - its_low) / (its_high - its_low).clamp(min=1e-3) * (high - low) + low


def tissue(image: torch.Tensor, brain: torch.Tensor, shape: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """``shape`` on one or two of the slice's five classes of intensity, smoothed by 1 px (DISYRE v2).

    Classes are fifths of the intensities of the brain; each is drawn with its share under the shape.
    """
    edges = image_ops.brain_quantiles(image, brain, tuple(k / TISSUES for k in range(1, TISSUES)))
    classes = (image[..., None] > edges[:, None, None, None]).sum(dim=-1)
    under = shape.flatten(1).cpu()
    under = under + (under.sum(dim=1, keepdim=True) == 0)
    drawn = torch.multinomial(under, 2, replacement=True, generator=generator).to(image.device)
    both = classes.flatten(1).gather(1, drawn).view(-1, 2, 1, 1)
    there = (classes == both[:, :1]) | (classes == both[:, 1:])
    return image_ops.gaussian_blur(shape * there, 1.0) * (shape > 0)


def shifted(image: torch.Tensor, where: torch.Tensor, change: torch.Tensor) -> torch.Tensor:
    """``x + change * where``, clipped to [0, 1]; ``change`` (B, 1, 1, 1) in [-1, 1]."""
    return (image + change * where).clamp(0, 1)


def poisson(
    image: torch.Tensor,
    foreign: torch.Tensor,
    shape: torch.Tensor,
    brain: torch.Tensor,
    strength: torch.Tensor,
    steps: int = 100,
) -> torch.Tensor:
    """Foreign structure without a seam: Poisson's equation with mixed gradients (Perez et al. 2003; PII, NSA).

    Inside the shape the gradients are, link by link between neighbours, the larger of ``(1 - a)`` times those of the slice and
    ``a`` times the foreign ones; around it the slice keeps its values, and nothing is linked to what is no brain. Solved by
    conjugate gradients, all slices at once, and clipped to [0, 1].

    Args:
        image: the slice.
        foreign: another one.
        shape: positive where the equation holds.
        brain: (B, 1, S, S) bool.
        strength: a, (B, 1, 1, 1) in [0, 1]; 0 gives the slice itself.
        steps: of the solver.
    """
    inside = ((shape > 0) & brain).float()
    known = brain.float()
    links = [known[..., 1:, :] * known[..., :-1, :], known[..., 1:] * known[..., :-1]]  # down and across

    def slopes(values: torch.Tensor) -> list[torch.Tensor]:
        return [values[..., 1:, :] - values[..., :-1, :], values[..., 1:] - values[..., :-1]]

    def gathered(flows: list[torch.Tensor]) -> torch.Tensor:
        """What the links bring to every pixel of the inside."""
        down, across = (flow * link for flow, link in zip(flows, links, strict=True))
        rows = F.pad(down, (0, 0, 0, 1)) - F.pad(down, (0, 0, 1, 0))
        columns = F.pad(across, (0, 1)) - F.pad(across, (1, 0))
        return inside * (rows + columns)

    def product(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return (one * other).sum(dim=(1, 2, 3), keepdim=True)

    wanted = []
    for own, its in zip(slopes(image), slopes(foreign), strict=True):
        mine, other = (1 - strength) * own, strength * its
        wanted.append(torch.where(other.abs() > mine.abs(), other, mine))
    # At strength 0 the wanted slopes are the slice's own to the bit, the residual is 0, and nothing moves.
    residual = gathered([own - want for own, want in zip(slopes(image), wanted, strict=True)])
    change, direction, size = torch.zeros_like(image), residual, product(residual, residual)
    for _ in range(steps):
        pushed = -gathered(slopes(direction))
        length = size / product(direction, pushed).clamp(min=1e-12)
        change = change + length * direction
        residual = residual - length * pushed
        before, size = size, product(residual, residual)
        direction = residual + size / before.clamp(min=1e-12) * direction
    return torch.where(inside > 0, (image + change).clamp(0, 1), image)
