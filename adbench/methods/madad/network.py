"""The two-headed UNet: clean latent and mask probability from one trunk (arXiv 2502.16943)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from diffusers import UNet2DModel
from diffusers.models.attention_processor import Attention
from torch import nn


class TwoHeadUNet(nn.Module):
    """``(z_t, t) -> (f_z0, logit of f_M)`` on a diffusers ``UNet2DModel`` trunk.

    Args:
        channels: of the latent, in and out.
        width: base channels.
        multipliers: of the width, one a level.
        layers: residual blocks a level.
        attention: whether a level has self-attention, one entry a level.
        heads: attention heads, the same number at every level.
        dropout: in the residual blocks.
        residual: the clean head predicts ``z0 - z_t`` (starting at 0) instead of ``z0``.
    """

    def __init__(
        self,
        channels: int = 4,
        width: int = 256,
        multipliers: Sequence[int] = (1, 2, 4),
        layers: int = 2,
        attention: Sequence[bool] = (True, True, True),
        heads: int = 8,
        dropout: float = 0.4,
        residual: bool = False,
    ) -> None:
        super().__init__()
        levels = list(zip(multipliers, attention, strict=True))
        groups = min(32, width // 4)
        self.residual = residual
        self.trunk = UNet2DModel(
            in_channels=channels,
            out_channels=channels,
            block_out_channels=tuple(width * m for m in multipliers),
            layers_per_block=layers,
            down_block_types=tuple("AttnDownBlock2D" if on else "DownBlock2D" for _, on in levels),
            up_block_types=tuple("AttnUpBlock2D" if on else "UpBlock2D" for _, on in reversed(levels)),
            attention_head_dim=width // heads,
            norm_num_groups=groups,
            dropout=dropout,
        )
        trunk: Any = self.trunk
        for module in trunk.modules():
            if isinstance(module, Attention):
                module.heads = heads  # type: ignore[attr-defined]  # diffusers would fix the channels a head instead
        # The trunk ends in its features; its own output layers become the head of the clean latent.
        self.clean_head = nn.Sequential(trunk.conv_norm_out, trunk.conv_act, trunk.conv_out)
        trunk.conv_norm_out, trunk.conv_act, trunk.conv_out = nn.Identity(), nn.Identity(), nn.Identity()
        self.mask_head = nn.Sequential(nn.GroupNorm(groups, width), nn.Conv2d(width, 1, 3, padding=1))
        zeroed: list[Any] = [self.mask_head[-1], *([self.clean_head[-1]] if residual else [])]
        for layer in zeroed:
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, z: torch.Tensor, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Clean latent (B, C, h, w) and mask logit (B, 1, h, w) for noisy latents (B, C, h, w) at times (B,) in 1..T."""
        features = cast(Any, self.trunk)(z, t).sample
        clean = self.clean_head(features)
        return (z + clean if self.residual else clean), self.mask_head(features)


def mask_loss(logit: torch.Tensor, mask: torch.Tensor, kind: str) -> torch.Tensor:
    """Mean loss of the mask head: "mse" on the probability (official code) or "bce" (paper)."""
    if kind == "mse":
        return nn.functional.mse_loss(logit.float().sigmoid(), mask)
    return nn.functional.binary_cross_entropy_with_logits(logit.float(), mask)


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
    return nn.functional.mse_loss(clean.float(), z0) + weight * mask_loss(logit, mask, kind)
