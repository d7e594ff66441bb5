"""Small slice sets, prepared through the real slice store."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path

import numpy as np

from adbench.datasets.base import Case, Dataset, DatasetInfo, Stack
from adbench.datasets.slices import SliceSet
from adbench.datasets.store.prepare import prepare
from adbench.params import ParamSet, param


class _DiscParams(ParamSet):
    count: int = param(1, "subjects of one slice each")
    height: int = param(40, "rows", unit="px")
    width: int = param(36, "columns", unit="px")
    seed: int = param(0, "seed of the pixels")
    name: str = param("s", "how subjects are called")


class _Discs(Dataset):
    """Elliptic discs with smooth waves and noise on a zero background."""

    info = DatasetInfo("discs", "1", ("FLAIR",), "CC0", "generated", "nothing on disk", protocol="phantom")
    params: _DiscParams

    def discover(self, modality: str) -> list[Case]:
        return [Case(f"{self.params.name}{n:03d}", "train", extra={"n": n}) for n in range(self.params.count)]

    def load(self, case: Case, modality: str) -> Stack:
        p, number = self.params, case.extra["n"]
        rng = np.random.default_rng([p.seed, number])
        rows, columns = np.mgrid[: p.height, : p.width]
        brain = ((rows - p.height / 2) / p.height) ** 2 + ((columns - p.width / 2) / p.width) ** 2 < 0.45**2
        wave = 0.5 + 0.2 * np.sin(rows / 5 + rng.uniform(0, 6)) * np.cos(columns / 7)
        image = np.clip(wave + rng.normal(0, 0.03, wave.shape), 0, 1) * brain
        return Stack(image[None].astype(np.float32), brain[None], None, [10 + number % 3])


@cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="adbench-tests-")


@cache
def make_set(count: int, size: tuple[int, int] = (40, 36), seed: int = 0, name: str = "s") -> SliceSet:
    """``count`` healthy slices of one subject each."""
    params = _DiscParams(count=max(1, count), height=size[0], width=size[1], seed=seed, name=name)
    store = prepare(_Discs(params, None), "FLAIR", Path(_folder().name))
    return SliceSet(store, np.arange(count))


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
