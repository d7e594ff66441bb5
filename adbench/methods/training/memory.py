"""Work that goes on in smaller pieces when the memory of a device runs out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch

from adbench.errors import UserError
from adbench.methods.training.stage import Batch
from adbench.methods.training.step import micro_batches

T = TypeVar("T")


@contextmanager
def within_memory(stage: str, device: str) -> Iterator[None]:
    """One sentence where the memory runs out and nothing can be made smaller.

    Raises:
        UserError: it did.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise UserError(
            f"{stage}: its networks with one sample are more than {device} has memory for: choose a smaller preset or image size."
        ) from None


class Portions:
    """In how many pieces a batch is computed: twice as many whenever the memory runs out; what fits is remembered.

    Args:
        what: is computed, for the log.
        logger: told when the pieces become smaller.
        parts: how many pieces at first.
    """

    def __init__(self, what: str, logger: logging.Logger, parts: int = 1) -> None:
        self.what, self.logger, self.parts = what, logger, parts

    def fit(self, call: Callable[[int], T], samples: int) -> T:
        """``call(parts)``, which starts anew each time, for a batch of ``samples``.

        Raises:
            torch.OutOfMemoryError: a single sample is too much.
        """
        while True:
            try:
                return call(self.parts)
            except torch.OutOfMemoryError:
                if self.parts >= samples:
                    raise
            # Not before the error is gone: its traceback holds the tensors of the attempt.
            self.parts *= 2
            torch.cuda.empty_cache()
            self.logger.warning("%s: out of memory, going on with %d micro-batches.", self.what, self.parts)

    def pieces(self, call: Callable[[Batch], T], batch: Batch) -> list[tuple[T, float]]:
        """``call`` of each piece of ``batch``, and the share that the piece has of its samples."""
        samples = len(next(iter(batch.values())))

        def attempt(parts: int) -> list[tuple[T, float]]:
            return [(call(piece), share) for piece, share in micro_batches(batch, parts, samples)]

        return self.fit(attempt, samples)

    def mean(self, loss: Callable[[Batch], torch.Tensor], batch: Batch) -> torch.Tensor:
        """``loss`` of ``batch``, a mean over its samples; without gradients."""
        found = self.pieces(loss, batch)
        return found[0][0] if len(found) == 1 else torch.stack([value * share for value, share in found]).sum()
