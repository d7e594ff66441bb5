"""The means that ``benchmarks/methods.py --vary`` switches on or off, each by itself."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

from adbench.errors import unknown
from adbench.utils import compute

NEVER = 10**9  # a step that does not come
UNCOMPILED = {compute.COMPILE: "off"}
EXACT = "not compiled, float32"
PLAIN = "not compiled, launched one by one"
CALLS = ("not compiled", "launched one by one", PLAIN)  # of the variants, those that scoring has too
VARIANTS: dict[str, dict[str, str]] = {  # and what is set in the environment
    "not compiled": UNCOMPILED,
    PLAIN: UNCOMPILED,
    "not compiled, deterministic": UNCOMPILED,
    EXACT: UNCOMPILED | {compute.PRECISION: "float32"},
    "not compiled, TF32": UNCOMPILED | {compute.PRECISION: "tf32"},
    "launched one by one": {},
    "cuDNN's choice by trial": {},
    "deterministic": {},
    "batch drawn in the step": {},
    "not compiled, channels first": UNCOMPILED,
}
CPU_VARIANTS = ("channels last", "compiled", "fused optimiser", "foreach optimiser", "denormals flushed", "bf16")
TRAINED_ONLY = ("fused optimiser", "foreach optimiser")  # what scoring has none of


@contextmanager
def variant(name: str) -> Iterator[None]:
    """Within the block one means is switched on or off; "" changes nothing."""
    import torch

    from adbench.methods.common import forward
    from adbench.methods.training import run, step

    if name in CPU_VARIANTS:
        with cpu_variant(name):
            yield
        return
    if name and name not in VARIANTS:
        raise unknown("variant", name, VARIANTS)
    with ExitStack() as stack:

        def put(owner: Any, attribute: str, value: Any) -> None:
            stack.enter_context(mock.patch.object(owner, attribute, value))

        stack.enter_context(mock.patch.dict(os.environ, VARIANTS.get(name, {})))
        if name.endswith("launched one by one"):
            put(run, "LAUNCHED", NEVER)
            put(forward, "LAUNCHED", NEVER)
        if name == "batch drawn in the step":
            put(run, "Batches", lambda stage, seed, device: step.Batches(stage, seed, device, ahead=False))
        if name.endswith("channels first"):
            put(run, "memory_layout", lambda device: torch.contiguous_format)
        if name.endswith("by trial"):
            stack.callback(setattr, torch.backends.cudnn, "benchmark", torch.backends.cudnn.benchmark)
            torch.backends.cudnn.benchmark = True
        if name.endswith("deterministic"):
            torch.use_deterministic_algorithms(True, warn_only=True)
            stack.callback(torch.use_deterministic_algorithms, False)
        yield


@contextmanager
def cpu_variant(name: str) -> Iterator[None]:
    """Within the block one of :data:`CPU_VARIANTS` is on."""
    import torch

    from adbench.methods import training
    from adbench.methods.common import preprocess
    from adbench.methods.training import run

    with ExitStack() as stack:

        def put(owner: Any, attribute: str, value: Any) -> None:
            stack.enter_context(mock.patch.object(owner, attribute, value))

        if name == "channels last":
            for module in (run, preprocess):
                put(module, "memory_layout", lambda device: torch.channels_last)
        if name == "compiled":
            frozen = preprocess.frozen

            def compiled(module: Any, device: str) -> Any:
                frozen(module, device).compile(dynamic=False)
                return module

            put(preprocess, "frozen", compiled)
            put(compute, "compile_mode", lambda device: "default")
            put(training.Plan, "pays_to_compile", True)
        if name in TRAINED_ONLY:
            means = {name.partition(" ")[0]: True}
            for kind in (torch.optim.Adam, torch.optim.AdamW):
                put(torch.optim, kind.__name__, lambda *a, kind=kind, **b: kind(*a, **b | means))
        if name == "denormals flushed":
            torch.set_flush_denormal(True)
            stack.callback(torch.set_flush_denormal, False)
        if name == "bf16":
            for module in (compute, preprocess):
                put(module, "precision", lambda device: "bf16")
        yield
