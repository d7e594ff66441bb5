"""Fitting a method, or loading the fit that is there. What this module imports counts into the key of every fit."""

from __future__ import annotations

import random
import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from adbench.context import Context
from adbench.datasets.slices import SliceSet
from adbench.methods.base import FitReport, Method
from adbench.params import ParamSet
from adbench.utils import distributed, seeds
from adbench.utils.files import scratch, write_json
from adbench.utils.hashing import check_file, digest_file, read_sealed, sealed
from adbench.utils.signals import insisting

M = TypeVar("M", bound=Method)
FIT = "fit.json"


def seed_everything(seed: int) -> None:
    """Seed the global generators of Python, NumPy and torch, for plug-ins that use them."""
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - a plug-in may use the global generator
    torch.manual_seed(seed)


def commit_fit(folder: Path, method: Method, content: dict[str, Any]) -> dict[str, Any]:
    """Save a fitted method into ``folder``, and last what ``fit.json`` says of it: ``content`` and the files' SHA-256.

    Returns:
        What :func:`fitted` will give.
    """
    files = {}
    with scratch(folder / "method") as there:
        with insisting():
            method.save(there)
        for path in sorted(path for path in there.rglob("*") if path.is_file()):
            target = folder / path.relative_to(there)
            target.parent.mkdir(parents=True, exist_ok=True)
            files[path.relative_to(there).as_posix()] = digest_file(path)
            path.replace(target)
    write_json(folder / FIT, sealed({**content, "files": files}))
    return {**content, "files": files}


def fitted(folder: Path, key: str) -> dict[str, Any] | None:
    """What ``fit.json`` says if the fit in ``folder`` is complete and belongs to ``key``.

    Raises:
        UserError: it is damaged.
    """
    try:
        content = read_sealed(folder / FIT, _fit_again(folder))
    except FileNotFoundError:
        return None
    return content if content.get("fit_key") == key else None


def load_fit(cls: type[M], folder: Path, fit: dict[str, Any], ctx: Context, params: ParamSet) -> M:
    """The fitted method in ``folder``, which scores as ``params`` say.

    Args:
        cls: of the method.
        folder: of the fit.
        fit: from :func:`fitted`.
        ctx: surroundings.
        params: those of the run; the fit may have been made for one that scores otherwise.

    Raises:
        UserError: a file is missing or not the one that was saved.
    """
    for name, written in fit["files"].items():
        check_file(folder / name, written, _fit_again(folder))
    method = cls.load(folder, ctx)
    method.params = params
    return method


def _fit_again(folder: Path) -> str:
    return f"Delete {folder} and run the same command again: the fit is then made again."


def fit_method(
    cls: type[Method],
    params: ParamSet,
    train: SliceSet,
    val: SliceSet | None,
    folder: Path,
    key: str,
    ctx: Context,
    watch: Callable[[Method, float], None] | None = None,
    members: Sequence[tuple[Method, FitReport]] = (),
) -> tuple[Method, dict[str, Any]]:
    """The fitted method, always as loaded from its folder: a resumed run then scores with the very same weights.

    Args:
        cls: the method.
        params: its parameters.
        train: healthy slices to learn from.
        val: healthy slices to choose a checkpoint with, or None.
        folder: of the fit.
        key: of the fit; a complete fit with this key is not made again.
        ctx: surroundings, the seed among them.
        watch: called now and then with the half-trained method and the share of its training that is done. Neither the
            fit nor the seconds that are noted for it depend on what it does.
        members: fits that this one is made of; none: it makes them itself.

    Returns:
        The method, and the content of ``fit.json``.
    """
    distributed.join(ctx.device)
    stored = fitted(folder, key)
    distributed.wait()  # every process of a launch has looked before one of them writes
    if stored is None:
        folder.mkdir(parents=True, exist_ok=True)
        seed_everything(seeds.derive(ctx.seed, "fit"))
        method = cls(params, ctx)
        method.members = members
        aside = _Aside(partial(watch, method)) if watch else None
        ctx.watch = aside
        start = time.perf_counter()
        with insisting():
            report = method.fit(train, val)
        seconds = report.earlier_seconds + time.perf_counter() - start - (aside.seconds if aside else 0.0)
        stored = {"fit_key": key, "seconds": seconds, "memory": peak_memory(ctx.device), **asdict(report)}
        if distributed.rank() == 0:
            commit_fit(folder, method, stored)
        distributed.wait()
    fit = fitted(folder, key)
    assert fit is not None
    return load_fit(cls, folder, fit, ctx, params), fit


class _Aside:
    """Somebody looks at a training: the global generators are afterwards as before, and ``seconds`` say what it took."""

    def __init__(self, look: Callable[[float], None]) -> None:
        self.look, self.seconds = look, 0.0

    def __call__(self, done: float) -> None:
        import torch

        start = time.perf_counter()
        before = random.getstate(), np.random.get_state()  # noqa: NPY002 - a plug-in method may use it
        with torch.random.fork_rng():
            self.look(done)
        random.setstate(before[0])
        np.random.set_state(before[1])  # noqa: NPY002
        self.seconds += time.perf_counter() - start


def peak_memory(device: str) -> dict[str, float]:
    """Peak GiB of this process so far: host memory, and GPU memory when ``device`` is one."""
    peak = {"host": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 2**30}
    if device.startswith("cuda"):
        import torch

        peak["gpu"] = torch.cuda.max_memory_allocated(device) / 2**30
    return peak
