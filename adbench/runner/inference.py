"""Running a fitted method over labelled slices: batches may cross volumes, results come one volume at a time."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from adbench.context import Context
from adbench.datasets.slices import LabelledSet, SliceBatch
from adbench.errors import UserError
from adbench.methods.base import Method, forwards
from adbench.metrics.score_bins import as_float
from adbench.utils import compute

if TYPE_CHECKING:
    import torch

T = TypeVar("T")


@dataclass
class Clock:
    """Seconds by phase of a run."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time what happens inside and add it to ``name``."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


@dataclass
class ScoredVolume:
    """Every slice of one volume, S of them, on the prepared grid.

    Attributes:
        volume: its case id.
        subject: whose volume it is.
        positions: (S,) positions in the set that was scored.
        maps: (S, H, W) of the float type that the method gave (bfloat16 as float32), higher is more anomalous.
        reconstructions: (S, H, W) float32 in [0, 1], or None.
    """

    volume: str
    subject: str
    positions: np.ndarray
    maps: np.ndarray
    reconstructions: np.ndarray | None


class _Scored:
    """Maps of a batch on their way to the host: a GPU computes them, and copies them, while the next batch is begun.

    Args:
        maps: (b, 1, H, W) of the slices with brain.
        recon: the same, or None.
        there: (B,) bool, which slices of the batch have brain. The maps of the others are 0, and nothing in them counts.
    """

    def __init__(self, maps: torch.Tensor, recon: torch.Tensor | None, there: np.ndarray) -> None:
        import torch

        self._maps = _to_host(maps.float() if maps.dtype in (torch.bfloat16, torch.bool) else maps)
        self._recon = None if recon is None else _to_host(recon.float())
        self._there, self._copied = there, None
        if maps.is_cuda or (recon is not None and recon.is_cuda):
            self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._copied.record()

    @property
    def computed(self) -> int:
        """Slices with brain."""
        return int(np.count_nonzero(self._there))

    def wait(self, name: str) -> tuple[np.ndarray, np.ndarray | None]:
        """(B, H, W) maps of the method called ``name``, and reconstructions."""
        if self._copied is not None:
            self._copied.synchronize()
        maps = self._maps.numpy()[:, 0]
        if maps.dtype.kind != "f":  # integers keep their order, up to 2^53
            maps = as_float(maps, f"method {name}")
        return self._placed(maps), None if self._recon is None else self._placed(self._recon.numpy()[:, 0])

    def _placed(self, found: np.ndarray) -> np.ndarray:
        if self._there.all():
            return found if self._copied is None else found.copy()  # page-locked memory is soon wanted again
        every = np.zeros((len(self._there), *found.shape[1:]), found.dtype)
        every[self._there] = found
        return every


def _to_host(tensor: torch.Tensor) -> torch.Tensor:
    """``tensor`` on the host; from a GPU the copy is only begun."""
    import torch

    if not tensor.is_cuda:
        return tensor
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)


def _score(method: Method, batch: SliceBatch, device: str) -> _Scored:
    import torch

    there = batch.brain.flatten(1).any(dim=1).numpy()
    if not there.any():
        nothing = torch.zeros((0, *batch.image.shape[1:]))
        return _Scored(nothing, nothing, there)
    moved = (batch if there.all() else batch.only(np.flatnonzero(there))).to(device)
    with compute.current(device), torch.inference_mode():
        maps, recon = method.score_and_reconstruct(moved)
        expected = tuple(moved.image.shape)
        for what, tensor in (("score", maps), ("reconstruct", recon)):
            if tensor is not None and (not isinstance(tensor, torch.Tensor) or tuple(tensor.shape) != expected):
                found = tuple(tensor.shape) if hasattr(tensor, "shape") else type(tensor).__name__
                raise UserError(
                    f"Method {method.name}: {what} returned {found}, the contract asks for a tensor {expected}."
                )
        return _Scored(maps, recon, there)


def _batches(
    method: Method, data: LabelledSet, size: int, device: str, clock: Clock, planned: int, ahead: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray | None]]:
    """Scored batches; when the device runs out of memory the batch is halved and tried again.

    A device that computes by itself is given ``ahead`` batches more before the maps of one are waited for.
    """
    import torch

    begun: deque[tuple[np.ndarray, _Scored]] = deque()
    start = 0
    while start < len(data) or begun:
        if start < len(data) and len(begun) <= ahead:
            positions = np.arange(start, min(start + size, len(data)))
            scored = None
            try:
                with clock.phase("score"):
                    scored = _score(method, data.batch(positions), device)
            except torch.OutOfMemoryError:
                if size == 1:
                    raise UserError(
                        f"One slice of {data.shape} is more than {device} has memory for with {method.name}."
                    ) from None
            # Not before the error is gone: its traceback holds the tensors of the attempt.
            if scored is None:
                size = max(1, size // 2)
                for forward in forwards(method):
                    forward.forget()
                torch.cuda.empty_cache()
                continue
            if 2 * scored.computed >= len(positions):
                for forward in forwards(method):
                    forward.expect(len(positions), planned)
            begun.append((positions, scored))
            start += len(positions)
        if len(begun) > ahead or start == len(data):
            positions, scored = begun.popleft()
            with clock.phase("score"):
                maps, recon = scored.wait(method.name)
            yield positions, maps, recon


def _ahead(items: Iterator[T]) -> Iterator[T]:
    """The items in their order; each is made in a thread while the one before it is used."""
    end: Any = object()
    with ThreadPoolExecutor(1, "adbench-score") as thread:
        coming = thread.submit(next, items, end)
        while (item := coming.result()) is not end:
            coming = thread.submit(next, items, end)
            yield item


def usual_batch(device: str) -> int:
    """Slices that a method scores at a time on ``device``: 32, on a GPU 128."""
    return 128 if device.startswith("cuda") else 32


def score_volumes(
    method: Method,
    data: LabelledSet,
    ctx: Context,
    phase: str,
    batch_size: int | None = None,
    clock: Clock | None = None,
    planned: int = 0,
) -> Iterator[ScoredVolume]:
    """Score every slice of ``data`` and yield its volumes one after the other, in store order.

    Memory holds one volume and one batch, however large the set.

    Args:
        method: fitted.
        data: what is scored.
        ctx: device, progress, and the smoothing and the median that the maps of each volume go through.
        phase: names the pass in the progress.
        batch_size: slices at a time, None: :func:`usual_batch`; halved when the device runs out of memory.
        clock: receives the seconds spent in the method, as "score".
        planned: slices that the method scores in all, these included, if they are more than these: a GPU computes a long
            scoring otherwise than a short one, and both of a run alike.

    Raises:
        UserError: the method returns a wrong shape, or NaN or infinite scores inside the brain (names the case).
    """
    size = batch_size or usual_batch(ctx.device)
    owners = data.case_index
    pending: list[tuple[np.ndarray, np.ndarray, np.ndarray | None]] = []
    waiting: str | None = None
    on_gpu = ctx.device.startswith("cuda")
    batches = _batches(
        method, data, size, ctx.device, clock or Clock(), planned=max(planned, len(data)), ahead=int(on_gpu)
    )
    if on_gpu:  # it computes the next maps while these are counted
        batches = _ahead(batches)
    for positions, maps, recon in batches:
        cuts = np.flatnonzero(np.diff(owners[positions])) + 1
        bounds = [0, *cuts.tolist(), len(positions)]
        for low, high in pairwise(bounds):
            volume = data.cases[owners[positions[low]]]
            if waiting is not None and volume != waiting:
                yield _join(data, waiting, pending, ctx)
                pending = []
            waiting = volume
            pending.append((positions[low:high], maps[low:high], None if recon is None else recon[low:high]))
        ctx.progress.update(phase, int(positions[-1]) + 1, len(data))
    if waiting is not None:
        yield _join(data, waiting, pending, ctx)


def _join(
    data: LabelledSet, volume: str, parts: list[tuple[np.ndarray, np.ndarray, np.ndarray | None]], ctx: Context
) -> ScoredVolume:
    recons = [part[2] for part in parts if part[2] is not None]
    positions, maps = (np.concatenate([part[index] for part in parts]) for index in (0, 1))
    if ctx.sigma:
        maps = smoothed(maps, data.brains(positions), ctx.sigma)
    if ctx.median:
        maps = median_filtered(maps, data.brains(positions), data.slice_numbers[positions], ctx.median)
    return ScoredVolume(
        volume,
        data.subject_of[volume],
        positions,
        maps,
        np.concatenate(recons) if len(recons) == len(parts) else None,
    )


def smoothed(maps: np.ndarray, brain: np.ndarray, sigma: float) -> np.ndarray:
    """Every map smoothed in its plane as the methods smooth theirs: 0 outside the brain and the image.

    Args:
        maps: (S, H, W); scores that are not finite are left for the evaluation to refuse.
        brain: (S, H, W) bool.
        sigma: standard deviation of the Gaussian in px, cut at four of them.
    """
    from scipy.ndimage import gaussian_filter

    if not np.isfinite(maps[brain]).all():
        return maps
    inside = np.where(brain, maps, 0).astype(np.promote_types(maps.dtype, np.float32))
    blurred: np.ndarray = gaussian_filter(inside, (0, sigma, sigma), mode="constant")
    return blurred.astype(maps.dtype)


def median_filtered(maps: np.ndarray, brain: np.ndarray, slices: np.ndarray, side: int) -> np.ndarray:
    """The median of each voxel's cube, as pDDPM and cDDPM filter maps (side 5); background counts as 0.

    Neighbours are as far apart as the nearest two slices of the volume. Where one is missing the nearest is repeated in its
    place, so that a slice alone is filtered in its plane.

    Args:
        maps: (S, H, W) of one volume; scores that are not finite are left for the evaluation to refuse.
        brain: (S, H, W) bool.
        slices: (S,) slice indices.
        side: of the cube, odd.
    """
    from scipy.ndimage import median_filter

    if not np.isfinite(maps[brain]).all():
        return maps
    order = np.argsort(slices)
    inside = np.where(brain, maps, 0)[order].astype(np.promote_types(maps.dtype, np.float32))
    filtered = np.empty_like(maps)
    gaps = np.diff(slices[order])
    for place in np.split(np.arange(len(order)), np.flatnonzero(gaps > gaps.min(initial=gaps.max(initial=0))) + 1):
        filtered[order[place]] = median_filter(inside[place], side, mode="nearest")
    return filtered
