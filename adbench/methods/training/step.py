"""The parts of one optimiser step: its random draws, its batch, its micro-batches, the averaged weights, several processes."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, nullcontext
from functools import lru_cache
from typing import Any

import torch
from torch import nn

from adbench.methods.training.stage import Batch, Stage
from adbench.utils import distributed
from adbench.utils.seeds import derive

FOLDED = 64 << 20  # bytes of weights that are averaged at once, which takes as many more


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


class Batches:
    """The batches of a stage on a device, this process's share of each.

    A GPU computes a step while a thread prepares the next one's batch on a stream of its own, so that neither the draws nor
    the copies keep it waiting. On a CPU, which has nothing to hide them behind, a batch is drawn when it is asked for.

    Args:
        stage: what is trained.
        seed: of the run.
        device: where the batches go.
        ahead: draw in a thread; None: on a GPU.
    """

    def __init__(self, stage: Stage, seed: int, device: torch.device, ahead: bool | None = None) -> None:
        self.stage, self.seed, self.device = stage, seed, device
        on_gpu = device.type == "cuda"
        self._thread = ThreadPoolExecutor(1, "adbench-draw") if (on_gpu if ahead is None else ahead) else None
        self._stream = torch.cuda.Stream(device) if on_gpu and self._thread else None  # type: ignore[no-untyped-call]
        if self._stream is not None:  # what the draws read was made on the other stream
            self._stream.wait_stream(torch.cuda.current_stream(device))
        self._next: tuple[int, Future[Batch]] | None = None

    def _draw(self, step: int) -> Batch:
        stage = self.stage
        indices = batch_indices(self.seed, stage.name, step, stage.plan.batch, stage.samples)
        with torch.no_grad(), torch.cuda.stream(self._stream) if self._stream is not None else nullcontext():
            batch = stage.draw(indices, generator(self.seed, stage.name, "draw", step))
            mine = slice(distributed.rank(), None, distributed.world())
            return {key: value[mine].to(self.device) for key, value in batch.items()}

    def take(self, step: int) -> Batch:
        """The batch of ``step``; that of the step after it is begun."""
        if self._thread is None:
            return self._draw(step)
        begun, self._next = self._next, None
        batch = begun[1].result() if begun is not None and begun[0] == step else self._draw(step)
        if self._stream is not None:
            stream = torch.cuda.current_stream(self.device)
            stream.wait_stream(self._stream)
            for value in batch.values():
                value.record_stream(stream)
        self._next = (step + 1, self._thread.submit(self._draw, step + 1))
        return batch

    def settle(self) -> None:
        """Wait until nothing is being drawn."""
        if self._next is not None:
            wait([self._next[1]])

    def close(self) -> None:
        """End the thread; what it has begun for a step that does not come is dropped."""
        if self._thread is not None:
            self._thread.shutdown(cancel_futures=True)


class Queue:
    """Keeps the host few steps before the GPU, so that a clock on the host tells what has been computed.

    Launches return at once, and nothing in a step waits: without a bound all that is launched in a second is still to be
    computed when the time is up. Only the step ``ahead`` before the newest is waited for, so the GPU never runs dry.
    """

    def __init__(self, ahead: int = 8) -> None:
        self._ahead = ahead
        self._ends: deque[torch.cuda.Event] = deque()

    def add(self) -> None:
        """A step was launched."""
        end = torch.cuda.Event()  # type: ignore[no-untyped-call]
        end.record()
        self._ends.append(end)
        if len(self._ends) > self._ahead:
            self._ends.popleft().synchronize()


class Average:
    """Exponential moving average of ``parameters`` with the warm-up of diffusers' ``EMAModel``, in one pass an update.

    The decay of update k = 0, 1, ... is 0 at first, then ``min(decay, (1 + k) / (10 + k))``.
    """

    def __init__(self, parameters: list[nn.Parameter], decay: float) -> None:
        self.parameters: list[torch.Tensor] = list(parameters)
        self.decay, self.updates = decay, 0
        self.weights = [parameter.detach().clone() for parameter in parameters]
        self._groups = _groups([weight.nbytes for weight in self.weights])
        # On a GPU the share that an update takes is read from the device, where a recorded update finds each one's.
        self._share = torch.zeros((), device=self.weights[0].device) if self.weights[0].is_cuda else None

    def update(self) -> None:
        """Take in the parameters as they are now."""
        self.advance()
        self.fold()

    def advance(self) -> None:
        """Set how much the next :meth:`fold` takes."""
        k = self.updates
        self._taken = 1 - (min(self.decay, (1 + k) / (10 + k)) if k else 0.0)
        if self._share is not None:
            self._share.fill_(self._taken)
        self.updates += 1

    @torch.no_grad()
    def fold(self) -> None:
        """Move the averages towards the parameters by the share that :meth:`advance` set."""
        for group in self._groups:
            weights = self.weights[group]
            apart = torch._foreach_sub(weights, self.parameters[group])
            if self._share is None:
                torch._foreach_sub_(weights, apart, alpha=self._taken)
            else:
                torch._foreach_mul_(apart, self._share)
                torch._foreach_sub_(weights, apart)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Within the block the parameters hold their averages; storages change hands, nothing is copied."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for parameter, average in zip(self.parameters, self.weights, strict=True):
            parameter.data, average.data = average.data, parameter.data


def _groups(sizes: list[int], most: int = FOLDED) -> list[slice]:
    """Consecutive tensors of ``sizes`` bytes in groups of at most ``most``, or one tensor that is larger."""
    starts, held = [0], 0
    for index, size in enumerate(sizes):
        if held and held + size > most:
            starts.append(index)
            held = 0
        held += size
    return [slice(start, end) for start, end in zip(starts, [*starts[1:], len(sizes)], strict=True)]


def device_of(device: str) -> torch.device:
    """Where this process computes: the launcher's device under ``torchrun`` or ``accelerate launch``, else ``device``."""
    distributed.join(device)
    if distributed.world() > 1:
        from accelerate.state import PartialState

        launched: torch.device = PartialState().device
        return launched
    target = torch.device(device)
    if target.type == "cuda" and target.index is not None:
        torch.cuda.set_device(target)
    return target


def micro_batches(batch: Batch, parts: int, whole: int) -> Iterator[tuple[Batch, float]]:
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
