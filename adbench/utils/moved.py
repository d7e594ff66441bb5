"""Old names of modules: importing one gives one sentence that says the new name.

Only names that the documentation gave to authors of plug-ins are kept. Names that did not move (``adbench.methods.base``,
``adbench.params``, …) are not here.
"""

from __future__ import annotations

import sys
from importlib.abc import MetaPathFinder
from typing import Any

MOVED = {
    "adbench.files": "adbench.utils.files",
    "adbench.hashing": "adbench.utils.hashing",
    "adbench.protocols": "adbench.config.protocols",
    "adbench.fitting": "adbench.runner.fit",
    "adbench.registry": "adbench.config.registry",
    "adbench.scoring": "adbench.runner.inference",
    "adbench.seeds": "adbench.utils.seeds",
    "adbench.convert": "examples/convert_madad_vae.py, a script",
    "adbench.datasets.findings": "adbench.datasets.issues (Finding is Issue there)",
    "adbench.datasets.grid": "adbench.datasets.preprocessing.resize",
    "adbench.datasets.names": "adbench.datasets.io.filename_patterns",
    "adbench.datasets.nifti": "adbench.datasets.io.nifti",
    "adbench.datasets.pseudo": "adbench.datasets.synthetic_lesions",
    "adbench.datasets.recipe": "adbench.datasets.preprocessing",
    "adbench.datasets.volumes": "adbench.datasets.adapters.volumes",
    "adbench.methods.budget": "adbench.methods.common.params",
    "adbench.methods.card": "a Markdown file beside the method's module",
    "adbench.methods.imaging": "adbench.methods.common.image_ops (shrink and stretch are resize there)",
    "adbench.methods.noise": "adbench.methods.common.noise",
    "adbench.methods.perceptual": "adbench.methods.common.perceptual",
    "adbench.methods.sampling": "adbench.methods.common.schedulers",
    "adbench.methods.single": "adbench.methods.training.fit_network (a base class, TrainedNetwork, instead of fit_network)",
    "adbench.methods.slicewise": "adbench.methods.common.image_ops",
    "adbench.metrics.alarms": "adbench.metrics.optional",
    "adbench.metrics.bins": "adbench.metrics.partition",
    "adbench.metrics.external": "adbench.evaluation.maps",
    "adbench.metrics.keys": "adbench.metrics.score_bins",
}


class _Moved(MetaPathFinder):
    """Asked last, so only for modules that do not exist."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name in MOVED:
            # Not ModuleNotFoundError: `from adbench import seeds` would hide its text.
            raise ImportError(f"{name} is now {MOVED[name]}.", name=name)


def install() -> None:
    """Let imports of old names say the new ones."""
    if not any(isinstance(finder, _Moved) for finder in sys.meta_path):
        sys.meta_path.append(_Moved())
