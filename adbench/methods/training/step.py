"""The parts of one optimiser step: its random draws, its device and micro-batches, and the sum over the processes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch

from adbench.methods.common.preprocess import precision
from adbench.utils import distributed
from adbench.utils.seeds import derive


def generator(seed: int, *names: object) -> torch.Generator:
    """A CPU generator seeded by :func:`adbench.utils.seeds.derive`."""
    return torch.Generator().manual_seed(derive(seed, *names))


def forked() -> Any:
    """Within the block torch's global generators may be seeded; after it they are as they were."""
    used = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return torch.random.fork_rng(devices=[torch.cuda.current_device()] if used else [])


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
    """The samples (batch,) of one step: consecutive pieces of shuffled passes over the data, a function of the step alone."""
    first = step * batch
    chosen = []
    for epoch in range(first // samples, (first + batch - 1) // samples + 1):
        order = _order(seed, stage, epoch, samples)
        start = max(0, first - epoch * samples)
        chosen.append(order[start : first + batch - epoch * samples])
    return torch.cat(chosen)


def make_accelerator(device: str) -> Any:
    """An accelerate handle for ``device``: bf16 on CUDA devices that have it, float32 elsewhere.

    Under ``accelerate launch`` the launcher's device of this process is used; otherwise ``device``.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, PartialState

    distributed.join(device)
    target = torch.device(device)
    launched = distributed.world() > 1
    if target.type == "cuda" and target.index is not None and not launched:
        torch.cuda.set_device(target)  # accelerate works on the current device
    if PartialState._shared_state and not launched and PartialState().device.type != target.type:
        AcceleratorState._reset_state(reset_partial_state=True)  # an earlier fit of this process ran elsewhere
    mixed = "bf16" if precision(target) == "bf16" else "no"
    return Accelerator(cpu=target.type == "cpu", mixed_precision=mixed)


def micro_batches(
    batch: dict[str, torch.Tensor], parts: int, whole: int
) -> Iterator[tuple[dict[str, torch.Tensor], float]]:
    """``batch`` in ``parts`` pieces, each with its share of the step's ``whole`` samples."""
    count = len(next(iter(batch.values())))
    size = -(-count // parts)
    for start in range(0, count, size):
        piece = {key: value[start : start + size] for key, value in batch.items()}
        yield piece, min(size, count - start) / whole


def sum_over_processes(tensors: Iterable[torch.Tensor | None]) -> None:
    """Replace each tensor by its sum over the processes, in one exchange; nothing to do for a single process."""
    if distributed.world() == 1:
        return
    kept = [tensor for tensor in tensors if tensor is not None]
    flat = torch.cat([tensor.flatten() for tensor in kept])
    torch.distributed.all_reduce(flat)
    parts = torch.split(flat, [tensor.numel() for tensor in kept])
    for tensor, part in zip(kept, parts, strict=True):
        tensor.copy_(part.view_as(tensor))


def of_first_process(value: float, device: torch.device) -> float:
    """``value`` as rank 0 has it, so that all processes decide alike."""
    if distributed.world() == 1:
        return value
    shared = torch.tensor([value], dtype=torch.float64, device=device)
    torch.distributed.broadcast(shared, src=0)
    return float(shared)
