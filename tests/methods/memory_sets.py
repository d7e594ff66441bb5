"""A small slice set in memory, with the interface of a real store."""

from __future__ import annotations

import numpy as np

from adbench.datasets.slices import SliceSet


class MemoryStore:
    """What :class:`SliceSet` asks of a store, over arrays."""

    modality = "FLAIR"

    def __init__(self, images: np.ndarray, brains: np.ndarray, name: str = "s") -> None:
        self.images, self.brains, self.name = images.astype(np.float16), brains, name
        self.shape = images.shape[1:]

    def subject_of(self, row: int) -> str:
        return f"{self.name}{row}"

    def slice_of(self, row: int) -> int:
        return 10 + row % 3

    def describe_rows(self, rows: np.ndarray, *, lesions: bool) -> list[object]:
        return [self.name, rows.tolist()]


def make_set(count: int, size: tuple[int, int] = (40, 36), seed: int = 0, name: str = "s") -> SliceSet:
    """Smooth random discs on a zero background."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[: size[0], : size[1]]
    brain = ((rows - size[0] / 2) / size[0]) ** 2 + ((columns - size[1] / 2) / size[1]) ** 2 < 0.45**2
    waves = np.stack(
        [0.5 + 0.2 * np.sin(rows / 5 + rng.uniform(0, 6)) * np.cos(columns / 7) for _ in range(max(count, 1))]
    )
    images = np.clip(waves + rng.normal(0, 0.03, waves.shape), 0, 1) * brain
    return SliceSet(MemoryStore(images, np.repeat(brain[None], len(images), 0), name), np.arange(count))  # type: ignore[arg-type]


# MAD-AD small enough for a test.
SMALL = {
    "image_size": 32,
    "ae_channels": (8, 16),
    "ae_patch": 1,
    "ae_steps": 6,
    "ae_batch": 4,
    "unet_multipliers": (1, 1),
    "unet_attention": (False, True),
    "steps": 8,
    "batch": 4,
    "dropout": 0.1,
    "augmented_copies": 1,
}
