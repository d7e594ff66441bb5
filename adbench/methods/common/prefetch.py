"""Training slices on a method's own grid: resident on the device when they fit, else read ahead of the step that needs them."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import torch

from adbench.errors import UserError
from adbench.methods.common import image_ops

if TYPE_CHECKING:
    from adbench.datasets.slices import SliceSet


class Pictures:
    """Training slices on the method's grid, on the device when they fit, otherwise read from the memory map batch by batch.

    Both ways give the same numbers: pixels are kept as float16, the store's own precision.

    Args:
        data: the slices.
        size: (h, w) of the method's grid.
        device: where batches are wanted.
        standardise: put every slice on one intensity scale (:func:`adbench.methods.common.image_ops.standardise`).
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
        self._reader: ThreadPoolExecutor | None = None
        self._coming: tuple[torch.Tensor, Future[tuple[torch.Tensor, torch.Tensor]]] | None = None
        if len(data) * size[0] * size[1] * 3 <= budget:
            pieces = torch.arange(len(data)).split(64)
            parts = [self._fit(*self._read(piece)) for piece in pieces]
            self._held = (torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts]))

    def __len__(self) -> int:
        return len(self.data)

    def _read(self, indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Slices and masks as they are stored; in page-locked memory when they are bound for a GPU."""
        positions = indices.numpy()
        image = torch.from_numpy(np.ascontiguousarray(self.data.images(positions)))[:, None]
        brain = torch.from_numpy(np.ascontiguousarray(self.data.brains(positions)))[:, None]
        return (image.pin_memory(), brain.pin_memory()) if self.device.type == "cuda" else (image, brain)

    def _fit(self, image: torch.Tensor, brain: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Slices and masks on the device and on the method's grid."""
        image, brain = (part.to(self.device, non_blocking=True) for part in (image, brain))
        image, brain = image_ops.shrink(image.float(), self.size), image_ops.shrink_mask(brain, self.size)
        if self.standardise:
            image, _ = image_ops.standardise(image, brain)
        return image.half(), brain

    def expect(self, indices: torch.Tensor) -> None:
        """Begin to read what the next :meth:`get` will ask for, in a thread of its own; nothing to do for resident slices."""
        if self._held is None:
            self._reader = self._reader or ThreadPoolExecutor(1, "adbench-read-ahead")
            self._coming = (indices, self._reader.submit(self._read, indices))

    def get(self, indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, 1, h, w) float32 images in [0, 1] and bool brain masks of the given positions (on the CPU), on the device."""
        if self._held is not None:
            where = indices.to(self.device)
            return self._held[0][where].float(), self._held[1][where]
        coming, self._coming = self._coming, None
        ready = coming is not None and torch.equal(coming[0], indices)
        image, brain = self._fit(*(coming[1].result() if coming is not None and ready else self._read(indices)))
        return image.float(), brain
