"""Fitting one method, or taking up the fit that is there. What this module imports counts into the key of every fit."""

from __future__ import annotations

import json
import random
import resource
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from adbench import ranks, seeds
from adbench.context import Context
from adbench.datasets.slices import SliceSet
from adbench.errors import UserError
from adbench.files import write_json
from adbench.methods.base import Method
from adbench.params import build

FIT = "fit.json"


def seed_everything(seed: int) -> None:
    """Seed the global generators too, for plugins that use them."""
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - the global generator is what a stranger's code may use
    torch.manual_seed(seed)


def fitted(folder: Path, key: str) -> dict[str, Any] | None:
    """What ``fit.json`` says if the fit in ``folder`` is complete and belongs to ``key``."""
    try:
        content = json.loads((folder / FIT).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except json.JSONDecodeError as error:
        raise UserError(f"{folder / FIT} is damaged ({error}): delete {folder} and run again.") from None
    return content if content.get("fit_key") == key else None


def fit_method(
    cls: type[Method],
    params: dict[str, Any],
    train: SliceSet,
    val: SliceSet | None,
    folder: Path,
    key: str,
    ctx: Context,
    watch: Callable[[Method, float], None] | None = None,
) -> tuple[Method, dict[str, Any]]:
    """The fitted method, always as loaded from its folder: a resumed run then scores with the very same weights.

    Args:
        cls: the method.
        params: its parameters, resolved.
        train: healthy slices to learn from.
        val: healthy slices to choose a checkpoint with, or None.
        folder: of the fit.
        key: of the fit; a complete one with this key is not made again.
        ctx: surroundings, the seed among them.
        watch: called now and then with the half-trained method and the share of its training that is done.

    Returns:
        The method, and the content of ``fit.json``.
    """
    ranks.join(ctx.device)
    stored = fitted(folder, key)
    ranks.wait()  # every process of a launch has looked before one of them writes
    if stored is None:
        folder.mkdir(parents=True, exist_ok=True)
        seed_everything(seeds.derive(ctx.seed, "fit"))
        method = cls(build(cls.Params, f"method {cls.name}", params), ctx)
        ctx.watch = partial(watch, method) if watch else None
        start = time.perf_counter()
        report = method.fit(train, val)
        seconds = report.earlier_seconds + time.perf_counter() - start
        if ranks.rank() == 0:
            method.save(folder)
        stored = {"fit_key": key, "seconds": seconds, "memory": peak_memory(ctx.device), **asdict(report)}
        if ranks.rank() == 0:
            write_json(folder / FIT, stored)
        ranks.wait()
    return cls.load(folder, ctx), stored


def peak_memory(device: str) -> dict[str, float]:
    """Peak GiB of this process so far: host memory, and GPU memory when ``device`` is one."""
    peak = {"host": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 2**30}
    if device.startswith("cuda"):
        import torch

        peak["gpu"] = torch.cuda.max_memory_allocated(device) / 2**30
    return peak
