"""Prepared slices as NIfTI files with BIDS-derivative names, on the prepared grid or on that of the scan."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from adbench import __version__
from adbench.datasets.export import original_volume, prepared_volume
from adbench.datasets.geometry import Geometry
from adbench.datasets.io import nifti
from adbench.errors import UserError
from adbench.utils.files import write_json

if TYPE_CHECKING:
    from adbench.datasets.store.slice_store import SliceStore

SPACES = {"prepared": "prepared", "original": "orig"}


class VolumeFiles:
    """Writes below ``OUT/sub-01/[ses-1/]anat/``; the names say subject, session and space.

    Args:
        out: folder to write to.
        space: "prepared" (the slices' own grid) or "original" (the voxels of the provider's file).
    """

    def __init__(self, out: Path, space: str) -> None:
        self._out, self._space = out, space
        self._subjects: dict[str, str] = {}
        self._described = False

    def path(self, store: SliceStore, case: str, tail: str) -> Path:
        """Where the file of ``case`` lies whose name ends with ``tail``, e.g. "desc-madad_anomaly.json".

        Raises:
            UserError: another case would have the same name.
        """
        if case not in self._subjects:
            stored = store.case(case)
            name = f"sub-{label(stored.subject.removeprefix('sub-'))}"
            session = f"_ses-{label(stored.session.removeprefix('ses-'))}" if stored.session else ""
            if name + session in self._subjects.values():
                raise UserError(
                    f"Case {case!r} and another one would both be exported as {name}{session}: BIDS names hold letters "
                    "and digits only. Rename one of them."
                )
            self._subjects[case] = name + session
        stem = self._subjects[case]
        return self._out / stem.replace("_", "/") / "anat" / f"{stem}_space-{SPACES[self._space]}_{tail}"

    def write(
        self, store: SliceStore, case: str, slices: Sequence[int], arrays: Mapping[str, np.ndarray]
    ) -> dict[Path, np.ndarray]:
        """Write the volumes of one case.

        Args:
            store: that the case is in.
            case: its id.
            slices: S slice indices, ascending.
            arrays: by the end of the file's name without its type, (S, H, W) each; masks are bool.

        Returns:
            Path -> (X, Y, Z) as it was written, masks as uint8.

        Raises:
            UserError: the slices come from no volume, so there is no original grid to go back to.
        """
        if not self._described:
            made_by = [{"Name": "adbench", "Version": __version__}]
            write_json(
                self._out / "dataset_description.json",
                {"Name": "adbench maps", "BIDSVersion": "1.10.0", "DatasetType": "derivative", "GeneratedBy": made_by},
            )
            self._described = True
        written = {}
        for tail, array in arrays.items():
            path = self.path(store, case, f"{tail}.nii.gz")
            written[path], affine = self._volume(store, case, slices, array)
            nifti.write(path, written[path], affine)
        return written

    def _volume(
        self, store: SliceStore, case: str, slices: Sequence[int], array: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        if self._space == "original":
            geometry = store.geometry(case)
            masks = array.dtype == np.bool_
            volume = original_volume(geometry, slices, array, linear=not masks)
            affine = np.asarray(geometry.original_affine)
        else:
            stored = store.case(case).geometry
            known = Geometry.from_json(stored) if stored else None
            volume, affine = prepared_volume(known, slices, array)
        kind = np.uint8 if array.dtype == np.bool_ else np.result_type(array.dtype, np.float32)  # NIfTI has no float16
        return volume.astype(kind), affine


def label(text: str) -> str:
    """``text`` as a part of a BIDS name: letters and digits alone."""
    return re.sub(r"[^A-Za-z0-9]", "", text) or "x"
