"""Provenance of a result: versions, machine, device, revision. No user name, host name or path."""

from __future__ import annotations

import json
import platform
import subprocess
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import adbench
from adbench.utils import compute
from adbench.utils.files import write_json

ORIGIN = "origin.json"  # in the folder of a fit: what made it
PACKAGES = (
    "torch",
    "diffusers",
    "monai",
    "accelerate",
    "numpy",
    "scipy",
    "scikit-learn",
    "pandas",
    "nibabel",
    "nilearn",
    "ray",
    "rich",
    "typer",
    "pydantic",
    "einops",
    "safetensors",
    "connected-components-3d",
)


@cache
def package_versions() -> dict[str, str | None]:
    """Installed version of each package whose version may matter; None when absent. Read once a process, to be read only."""
    found: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except (PackageNotFoundError, KeyError, TypeError, ValueError):  # absent, or a part of it was removed
            found[name] = None
    return found


@cache
def git_revision() -> str | None:
    """Revision of the checkout adbench runs from ("-dirty" when changed), or None outside one.

    It is asked once a process, which runs the code that it has read at its start.
    """
    here = Path(adbench.__file__).resolve().parent
    if not (here.parent / ".git").exists():
        return None
    try:
        run = subprocess.run(
            ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=12"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):  # no git, or not a usable checkout: the revision is simply unknown
        return None
    return run.stdout.strip()


def processor() -> str:
    """The model of this machine's CPU, under its maker's name where that is known."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name" and value.strip():
                return value.strip()
    return platform.processor() or platform.machine()


def machine(device: str) -> dict[str, Any]:
    """The hardware and software that decide the last digits of a number computed on ``device``.

    Returns:
        ``device``; ``device_name``, the model that computed; ``cpu`` and ``gpu``, models (None: no GPU took part);
        ``threads`` of the CPU; ``precision`` of networks, "float32" (TF32 is off), "tf32" or "bf16".
    """
    import torch

    cpu = processor()
    gpu = torch.cuda.get_device_name(device) if device.startswith("cuda") else None
    return {
        "device": device,
        "device_name": gpu or cpu,
        "cpu": cpu,
        "gpu": gpu,
        "threads": torch.get_num_threads(),
        "precision": compute.precision(device),
    }


def sign(folder: Path, device: str, sources: dict[str, str]) -> None:
    """Write into the folder of a fit what makes it: the hashes of its sources, and each machine that took part."""
    here, earlier = machine(device), origin(folder).get("machines", [])
    write_json(folder / ORIGIN, {"machines": [m for m in earlier if m != here] + [here], "sources": sources})


def origin(folder: Path) -> dict[str, Any]:
    """The signature that :func:`sign` wrote into the folder of a fit; empty where there is none, or the file is damaged."""
    try:
        content = json.loads((folder / ORIGIN).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def collect(device: str, fit_folder: Path) -> dict[str, Any]:
    """Provenance of a run that is scored on ``device`` with the fit in ``fit_folder``."""
    return {
        "adbench": adbench.__version__,
        "git": git_revision(),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        **machine(device),
        "fit": origin(fit_folder).get("machines", []),
        "packages": dict(package_versions()),
    }
