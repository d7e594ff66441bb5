"""The masked forward process and the masked DDIM sampler (arXiv 2502.16943)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

STEPS = 10

Network = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


def alphas_cumprod(steps: int = STEPS) -> torch.Tensor:
    """``ᾱ_0 = 1, ᾱ_1, ..., ᾱ_T``, shape (T + 1,), of the cosine schedule (diffusers ``squaredcos_cap_v2``)."""
    from diffusers import DDPMScheduler

    scheduler: Any = DDPMScheduler(num_train_timesteps=steps, beta_schedule="squaredcos_cap_v2")
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
