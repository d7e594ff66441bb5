"""``adbench doctor``: is this installation whole, and what can it use?"""

from __future__ import annotations

import os
import platform
import shutil
import sys
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import adbench
from adbench.cli.describe import KINDS
from adbench.config import registry
from adbench.config.run_config import DATA_VARIABLE, default_cache
from adbench.results.provenance import package_versions, processor

DISTRIBUTION = "adbench-mri"
FOREIGN = "adbench"  # another project on PyPI that installs the same import name


def foreign_distribution() -> str | None:
    """Version of the other distribution called ``adbench``, or None when it is not installed."""
    for dist in distributions(name=FOREIGN):
        return dist.version
    return None


def examine() -> dict[str, Any]:
    """Every finding (what, found, verdict) and the number of problems.

    Imports torch to learn about the device; takes some seconds.
    """
    findings: list[dict[str, str]] = []

    def note(what: str, found: object, verdict: str = "ok") -> None:
        findings.append({"what": what, "found": str(found), "verdict": verdict})

    note("adbench", f"{adbench.__version__} in {Path(adbench.__file__).parent}")
    foreign = foreign_distribution()
    if foreign is None:
        note("other distribution named adbench", "not installed")
    else:
        note(
            "other distribution named adbench",
            f"adbench {foreign}",
            f"problem: it installs over the same import name; run: pip uninstall {FOREIGN} && pip install --force-reinstall --no-deps {DISTRIBUTION}",
        )
    supported = sys.version_info >= (3, 11)
    note("Python", platform.python_version(), "ok" if supported else "problem: needs 3.11 or newer")
    for name, version in package_versions().items():
        note(name, version or "not installed", "ok" if version else f"problem: pip install {DISTRIBUTION}")
    _device(note)
    note("CPU cores", os.cpu_count())
    cache = default_cache()
    there = next(parent for parent in [cache, *cache.absolute().parents] if parent.exists())
    free = shutil.disk_usage(there).free / 2**30
    writable = os.access(there, os.W_OK)
    verdict = (
        "ok"
        if writable and free > 5
        else f"problem: {'less than 5 GiB free' if writable else 'not writable'}; set ADBENCH_CACHE"
    )
    note("cache of slice stores", f"{cache} ({free:.0f} GiB free)", verdict)
    root = os.environ.get(DATA_VARIABLE)
    note(DATA_VARIABLE, root or "not set", "ok" if not root or Path(root).is_dir() else "problem: no such folder")
    for entry in registry.entries("datasets").values():
        if root and not entry.problem and (Path(root) / entry.name).is_dir():
            note(f"data of {entry.name}", Path(root) / entry.name)
    for kind in KINDS:
        for entry in registry.entries(kind).values():
            if entry.origin != "built-in":
                problem = registry.status(entry)
                note(f"plugin {kind[:-1]} {entry.name}", entry.origin, f"problem: {problem}" if problem else "ok")
    return {"findings": findings, "problems": sum(f["verdict"].startswith("problem") for f in findings)}


def _device(note: Any) -> None:
    try:
        import torch
    except ImportError as error:
        note("device", "unknown", f"problem: torch cannot be imported ({error})")
        return
    if not torch.cuda.is_available():
        note("device", f"CPU ({processor()}), no CUDA device seen")
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        note(f"device cuda:{index}", f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB")
