"""The smallest search that still learns something."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from adbench.config import run_config
from adbench.config.run_config import RunConfig
from adbench.tune.search import SearchResult
from adbench.tune.task import Task

PHANTOM = ("n_train=4", "n_val=4", "n_test=2", "slices=2", "resolution=3.4")
SMALL = ("image_size=32", "channels=[8, 16]", "latent=8", "steps=20", "batch=4", "warmup=0")
Settings = Callable[..., RunConfig]
Tune = Callable[..., SearchResult]
Trial = Callable[..., list[dict[str, Any]]]
Begun = Callable[..., tuple[Path, Task]]


def make_settings(out: Path, method: str = "ae", *assignments: str) -> RunConfig:
    """Configuration of a cheap method on a small phantom."""
    sets = [f"dataset.{text}" for text in PHANTOM]
    sets += [f"method.{text}" for text in SMALL] if method == "ae" else []
    flags = {"method": (method,), "dataset": ("phantom",), "device": "cpu", "out": str(out)}
    return run_config.load(None, flags, [*sets, *assignments])
