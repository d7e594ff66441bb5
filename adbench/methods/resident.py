"""Training slices on a method's own grid, resident on the device when they fit."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from adbench.errors import UserError
from adbench.methods import imaging

if TYPE_CHECKING:
    from adbench.datasets.slices import SliceSet


class Pictures:
    """Training slices on the method's grid, on the device when they fit, otherwise read from the memory map batch by batch.

    Both ways give the same numbers: pixels are kept as float16, the store's own precision.

    Args:
        data: the slices.
        size: (h, w) of the method's grid.
        device: where batches are wanted.
        standardise: put every slice on one intensity scale (:func:`adbench.methods.imaging.standardise`).
        budget: bytes that may stay resident; None takes 30 % of the free memory of a CUDA device, 2 GiB elsewhere.
    """

    def __init__(
        self,
        data: SliceSet,
        size: tuple[int, int],
        device: str,
        *,
        standardise: bool = False,
        budget: int | None = None,
    ) -> None:
        if not len(data):
            raise UserError("There are no healthy training slices to learn from.")
        self.data, self.size, self.device = data, size, torch.device(device)
        if budget is None:
            on_cuda = self.device.type == "cuda"
            budget = int(0.3 * torch.cuda.mem_get_info(self.device)[0]) if on_cuda else 2 << 30
        self.standardise = standardise
        self._held: tuple[torch.Tensor, torch.Tensor] | None = None
        if len(data) * size[0] * size[1] * 3 <= budget:
            parts = [self._read(np.arange(i, min(i + 64, len(data)))) for i in range(0, len(data), 64)]
            self._held = (torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts]))

    def __len__(self) -> int:
        return len(self.data)

    def _read(self, positions: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        image = torch.from_numpy(self.data.images(positions).astype(np.float32))[:, None].to(self.device)
        brain = torch.from_numpy(np.ascontiguousarray(self.data.brains(positions)))[:, None].to(self.device)
        image, brain = imaging.shrink(image, self.size), imaging.shrink_mask(brain, self.size)
        if self.standardise:
            image, _ = imaging.standardise(image, brain)
        return image.half(), brain

    def get(self, indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, 1, h, w) float32 images in [0, 1] and bool brain masks of the given positions, on the device."""
        if self._held is not None:
            where = indices.to(self.device)
            return self._held[0][where].float(), self._held[1][where]
        image, brain = self._read(indices.cpu().numpy())
        return image.float(), brain
