"""Masked diffusion in latent space: schedule, random training masks, forward process, loss, sampler (arXiv 2502.16943).

Masks are 1 where a cell is noised (anomalous), everywhere in this package.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn import functional as F

STEPS = 10

Network = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


def alphas_cumprod(steps: int = STEPS) -> torch.Tensor:
    """``ᾱ_0 = 1, ᾱ_1, ..., ᾱ_T``, shape (T + 1,), of the cosine schedule (diffusers ``squaredcos_cap_v2``)."""
    from diffusers import DDPMScheduler

    scheduler: Any = DDPMScheduler(  # type: ignore[no-untyped-call]
        num_train_timesteps=steps, beta_schedule="squaredcos_cap_v2"
    )
    return torch.cat([torch.ones(1), scheduler.alphas_cumprod.float()])


def q_sample(
    z0: torch.Tensor, mask: torch.Tensor, noise: torch.Tensor, t: torch.Tensor, alphas: torch.Tensor
) -> torch.Tensor:
    """``z_t = M (√ᾱ_t z0 + √(1-ᾱ_t) ε) + (1-M) z0``: noise where the mask is 1, the clean latent elsewhere.

    Args:
        z0: (B, C, h, w) clean latents.
        mask: (B, 1, h, w), 1 noised.
        noise: (B, C, h, w) standard normal.
        t: (B,) integer times in 1..T.
        alphas: (T + 1,) from :func:`alphas_cumprod`.
    """
    a = alphas.to(z0)[t].view(-1, 1, 1, 1)
    return mask * (a.sqrt() * z0 + (1 - a).sqrt() * noise) + (1 - mask) * z0


def allowed_cells(brain: torch.Tensor, grid: tuple[int, int], block: int = 16, share: float = 0.9) -> torch.Tensor:
    """Latent cells that may be noised: those of image blocks that are nearly all brain (official code of MAD-AD).

    Args:
        brain: (B, 1, H, W) bool on the grid of the autoencoder's input.
        grid: (h, w) latent cells.
        block: side of a block in px.
        share: smallest mean of the brain mask over a block.

    Returns:
        (B, 1, h, w) bool. A cell smaller than a block follows its block; a cell larger than one follows its own mean.
    """
    size = brain.shape[-2:]
    blocks = (max(1, size[0] // block), max(1, size[1] // block))
    blocks = (min(blocks[0], grid[0]), min(blocks[1], grid[1]))
    mean = F.adaptive_avg_pool2d(brain.float(), blocks)
    return F.interpolate(mean, size=grid, mode="nearest") >= share


def random_masks(
    allowed: torch.Tensor,
    generator: torch.Generator,
    *,
    largest_share: float = 0.4,
    sizes: Sequence[int] = (1, 2, 4, 8),
    probabilities: Sequence[float] = (0.2, 0.3, 0.3, 0.2),
    per_batch: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """One random mask per sample: the grid is cut into rectangles and a share of them, drawn at random, is noised.

    Args:
        allowed: (B, 1, h, w) bool, cells that may be noised (:func:`allowed_cells`); others stay 0 whatever is drawn.
        generator: CPU generator of every draw.
        largest_share: the noised share of a sample's rectangles is uniform in [0, ``largest_share``].
        sizes: rectangle heights and widths in cells, drawn independently of each other ...
        probabilities: ... with these probabilities.
        per_batch: one rectangle size for the whole batch, as in the official code, instead of one per sample.

    Returns:
        (B, 1, h, w) float32 on the device of ``allowed``: 1 noised, 0 clean; and on the CPU (B, 1, h, w), the number of each
        cell's rectangle in its sample.
    """
    count, _, height, width = allowed.shape
    draws = 1 if per_batch else count
    weights = torch.tensor(probabilities, dtype=torch.float64)
    choices = torch.tensor(list(sizes))
    sides = choices[torch.multinomial(weights, 2 * draws, replacement=True, generator=generator)].view(draws, 2)
    sides = sides.expand(count, 2)
    share = torch.rand(count, generator=generator) * largest_share
    luck = torch.rand((count, height * width), generator=generator)
    tiles = (torch.tensor([height, width]) + sides - 1) // sides  # tiles down and across, (B, 2)
    total = tiles.prod(dim=1)
    luck[torch.arange(height * width)[None] >= total[:, None]] = 2.0  # places beyond the last tile
    rank = luck.argsort(dim=1).argsort(dim=1)
    noised = rank < (share * total + 0.5).floor()[:, None]
    rows = torch.arange(height)[None, :, None] // sides[:, 0, None, None]
    columns = torch.arange(width)[None, None, :] // sides[:, 1, None, None]
    tile = rows * tiles[:, 1, None, None] + columns
    mask = noised.gather(1, tile.view(count, -1)).view(count, 1, height, width)
    return mask.float().to(allowed.device) * allowed, tile.expand(count, -1, -1)[:, None]


def mask_loss(logit: torch.Tensor, mask: torch.Tensor, kind: str) -> torch.Tensor:
    """Mean loss of the mask head: "mse" on the probability (official code) or "bce" (paper)."""
    if kind == "mse":
        return F.mse_loss(logit.float().sigmoid(), mask)
    return F.binary_cross_entropy_with_logits(logit.float(), mask)


def diffusion_loss(
    clean: torch.Tensor, logit: torch.Tensor, z0: torch.Tensor, mask: torch.Tensor, kind: str, weight: float
) -> torch.Tensor:
    """``mean (z0 - f_z0)² + λ L_mask`` over all cells (arXiv 2502.16943).

    Args:
        clean: (B, C, h, w) predicted clean latent.
        logit: (B, 1, h, w) of the mask head.
        z0: (B, C, h, w) clean latent.
        mask: (B, 1, h, w), 1 noised.
        kind: "mse" or "bce".
        weight: λ.
    """
    return F.mse_loss(clean.float(), z0) + weight * mask_loss(logit, mask, kind)


def masked_ddim(
    network: Network,
    latent: torch.Tensor,
    alphas: torch.Tensor,
    *,
    eta: float,
    noise: torch.Tensor | None = None,
    threshold: float = 0.5,
    restore: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Repair a latent: at every step the cells that the network flags take a DDIM step, the others stay as they are.

    ``z_{t-1} = B (√ᾱ_{t-1} f_z0 + √(1-ᾱ_{t-1}-σ²) ε̂ + σ ε') + (1-B) z_t`` with ``B = f_M > threshold``,
    ``ε̂ = (z_t - √ᾱ_t f_z0) / √(1-ᾱ_t)`` and ``σ = η √((1-ᾱ_{t-1})/(1-ᾱ_t)) √(1-ᾱ_t/ᾱ_{t-1})``. The latent of the test slice is
    ``z_T``: no noise is added first. σ is 0 at the last step.

    Args:
        network: (z_t, t) -> (f_z0, f_M), the clean latent (B, C, h, w) and the probability (B, 1, h, w) of being noised.
        latent: (B, C, h, w), the scaled latent of the slice.
        alphas: (T + 1,) from :func:`alphas_cumprod`.
        eta: 0 deterministic, 1 ancestral.
        noise: (B, T - 1, C, h, w) standard normal, used at t = T, ..., 2; needed when eta > 0.
        threshold: above it a cell counts as anomalous.
        restore: put the original latent back where the last mask is 0. Otherwise a cell flagged early and not later stays at
            a partly noised value, as in the official code.

    Returns:
        The repaired latent and the last binary mask (B, 1, h, w).
    """
    last = len(alphas) - 1
    z = latent
    flagged = torch.zeros_like(latent[:, :1])
    for t in range(last, 0, -1):
        now, before = float(alphas[t]), float(alphas[t - 1])
        clean, probability = network(z, torch.full((len(z),), t, device=z.device))
        flagged = (probability > threshold).to(z.dtype)
        sigma = eta * ((1 - before) / (1 - now)) ** 0.5 * max(0.0, 1 - now / before) ** 0.5
        direction = (z - now**0.5 * clean) / (1 - now) ** 0.5
        step = before**0.5 * clean + max(0.0, 1 - before - sigma**2) ** 0.5 * direction
        if sigma > 0:
            if noise is None:
                raise ValueError("eta > 0 needs noise")
            step = step + sigma * noise[:, last - t]
        z = flagged * step + (1 - flagged) * z
    if restore:
        z = flagged * z + (1 - flagged) * latent
    return z, flagged
