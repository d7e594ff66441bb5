"""Slices on the grid of a network: loaded for training, preprocessed for scoring and brought back; layout and format of networks.

The module imports torch; methods import it inside functions.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from adbench.errors import UserError
from adbench.methods.common import image_ops
from adbench.utils.compute import precision, to_device

if TYPE_CHECKING:
    from adbench.datasets.slices import SliceBatch, SliceSet


def autocast(device: torch.device) -> AbstractContextManager[object]:
    """Within the block networks run in bf16 where that is the precision of the run; put nothing but networks into it."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision(str(device)) == "bf16")


def memory_layout(device: torch.device) -> torch.memory_format:
    """Layout in which convolutions are fastest on ``device``: channels last on a GPU (in bf16), else contiguous."""
    return torch.channels_last if device.type == "cuda" else torch.contiguous_format


def frozen(module: nn.Module, device: str) -> nn.Module:
    """``module`` ready for inference on ``device``: in evaluation mode, without gradients, in the fastest layout."""
    target = torch.device(device)
    return module.eval().requires_grad_(False).to(device=target, memory_format=memory_layout(target))  # type: ignore[call-overload, no-any-return]


@dataclass(frozen=True)
class Preprocessed:
    """A batch as a network sees it, and the way back to the grid and intensities of its slices.

    Attributes:
        batch: the slices as they came.
        image: (B, 1, S, S) in [0, 1] on the network's grid, standardised if asked for.
        brain: (B, 1, S, S) bool.
        scale: (B, 2) median and interquartile range that undo the standardisation; None: there was none.
    """

    batch: SliceBatch
    image: torch.Tensor
    brain: torch.Tensor
    scale: torch.Tensor | None

    def to_slice_grid(self, maps: torch.Tensor) -> torch.Tensor:
        """Maps (B, 1, S, S) of the network's grid on the grid of the slices (B, 1, H, W)."""
        return image_ops.resize(maps, (self.batch.image.shape[-2], self.batch.image.shape[-1]))

    def residual(self, recon: torch.Tensor) -> torch.Tensor:
        """``image - recon`` inside the brain, on the grid of the slices."""
        return self.to_slice_grid((self.image - recon) * self.brain) * self.batch.brain

    def restore(self, recon: torch.Tensor) -> torch.Tensor:
        """A reconstruction on the grid and intensity scale of the slices, in [0, 1], 0 outside the brain."""
        if self.scale is not None:
            recon = image_ops.unstandardise(recon, self.brain, self.scale)
        return self.to_slice_grid(recon * self.brain).clamp(0, 1) * self.batch.brain


def preprocess(batch: SliceBatch, side: int, standardise: bool = False) -> Preprocessed:
    """``batch`` on a grid of ``side`` x ``side`` px, on one intensity scale if ``standardise``."""
    size = (side, side)
    image, brain = image_ops.resize(batch.image, size), image_ops.resize_mask(batch.brain, size)
    scale = None
    if standardise:
        image, scale = image_ops.standardise(image, brain)
    return Preprocessed(batch, image, brain, scale)


class SliceLoader:
    """Slices on a network's grid: kept on the device when they fit, otherwise read batch by batch from the memory map.

    Both ways give the same numbers: pixels are kept as float16, the store's own precision.

    Args:
        data: the slices.
        side: side of the network's square grid in px.
        device: where batches are wanted.
        standardise: put every slice on one intensity scale (:func:`adbench.methods.common.image_ops.standardise`).
        budget: bytes that may stay on the device; None takes 30 % of the free memory of a CUDA device, 2 GiB elsewhere.

    Raises:
        UserError: there are no slices.
    """

    def __init__(
        self, data: SliceSet, side: int, device: str, *, standardise: bool = False, budget: int | None = None
    ) -> None:
        if not len(data):
            raise UserError("There are no healthy training slices to learn from.")
        self.data, self.size, self.device = data, (side, side), torch.device(device)
        if budget is None:
            on_cuda = self.device.type == "cuda"
            budget = int(0.3 * torch.cuda.mem_get_info(self.device)[0]) if on_cuda else 2 << 30
        self.standardise = standardise
        self._kept: tuple[torch.Tensor, torch.Tensor] | None = None
        if len(data) * side * side * 3 <= budget:
            parts = [self._prepared(*self._read(piece)) for piece in pieces(len(data), 64)]
            self._kept = (torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts]))

    def __len__(self) -> int:
        return len(self.data)

    def _read(self, indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Slices and masks as they are stored."""
        positions = indices.numpy()
        image = torch.from_numpy(np.ascontiguousarray(self.data.images(positions)))[:, None]
        brain = torch.from_numpy(np.ascontiguousarray(self.data.brains(positions)))[:, None]
        return image, brain

    def _prepared(self, image: torch.Tensor, brain: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Slices and masks on the device and on the network's grid."""
        image, brain = (to_device(part, self.device) for part in (image, brain))
        image, brain = image_ops.resize(image.float(), self.size), image_ops.resize_mask(brain, self.size)
        if self.standardise:
            image, _ = image_ops.standardise(image, brain)
        return image.half(), brain

    def get(self, indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, 1, S, S) float32 images in [0, 1] and bool brain masks on the device, for positions (B,) on the CPU."""
        if self._kept is not None:
            where = indices.to(self.device)
            return self._kept[0][where].float(), self._kept[1][where]
        image, brain = self._prepared(*self._read(indices))
        return image.float(), brain


def pieces(count: int, size: int) -> list[torch.Tensor]:
    """The positions 0 .. ``count`` - 1 in consecutive pieces of ``size``."""
    return list(torch.arange(count).split(size))  # type: ignore[no-untyped-call]
