"""A few small generated slices for the checks of methods, prepared through the real slice store."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from adbench.datasets.base import Case, Dataset, DatasetInfo, Split, Stack
from adbench.datasets.slices import SliceSet
from adbench.datasets.store.prepare import prepare
from adbench.params import ParamSet
from adbench.utils.seeds import derive

SIZE = 64


class _Discs(Dataset):
    """Elliptic "brains" with smooth texture, 64x64; test subjects carry a bright square."""

    info = DatasetInfo(
        "discs", "1", ("FLAIR",), "CC0", "generated", "nothing on disk", protocol="phantom", needs_root=False
    )

    def discover(self, modality: str) -> list[Case]:
        splits: list[tuple[Split, int]] = [("train", 6), ("val", 3), ("test", 3)]
        return [Case(f"{split}-{number}", split) for split, count in splits for number in range(count)]

    def load(self, case: Case, modality: str) -> Stack:
        rng = np.random.default_rng(derive(0, case.subject))
        rows, columns = np.mgrid[:SIZE, :SIZE] / SIZE - 0.5
        images, brains, lesions = [], [], []
        for _ in range(2):
            height, width = rng.uniform(0.36, 0.44, 2)
            brain = (rows / height) ** 2 + (columns / width) ** 2 < 1
            texture = 0.5 + 0.15 * np.sin(9 * rows + rng.normal()) * np.cos(7 * columns + rng.normal())
            image = np.where(brain, texture + rng.normal(0, 0.02, brain.shape), 0)
            lesion = np.zeros_like(brain)
            if case.split == "test":
                top, left = rng.integers(20, 36, 2)
                lesion[top : top + 8, left : left + 8] = True
                image = np.where(lesion, 0.95, image)
            images.append(np.clip(image, 0, 1).astype(np.float32))
            brains.append(brain)
            lesions.append(lesion)
        return Stack(np.stack(images), np.stack(brains), np.stack(lesions), [10, 20])


def small_sets(folder: Path) -> tuple[SliceSet, SliceSet, SliceSet]:
    """Healthy training slices (12), healthy validation slices (6) and slices to score (6), all without masks.

    The lesion masks are cut off the case files once these are written: a method that looks for them finds none.

    Args:
        folder: where the store may be written.
    """
    store = prepare(_Discs(ParamSet(), None), "FLAIR", folder)
    for case, file in zip(store.cases, store.files, strict=True):
        pixels = len(case.slices) * SIZE * SIZE
        os.truncate(file, 3 * pixels)  # two bytes of the image and one of the brain mask a pixel
    return store.healthy("train"), store.healthy("val"), SliceSet(store, store.rows("test"))
