"""Noise that the diffusion and denoising methods share: white, with an offset, of a given covariance, simplex, pyramid, coarse.

Random numbers are drawn on the CPU, from the generator of a training step or from one generator per slice, so they depend
neither on the device nor on the batch; fields are evaluated on the device, all slices and octaves at once. The module
imports torch; methods import it inside functions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from adbench.utils.compute import to_device

GRIDS = 10  # of pyramid noise, at most
AT_ONCE = 4  # slices whose fields a CPU computes together: they stay in its cache
TABLE = 256  # cells after which the lattice of gradients repeats; power of two
SIMPLEX_STD = 0.539  # standard deviation of one octave as scaled here, measured over 800 fields of 128 x 128


@dataclass(frozen=True)
class Simplex:
    """Shape of simplex noise (THOR, arXiv 2403.08464).

    Attributes:
        octaves: fields summed; each has twice the spatial frequency of the one before.
        persistence: amplitude of an octave relative to the one before.
        wavelength: side of a lattice cell of the first octave, in px of the grid (the papers' "frequency" 64).
    """

    octaves: int = 6
    persistence: float = 0.8
    wavelength: float = 64.0

    @property
    def std(self) -> float:
        """Standard deviation of the sum of independent octaves of amplitude ``persistence**k``."""
        return SIMPLEX_STD * math.sqrt(sum(self.persistence ** (2 * k) for k in range(self.octaves)))


def gaussian(count: int, size: tuple[int, int], generator: torch.Generator | list[torch.Generator]) -> torch.Tensor:
    """White noise (count, 1, h, w), mean 0 and variance 1, on the CPU.

    Args:
        count: slices.
        size: (h, w).
        generator: one for all, or one per slice.
    """
    if isinstance(generator, list):
        return torch.cat([torch.randn((1, 1, *size), generator=one) for one in generator])
    return torch.randn((count, 1, *size), generator=generator)


def with_offset(white: torch.Tensor, offset: torch.Tensor, share: torch.Tensor, strength: float) -> torch.Tensor:
    """``√α s b + √(1-α) n``: white noise that shares its variance with an offset common to many cells.

    Args:
        white: n, (B, C, h, w), standard normal.
        offset: b, (B, C, 1, 1) for one offset a slice, or (B, C, h, w); standard normal.
        share: α, (B,) in [0, 1].
        strength: s, standard deviation of the offset. Averaged over α ~ U(0, 1) a cell has variance (s² + 1) / 2, and two
            cells with one offset the covariance s² / 2.
    """
    alpha = share.view(-1, 1, 1, 1)
    return alpha.sqrt() * strength * offset + (1 - alpha).sqrt() * white


def coloured(noise: torch.Tensor, mean: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """``μ + L e`` in every cell of ``noise`` (B, C, h, w): mean μ, and ``L Lᵀ`` times the covariance of its channels.

    Args:
        noise: e.
        mean: (C,).
        factor: L, (C, C).
    """
    return mean.to(noise)[:, None, None] + torch.einsum("cd,bdhw->bchw", factor.to(noise), noise)


def _tables(count: int, octaves: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Permutation (count, TABLE), gradient angles (count, TABLE) and octave offsets (count, octaves, 2)."""
    order = torch.rand((count, TABLE), generator=generator, dtype=torch.float64).argsort(dim=1)
    angle = torch.rand((count, TABLE), generator=generator) * (2 * math.pi)
    offset = torch.rand((count, octaves, 2), generator=generator) * TABLE
    return order, angle, offset


def _corners(
    first: torch.Tensor, side: int, order: torch.Tensor, angle: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosine and sine (B, side²) of the gradients at the ``side`` x ``side`` lattice points from ``first`` (B, 2) on."""
    points = first.long()[:, :, None] + torch.arange(side, device=first.device)
    inner = order.gather(1, points[:, 1] & (TABLE - 1))
    which = order.gather(1, ((points[:, 0, :, None] + inner[:, None]) & (TABLE - 1)).flatten(1))
    return torch.cos(angle).gather(1, which), torch.sin(angle).gather(1, which)


def _lattice(x: torch.Tensor, y: torch.Tensor, span: float, order: torch.Tensor, angle: torch.Tensor) -> torch.Tensor:
    """2-D simplex noise (Perlin 2001; Gustavson 2005) in about [-1, 1], (B, h, w).

    Args:
        x: columns (B, 1, w), ascending.
        y: rows (B, h, 1), ascending.
        span: the longer of the two.
        order: permutation (B, TABLE).
        angle: of the gradients (B, TABLE).
    """
    skew, unskew = (math.sqrt(3) - 1) / 2, (3 - math.sqrt(3)) / 6
    shift = (x + y) * skew
    i, j = torch.floor(x + shift), torch.floor(y + shift)
    back = (i + j) * unskew
    x0, y0 = x - (i - back), y - (j - back)
    right = (x0 > y0).to(x.dtype)  # which of the two triangles of the cell
    # Gradients are looked up once a lattice point, of which there are fewer than pixels.
    first, side = torch.stack([i[:, 0, 0], j[:, 0, 0]], 1), int(span * (1 + 2 * skew)) + 4
    column, row = i - first[:, 0, None, None], j - first[:, 1, None, None]
    if side > TABLE:  # they repeat
        column, row, side = column % TABLE, row % TABLE, TABLE + 1
    cos, sin = _corners(first, side, order, angle)
    at = column * side + row
    total = torch.zeros_like(x0)
    for di, dj, steps, further in (
        (0.0, 0.0, 0, 0),
        (right, 1 - right, 1, right * (side - 1) + 1),
        (1.0, 1.0, 2, side + 1),
    ):
        dx, dy = (x0 - di).add_(steps * unskew), (y0 - dj).add_(steps * unskew)
        falloff = (0.5 - dx * dx).sub_(dy * dy).clamp_(min=0).pow_(4)
        which = (at + further).long().flatten(1)
        dx *= cos.gather(1, which).view_as(dx)
        dy *= sin.gather(1, which).view_as(dy)
        total += falloff.mul_(dx.add_(dy))
    return total.mul_(99.2)  # unit gradients: the largest possible value is then 1


def simplex(
    count: int,
    size: tuple[int, int],
    generator: torch.Generator | list[torch.Generator],
    shape: Simplex | None = None,
    device: torch.device | str = "cpu",
    *,
    unit: bool = True,
) -> torch.Tensor:
    """Multi-octave simplex noise (count, 1, h, w) on ``device``: ``sum_k persistence^k S_k(2^k r / wavelength)``.

    Every slice has gradients of its own, every octave an offset of its own.

    Args:
        count: slices.
        size: (h, w).
        generator: one for all, or one per slice.
        shape: octaves, persistence and wavelength.
        device: where the field is evaluated and returned.
        unit: divide by the field's standard deviation, as the forward process of a diffusion model assumes.
    """
    shape = shape or Simplex()
    if isinstance(generator, list):
        drawn = [_tables(1, shape.octaves, one) for one in generator]
        tables = [torch.cat([part[k] for part in drawn]) for k in range(3)]
    else:
        tables = list(_tables(count, shape.octaves, generator))
    order, angle, offset = (to_device(table, str(device)) for table in tables)
    rows = torch.arange(size[0], device=device, dtype=torch.float32)
    columns = torch.arange(size[1], device=device, dtype=torch.float32)
    parts, most = [], AT_ONCE if rows.is_cpu else max(1, len(order))
    for start in range(0, max(1, len(order)), most):
        part = slice(start, start + most)
        out = torch.zeros((len(order[part]), *size), device=device)
        for octave in range(shape.octaves):
            scale = 2.0**octave / shape.wavelength
            y = (rows * scale)[:, None] + offset[part, octave, :1, None]
            x = (columns * scale)[None] + offset[part, octave, 1:, None]
            out += shape.persistence**octave * _lattice(x, y, max(size) * scale, order[part], angle[part])
        parts.append(out)
    return torch.cat(parts)[:, None] / (shape.std if unit else 1.0)


def pyramid(
    count: int, size: tuple[int, int], generator: torch.Generator | list[torch.Generator], discount: float = 0.8
) -> torch.Tensor:
    """White noise plus ``sum_i discount^i`` times white noise of ever coarser grids (count, 1, h, w), on the CPU (ANDi).

    The grids have ``n_i = max(1, floor(n_(i-1) / r_i^i))`` points along a side, ``r_i ~ U(2, 4)``, i = 0, 1, ... until one
    point is left or ten grids are added, and are enlarged bilinearly. Each slice is divided by its standard deviation.

    Args:
        count: slices.
        size: (h, w).
        generator: one for all, which then have grids of equal sizes, or one per slice.
        discount: weight of a grid relative to the one before; 0 adds one full-size grid and leaves white noise.
    """
    if isinstance(generator, list):
        return torch.cat([pyramid(1, size, one, discount) for one in generator])
    total = torch.randn((count, 1, *size), generator=generator)
    height, width = size
    for level, ratio in enumerate((2 + 2 * torch.rand(GRIDS, generator=generator)).tolist()):
        height, width = (max(1, int(side / ratio**level)) for side in (height, width))
        grid = torch.randn((count, 1, height, width), generator=generator)
        total += discount**level * F.interpolate(grid, size=size, mode="bilinear", align_corners=False)
        if height == width == 1:
            break
    return total / total.std(dim=(2, 3), keepdim=True)


def coarse(
    count: int, size: tuple[int, int], generator: torch.Generator, *, cells: int = 16, std: float = 0.2
) -> torch.Tensor:
    """Low-resolution Gaussian noise stretched bilinearly (count, 1, h, w), on the CPU (Kascenas et al. 2022, §2.1).

    ``cells`` x ``cells`` independent values of standard deviation ``std`` cover the image; the lattice lies at a random
    place, different in each slice. Bilinear interpolation leaves (2/3) ``std`` averaged over the image.

    Args:
        count: slices.
        size: (h, w).
        generator: a CPU generator.
        cells: lattice points along a side.
        std: standard deviation of the values at the lattice points.
    """
    coarse_values = torch.randn((count, 1, cells + 1, cells + 1), generator=generator) * std
    place = torch.rand((count, 2), generator=generator)
    axes = [
        (torch.arange(side) * cells / side)[None] + place[:, k : k + 1]  # in lattice units, [0, cells + 1)
        for k, side in enumerate(size)
    ]
    # Lattice units to the [-1, 1] of grid_sample with align_corners; at most one px reads past the last point: clamped.
    y, x = (axis.clamp(max=cells) * (2 / cells) - 1 for axis in axes)
    grid = torch.stack([x[:, None].expand(-1, size[0], -1), y[:, :, None].expand(-1, -1, size[1])], dim=-1)
    return F.grid_sample(coarse_values, grid, mode="bilinear", padding_mode="border", align_corners=True)
