"""What produced a number: versions, machine, device, revision. No user name, host name or path."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import adbench

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


def package_versions() -> dict[str, str | None]:
    """Installed version of each package whose version may matter; None when absent."""
    found: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def git_revision() -> str | None:
    """Revision of the checkout adbench runs from ("-dirty" when changed), or None outside one."""
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


def collect(device: str) -> dict[str, Any]:
    """Provenance of a run on ``device``."""
    name = platform.processor() or platform.machine()
    if device.startswith("cuda"):
        import torch

        name = torch.cuda.get_device_name(device)
    return {
        "adbench": adbench.__version__,
        "git": git_revision(),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "device": device,
        "device_name": name,
        "packages": package_versions(),
    }
