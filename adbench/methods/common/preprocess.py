"""The way of a slice into a network and of its picture back: grid, intensity scale, precision.

The module imports torch; methods import it inside functions.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import nn

from adbench.methods.common import image_ops

if TYPE_CHECKING:
    from adbench.datasets.slices import SliceBatch


def precision(device: torch.device) -> Literal["bf16", "float32"]:
    """What networks compute in on ``device``."""
    return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "float32"


def fast(device: torch.device) -> AbstractContextManager[object]:
    """Within the block networks run in bf16 where the device has it; put nothing but networks into it."""
    return torch.autocast("cuda", torch.bfloat16, enabled=precision(device) == "bf16")


def placed(module: nn.Module, device: str) -> nn.Module:
    """``module`` ready to be used on ``device``: frozen, in evaluation mode, in the layout that convolutions there like."""
    layout = torch.channels_last if device.startswith("cuda") else torch.contiguous_format
    return module.eval().requires_grad_(False).to(device=device, memory_format=layout)  # type: ignore[call-overload]


@dataclass(frozen=True)
class Frame:
    """Slices as a network sees them.

    Attributes:
        batch: the slices as they came.
        image: (B, 1, S, S) in [0, 1] on the network's grid, standardised if asked for.
        brain: (B, 1, S, S) bool.
        figures: what undoes the standardisation; None: there was none.
    """

    batch: SliceBatch
    image: torch.Tensor
    brain: torch.Tensor
    figures: torch.Tensor | None

    @classmethod
    def of(cls, batch: SliceBatch, side: int, standardise: bool) -> Frame:
        """``batch`` on a grid of ``side`` x ``side``."""
        size = (side, side)
        image, brain = image_ops.shrink(batch.image, size), image_ops.shrink_mask(batch.brain, size)
        figures = None
        if standardise:
            image, figures = image_ops.standardise(image, brain)
        return cls(batch, image, brain, figures)

    def stretched(self, maps: torch.Tensor) -> torch.Tensor:
        """Maps on the network's grid brought to the grid of the slices."""
        return image_ops.stretch(maps, (self.batch.image.shape[-2], self.batch.image.shape[-1]))

    def residual(self, recon: torch.Tensor) -> torch.Tensor:
        """``image - recon`` inside the brain, on the grid of the slices."""
        return self.stretched((self.image - recon) * self.brain) * self.batch.brain

    def restored(self, recon: torch.Tensor) -> torch.Tensor:
        """A reconstruction brought to the grid and intensities of the slices, in [0, 1], 0 outside the brain."""
        if self.figures is not None:
            recon = image_ops.unstandardise(recon, self.brain, self.figures)
        return self.stretched(recon * self.brain).clamp(0, 1) * self.batch.brain
