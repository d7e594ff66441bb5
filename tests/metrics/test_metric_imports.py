"""Importing the metrics is cheap."""

import subprocess
import sys

HEAVY = ("torch", "scipy", "sklearn", "matplotlib", "cc3d", "nibabel", "PIL", "pandas", "monai")


def test_no_heavy_import():
    code = (
        "import sys, pkgutil, importlib, adbench.metrics as m\n"
        "for module in pkgutil.iter_modules(m.__path__): importlib.import_module(f'adbench.metrics.{module.name}')\n"
        f"print(*[name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
