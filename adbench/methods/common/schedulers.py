"""Noise schedules and samplers of the diffusion methods in pixel space (Ho et al. 2020; Nichol & Dhariwal 2021; Song et al. 2021).

Steps are numbered 0 .. T-1; ``-1`` stands for the clean slice. The samplers loop over time only: slices are a batch, and
each slice draws from a generator of its own. The module imports torch; methods import it inside functions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch

Noise = Callable[[], torch.Tensor]
Predict = Callable[[torch.Tensor, int], torch.Tensor]


class Schedule:
    """Share of the signal's variance that is left at each step.

    Args:
        kind: "linear": beta from 1e-4 to 0.02 (Ho 2020); "cosine": ``cos^2((t/T + .008) / 1.008 * pi/2)``, beta <= .999.
        steps: T. The linear schedule is stretched (beta * 1000 / T), so that its end stays noise for other T.
    """

    def __init__(self, kind: str, steps: int) -> None:
        if kind == "linear":
            betas = torch.linspace(1e-4, 0.02, steps, dtype=torch.float64) * (1000 / steps)
        else:
            curve = torch.cos((torch.arange(steps + 1, dtype=torch.float64) / steps + 0.008) / 1.008 * math.pi / 2) ** 2
            betas = 1 - curve[1:] / curve[:-1]
        self.betas = betas.clamp(max=0.999)
        self.bar = (1 - self.betas).cumprod(0)

    def __len__(self) -> int:
        return len(self.bar)

    def at(self, t: int) -> float:
        """Signal variance at step ``t``; 1 for ``t = -1``."""
        return 1.0 if t < 0 else float(self.bar[t])

    def noised(self, clean: torch.Tensor, noise: torch.Tensor, t: int | torch.Tensor) -> torch.Tensor:
        """``sqrt(bar_t) x_0 + sqrt(1 - bar_t) eps`` with one step for all slices, or one step per slice (B,)."""
        bar = (self.bar[t] if isinstance(t, torch.Tensor) else torch.tensor(self.at(t), dtype=torch.float64)).to(
            clean.dtype
        )
        shares = bar.sqrt(), (1 - bar).sqrt()
        if not isinstance(t, torch.Tensor):  # numbers reach a GPU with the call, tensors by a copy that waits
            return float(shares[0]) * clean + float(shares[1]) * noise
        of_clean, of_noise = (share.to(clean.device).view(-1, 1, 1, 1) for share in shares)
        return of_clean * clean + of_noise * noise

    def clean(self, x: torch.Tensor, noise: torch.Tensor, t: int) -> torch.Tensor:
        """``x_0`` of a noised slice whose noise is known."""
        bar = self.at(t)
        return (x - math.sqrt(1 - bar) * noise) / math.sqrt(bar)

    def noise_in(self, x: torch.Tensor, clean: torch.Tensor, t: int) -> torch.Tensor:
        """The noise of a noised slice whose ``x_0`` is known."""
        bar = self.at(t)
        return (x - math.sqrt(bar) * clean) / math.sqrt(1 - bar)

    def clean_share(self, t: int) -> float:
        """Weight of ``x_0`` in the mean of ``q(x_(t-1) | x_t, x_0)`` (eq. 7 of Ho 2020)."""
        bar, before = self.at(t), self.at(t - 1)
        return math.sqrt(before) * (1 - bar / before) / (1 - bar)

    def ancestral(self, x: torch.Tensor, clean: torch.Tensor, t: int, to: int, noise: Noise) -> torch.Tensor:
        """A draw from ``q(x_to | x_t, x_0)``, ``to < t``: fixed-small variance; for ``to = t - 1`` eq. 6-7 of Ho 2020."""
        if to < 0:
            return clean
        bar, bar_to = self.at(t), self.at(to)
        alpha = bar / bar_to
        mean = math.sqrt(bar_to) * (1 - alpha) / (1 - bar) * clean + math.sqrt(alpha) * (1 - bar_to) / (1 - bar) * x
        return mean + math.sqrt((1 - alpha) * (1 - bar_to) / (1 - bar)) * noise()

    def ddim(self, x: torch.Tensor, clean: torch.Tensor, t: int, to: int) -> torch.Tensor:
        """The deterministic step of Song 2021 (eq. 12, eta 0)."""
        bar = self.at(to)
        return math.sqrt(bar) * clean + math.sqrt(1 - bar) * self.noise_in(x, clean, t)


def respaced(start: int, stride: int, marks: Iterable[int] = ()) -> list[int]:
    """Steps to visit, descending from ``start`` to 0: every ``stride``-th, and each of ``marks`` below ``start``."""
    return sorted({*range(start, -1, -stride), *(mark for mark in marks if 0 <= mark < start), 0}, reverse=True)


def denoise(
    schedule: Schedule, x: torch.Tensor, times: list[int], predict: Predict, noise: Noise | None = None
) -> torch.Tensor:
    """Walk ``x`` from ``times[0]`` to the clean slice.

    Args:
        schedule: noise schedule.
        x: (B, 1, H, W) at step ``times[0]``.
        times: descending steps, the last one 0 (one entry alone: x_0 is predicted from it at once).
        predict: (x_t, t) -> x_0.
        noise: draws the noise of an ancestral step; None: deterministic DDIM steps.
    """
    for t, to in zip(times, [*times[1:], -1], strict=True):
        clean = predict(x, t)
        x = schedule.ddim(x, clean, t, to) if noise is None else schedule.ancestral(x, clean, t, to, noise)
    return x
