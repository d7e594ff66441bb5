"""Maps, reconstructions and masks of a report as NIfTI files with BIDS-derivative names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from adbench import __version__
from adbench.datasets.export import original_volume, prepared_volume
from adbench.datasets.geometry import Geometry
from adbench.datasets.io import nifti
from adbench.errors import UserError
from adbench.evaluation.run import Run, VolumeMaps
from adbench.utils.files import write_json

if TYPE_CHECKING:
    from adbench.datasets.store.slice_store import SliceStore

SPACES = {"prepared": "prepared", "original": "orig"}


class Exporter:
    """Writes every volume it is called with; the source image and masks once, map and reconstruction for each run.

    ::

        OUT/dataset_description.json
        OUT/sub-01/anat/sub-01_space-orig_desc-madad_anomaly.nii.gz      the map as the method gave it
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
        self._out, self._space = out, space
        self._names = _descriptions(runs)
        self._subjects: dict[str, str] = {}

    def __call__(self, run: Run, volume: VolumeMaps) -> None:
        """Write one volume of one run.

        Raises:
            UserError: the slices come from no volume, so there is no original grid to go back to.
        """
        if not self.files:
            made_by = [{"Name": "adbench", "Version": __version__}]
            write_json(
                self._out / "dataset_description.json",
                {"Name": "adbench maps", "BIDSVersion": "1.10.0", "DatasetType": "derivative", "GeneratedBy": made_by},
            )
        store, case = run.data.test_store, volume.volume
        name, modality = self._names[run.record.run_key], _label(run.record.test.modality)
        first = case not in self._subjects
        stem = self._stem(store, case)
        arrays: dict[str, np.ndarray] = {f"desc-{name}_anomaly": volume.maps}
        if volume.reconstruction is not None:
            arrays[f"desc-{name}Recon_{modality}"] = volume.reconstruction
        if first:
            arrays |= {
                f"desc-prepared_{modality}": volume.image,
                "desc-brain_mask": volume.brain,
                "desc-lesion_mask": volume.lesion,
            }
        for tail, array in arrays.items():
            path = stem.with_name(f"{stem.name}_space-{SPACES[self._space]}_{tail}.nii.gz")
            nifti.write(path, *self._volume(store, case, volume.slices, array))
            self.files.append(path)
        write_json(
            stem.with_name(f"{stem.name}_space-{SPACES[self._space]}_desc-{name}_anomaly.json"),
            {
                "Description": f"Anomaly map of {run.label}; higher is more anomalous, scored inside the brain mask only",
                "RunKey": run.record.run_key,
                "Thresholds": {rule: run.record.thresholds[rule] for rule in ("val",) if rule in run.record.thresholds},
                "Case": case,
            },
        )

    def _volume(
        self, store: SliceStore, case: str, slices: np.ndarray, array: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        if self._space == "original":
            geometry = store.geometry(case)
            masks = array.dtype == np.bool_
            volume = original_volume(geometry, slices.tolist(), array, linear=not masks)
            affine = np.asarray(geometry.original_affine)
        else:
            stored = store.case(case).geometry
            known = Geometry.from_json(stored) if stored else None
            volume, affine = prepared_volume(known, slices.tolist(), array)
        kind = np.uint8 if array.dtype == np.bool_ else np.result_type(array.dtype, np.float32)  # NIfTI has no float16
        return volume.astype(kind), affine

    def _stem(self, store: SliceStore, case: str) -> Path:
        if case not in self._subjects:
            stored = store.case(case)
            label = f"sub-{_label(stored.subject.removeprefix('sub-'))}"
            session = f"_ses-{_label(stored.session.removeprefix('ses-'))}" if stored.session else ""
            if label + session in self._subjects.values():
                raise UserError(
                    f"Case {case!r} and another one would both be exported as {label}{session}: BIDS names hold letters "
                    "and digits only. Rename one of them."
                )
            self._subjects[case] = label + session
        name = self._subjects[case]
        return self._out / name.replace("_", "/") / "anat" / name


def _descriptions(runs: Sequence[Run]) -> dict[str, str]:
    """Run key -> a label for ``desc-``: the method's name, with its preset, seed and key only where needed."""
    tokens: dict[str, list[Any]] = {}
    for run in runs:
        method = run.record.method
        tokens[run.record.run_key] = [method.name, method.preset, f"seed{run.record.seed}", run.record.run_key[:6]]
    found = {}
    for key, own in tokens.items():
        count = next((n for n in range(1, 4) if [t[:n] for t in tokens.values()].count(own[:n]) == 1), 4)
        found[key] = _label("".join(own[:count]))
    return found


def _label(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9]", "", text) or "x"
