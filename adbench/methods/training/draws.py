"""Random draws of training as functions of the seed and the step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch

from adbench.utils.seeds import derive


def generator(seed: int, *names: object) -> torch.Generator:
    """A CPU generator seeded by :func:`adbench.utils.seeds.derive`."""
    return torch.Generator().manual_seed(derive(seed, *names))


def forked() -> Any:
    """Within the block torch's global generators may be seeded; after it they are as they were."""
    return torch.random.fork_rng(devices=[torch.cuda.current_device()] if torch.cuda.is_initialized() else [])


@contextmanager
def seeded(seed: int, *names: object) -> Iterator[None]:
    """Torch's global generators seeded within the block and put back after it (initial weights, dropout)."""
    with forked():
        torch.manual_seed(derive(seed, *names))
        yield


@lru_cache(maxsize=8)
def _order(seed: int, stage: str, epoch: int, samples: int) -> torch.Tensor:
    return torch.randperm(samples, generator=generator(seed, stage, "order", epoch))


def batch_indices(seed: int, stage: str, step: int, batch: int, samples: int) -> torch.Tensor:
    """The samples of one step: consecutive pieces of shuffled passes over the data, as a function of the step alone."""
    first = step * batch
    chosen = []
    for epoch in range(first // samples, (first + batch - 1) // samples + 1):
        order = _order(seed, stage, epoch, samples)
        start = max(0, first - epoch * samples)
        chosen.append(order[start : first + batch - epoch * samples])
    return torch.cat(chosen)
