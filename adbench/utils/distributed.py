"""The processes of one distributed launch (``accelerate launch``, ``torchrun``): which one this is, and waiting for the others.

Without a launcher there is one process, rank 0 of 1, and nothing here does anything. The launcher sets rank and size in the
environment, so asking for them imports no torch.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from adbench.errors import UserError

PATIENCE = timedelta(hours=24)  # the others wait while rank 0 scores and evaluates


def world() -> int:
    """Number of processes."""
    return int(os.environ.get("WORLD_SIZE") or 1)


def rank() -> int:
    """Number of this process, from 0; only 0 writes and reports."""
    return int(os.environ.get("RANK") or 0) if world() > 1 else 0


def join(device: str) -> None:
    """Connect to the other processes, each with a device of its own; does nothing in a single process.

    Args:
        device: "cpu", or "cuda" for one GPU a process.

    Raises:
        UserError: ``device`` names one GPU, which the processes would have to share; accelerate is not installed.
    """
    if world() == 1:
        return
    if device not in ("cpu", "cuda"):
        raise UserError(
            f"Under a launcher of {world()} processes each takes a GPU of its own: --device cuda, not {device}."
        )
    try:
        from accelerate.state import PartialState
    except ImportError:
        raise UserError(
            'Training on several processes needs accelerate: pip install "adbench-mri[distributed]".'
        ) from None

    if not PartialState._shared_state:
        atexit.register(PartialState(cpu=device == "cpu", timeout=PATIENCE).destroy_process_group)


def wait() -> None:
    """Return when every process has called this."""
    if world() > 1:
        import torch

        torch.distributed.barrier()


@contextmanager
def first() -> Iterator[None]:
    """Rank 0 runs the block before the others do; they then find its files on disk."""
    if rank() > 0:
        wait()
    try:
        yield
    finally:
        if rank() == 0:
            wait()
