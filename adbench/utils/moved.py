"""Old names of modules: importing one gives one sentence that says the new name.

Only names that the documentation gave to authors of plug-ins are kept. Names that did not move (``adbench.methods.base``,
``adbench.params``, …) are not here.
"""

from __future__ import annotations

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
    "adbench.datasets.names": "adbench.datasets.io.filename_patterns (person and subject_of: adbench.datasets.io.patient_names)",
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
    "adbench.methods.single": "adbench.methods.trained_network (a base class, TrainedNetwork, instead of fit_network)",
    "adbench.methods.slicewise": "adbench.methods.common.image_ops",
    "adbench.metrics.alarms": "adbench.metrics.optional",
    "adbench.metrics.bins": "adbench.metrics.partition",
    "adbench.metrics.external": "adbench.evaluation.maps",
    "adbench.metrics.keys": "adbench.metrics.score_bins",
}


def refuse(name: str) -> None:
    """Say the new name of a module.

    Raises:
        ImportError: ``name`` has moved. Not ModuleNotFoundError: ``from adbench import seeds`` would hide its text.
    """
    if name in MOVED:
        raise ImportError(f"{name} is now {MOVED[name]}.", name=name)
