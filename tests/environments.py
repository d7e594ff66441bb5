"""Python environments of their own, so that what a test or a notebook installs is gone with them."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path


def make_environment(folder: Path) -> dict[str, str]:
    """Environment variables of a shell in which ``adbench``, ``pip`` and ``pytest`` work on a new virtual environment.

    It sees every package of the environment that runs the tests, editable ones too. PACKAGES is where ``pip`` installs.
    """
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    python = folder / "bin" / "python"
    packages = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    outer = sysconfig.get_path("purelib")
    (Path(packages) / "outer.pth").write_text(f"import site; site.addsitedir({outer!r})\n", encoding="utf-8")
    for command, module in (("adbench", "adbench.cli"), ("pip", "pip"), ("pytest", "pytest")):
        script = folder / "bin" / command
        script.write_text(f'#!/bin/sh\nexec "{python}" -m {module} "$@"\n', encoding="utf-8")
        script.chmod(0o755)
    return {
        **{name: value for name, value in os.environ.items() if name != "COLUMNS"},  # output is as wide as it takes
        "PACKAGES": packages,
        "PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}",
        # Nothing is downloaded: the build backend and the dependencies are those that are there.
        "PIP_NO_BUILD_ISOLATION": "0",
        "PIP_NO_DEPS": "1",
        "PIP_NO_INDEX": "1",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    }
