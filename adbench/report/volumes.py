"""Maps, reconstructions and masks of a report as NIfTI files with BIDS-derivative names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from adbench.evaluation.run import Run, VolumeMaps
from adbench.evaluation.volume_files import VolumeWriter, label
from adbench.utils.files import write_json


class Exporter:
    """Writes every volume it is called with; the source image and masks once, map and reconstruction for each run.

    ::

        OUT/dataset_description.json
        OUT/sub-01/anat/sub-01_space-orig_desc-madad_anomaly.nii.gz      the map, 0 outside the brain
                        sub-01_space-orig_desc-madad_anomaly.json        its run, threshold and unit
                        sub-01_space-orig_desc-madadRecon_FLAIR.nii.gz   pseudo-healthy image in [0, 1]
                        sub-01_space-orig_desc-prepared_FLAIR.nii.gz     what the method saw, in [0, 1]
                        sub-01_space-orig_desc-brain_mask.nii.gz  sub-01_space-orig_desc-lesion_mask.nii.gz

    Args:
        out: folder to write to.
        space: "prepared" (the slices' own grid) or "original" (the voxels of the provider's file).
        runs: every run of the report; methods that occur once are named by their name alone.

    Attributes:
        files: the NIfTI files written so far.
    """

    def __init__(self, out: Path, space: str, runs: Sequence[Run]) -> None:
        self.files: list[Path] = []
        self._out = VolumeWriter(out, space)
        self._names = _descriptions(runs)
        self._seen: set[str] = set()

    def __call__(self, run: Run, volume: VolumeMaps) -> None:
        """Write one volume of one run.

        Raises:
            UserError: the slices come from no volume, so there is no original grid to go back to.
        """
        store, case = run.data.test_store, volume.volume
        name, modality = self._names[run.record.run_key], label(run.record.test.modality)
        slices = volume.slices.tolist()
        counted = np.ones_like(volume.brain) if run.record.protocol.get("domain") == "all" else volume.brain
        arrays: dict[str, np.ndarray] = {}
        if volume.reconstruction is not None:
            arrays[f"desc-{name}Recon_{modality}"] = volume.reconstruction
        if case not in self._seen:
            arrays |= {
                f"desc-prepared_{modality}": volume.image,
                "desc-brain_mask": volume.brain,
                "desc-lesion_mask": volume.lesion,
            }
        self._seen.add(case)
        volumes = {f"desc-{name}_anomaly": self._out.map_placed(store, case, slices, volume.maps, counted)[0]}
        volumes |= {tail: self._out.placed(store, case, slices, array) for tail, array in arrays.items()}
        self.files += self._out.write(store, case, volumes)
        write_json(
            self._out.path(store, case, f"desc-{name}_anomaly.json"),
            {
                "Description": f"Anomaly map of {run.label}; higher is more anomalous, scored inside the brain mask only",
                "RunKey": run.record.run_key,
                "Thresholds": {rule: run.record.thresholds[rule] for rule in ("val",) if rule in run.record.thresholds},
                "Case": case,
            },
        )


def _descriptions(runs: Sequence[Run]) -> dict[str, str]:
    """Run key -> a label for ``desc-``: the method's name, with its preset, seed and key only where needed."""
    tokens: dict[str, list[Any]] = {}
    for run in runs:
        method = run.record.method
        tokens[run.record.run_key] = [method.name, method.preset, f"seed{run.record.seed}", run.record.run_key[:6]]
    found = {}
    for key, own in tokens.items():
        count = next((n for n in range(1, 4) if [t[:n] for t in tokens.values()].count(own[:n]) == 1), 4)
        found[key] = label("".join(own[:count]))
    return found
