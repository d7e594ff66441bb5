"""Where a stage is trained: the device and its precision, micro-batches, and the sum over the processes of a launch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch

from adbench.methods.common.preprocess import precision
from adbench.utils import distributed


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


def add_up(tensors: Iterable[torch.Tensor | None]) -> None:
    """Replace each tensor by its sum over the processes, in one exchange; nothing to do for a single process."""
    if distributed.world() == 1:
        return
    held = [tensor for tensor in tensors if tensor is not None]
    flat = torch.cat([tensor.flatten() for tensor in held])
    torch.distributed.all_reduce(flat)
    for tensor, part in zip(held, flat.split([tensor.numel() for tensor in held]), strict=True):
        tensor.copy_(part.view_as(tensor))


def of_first(value: float, device: torch.device) -> float:
    """``value`` as rank 0 has it, so that all processes decide alike."""
    if distributed.world() == 1:
        return value
    held = torch.tensor([value], dtype=torch.float64, device=device)
    torch.distributed.broadcast(held, src=0)
    return float(held)
