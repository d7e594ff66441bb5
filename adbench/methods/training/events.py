"""Loss curves for TensorBoard, when asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from adbench.errors import UserError


class Events:
    """Writes event files into ``folder``; None writes nothing.

    Args:
        folder: ``tensorboard --logdir`` takes it or any folder above it.
        step: optimiser steps done; points beyond it, left by an attempt that was killed, are withdrawn.

    Raises:
        UserError: tensorboardX is not installed.
    """

    def __init__(self, folder: Path | None, step: int) -> None:
        self._writer: Any = None
        if folder is None:
            return
        try:
            from tensorboardX import SummaryWriter
        except ImportError:
            raise UserError(
                "--tensorboard needs tensorboardX: pip install tensorboardX, or leave the flag out."
            ) from None
        self._writer = SummaryWriter(str(folder), purge_step=step + 1, flush_secs=10)

    def add(self, point: dict[str, float]) -> None:
        """One point of a curve: ``step`` and the figures at that step."""
        if self._writer is not None:
            for name, value in point.items():
                if name != "step":
                    self._writer.add_scalar(name, value, int(point["step"]))

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
